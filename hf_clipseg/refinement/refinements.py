"""The refinements by name, for everything that offers a choice of them."""

from collections.abc import Callable

import torch

from .crf import dense_crf
from .pamr import pamr

Refinement = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A function of `(images (B, 3, H, W) in 0 .. 255, probabilities (B, C, H, W))` that returns refined probabilities."""

REFINEMENTS: dict[str, Refinement | None] = {"none": None, "pamr": pamr, "crf": dense_crf}


def find_refinement(name: str | None) -> Refinement | None:
    """The refinement of this name; None for None and `"none"`.

    Raises:
        ValueError: there is none of this name.
    """
    if name is None:
        return None
    if name not in REFINEMENTS:
        raise ValueError(f"refinement must be one of {sorted(REFINEMENTS)}, got {name!r}.")
    return REFINEMENTS[name]
