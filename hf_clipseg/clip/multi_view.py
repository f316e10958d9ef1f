"""Several text embeddings ("views") per class name, compared with one image and fused to one score.

The fusion of MVP-SEG (arXiv 2304.06957), the sum over views of `features . text_i`, equals `features . sum_i text_i`: k views
collapse to one embedding per name. That makes inference as cheap as with one prompt, and it means that the views of a sum
matter only through their mean: its direction, and its length. `max` and `logsumexp` keep the views apart.
"""

import math

import torch
from torch import nn

from .similarity import cosine_maps

LINEAR_FUSIONS = ("sum", "renormalised_sum")
"""Fusions that one embedding per name can stand for."""

FUSIONS = (*LINEAR_FUSIONS, "max", "logsumexp")


def view_maps(patch_embeds: torch.Tensor, view_embeds: torch.Tensor) -> torch.Tensor:
    """Cosine of every patch with every view of every name.

    Args:
        patch_embeds: `(batch, height, width, dim)`, L2-normalised.
        view_embeds: `(views, names, dim)`, L2-normalised.

    Returns:
        `(batch, views, names, height, width)`.
    """
    return cosine_maps(patch_embeds, view_embeds.flatten(0, 1)).unflatten(1, view_embeds.shape[:2])


def fused_embeds(view_embeds: torch.Tensor, fusion: str) -> torch.Tensor:
    """The one embedding per name `(names, dim)` that a linear fusion of `view_embeds (views, names, dim)` amounts to.

    `sum` keeps the length of the mean, which tells how far the views of a name agree; `renormalised_sum` forgets it.
    """
    mean = view_embeds.mean(dim=0)
    return nn.functional.normalize(mean, dim=-1) if fusion == "renormalised_sum" else mean


def fused_logits(
    patch_embeds: torch.Tensor, view_embeds: torch.Tensor, scale: torch.Tensor | float, fusion: str
) -> torch.Tensor:
    """Scores of names, the views fused.

    Args:
        patch_embeds: `(batch, height, width, dim)`, L2-normalised.
        view_embeds: `(views, names, dim)`, L2-normalised.
        scale: factor of the cosines. The paper's tau_1, which multiplies a sum, is `scale / views`.
        fusion: one of `FUSIONS`.

    Returns:
        `(batch, names, height, width)`.
    """
    if fusion in LINEAR_FUSIONS:
        return scale * cosine_maps(patch_embeds, fused_embeds(view_embeds, fusion))
    scores = scale * view_maps(patch_embeds, view_embeds)
    if fusion == "max":
        return scores.amax(dim=1)
    if fusion == "logsumexp":
        return scores.logsumexp(dim=1) - math.log(len(view_embeds))
    raise ValueError(f"fusion must be one of {FUSIONS}, got {fusion!r}.")


def pairwise_overlap(vectors: torch.Tensor) -> torch.Tensor:
    """Sum over the pairs i < j of |cosine|, the paper's orthogonality penalty.

    Args:
        vectors: `(views, dim)`, or `(views, names, dim)`, where the penalty is averaged over names.

    Returns:
        A scalar, 0 for a single view.
    """
    unit = nn.functional.normalize(vectors.float(), dim=-1)
    cosines = torch.einsum("i...d,j...d->ij...", unit, unit).abs()
    return cosines.flatten(2).mean(-1).triu(diagonal=1).sum() if vectors.dim() > 2 else cosines.triu(diagonal=1).sum()


def centre_classes(view_embeds: torch.Tensor) -> torch.Tensor:
    """`view_embeds (views, names, dim)` less the mean of each view over names, which a softmax over classes does not see."""
    return view_embeds - view_embeds.mean(dim=-2, keepdim=True)


def class_spread(embeds: torch.Tensor) -> torch.Tensor:
    """Mean cosine of the embeddings of different names: near 1 the names hardly matter.

    Args:
        embeds: `(..., names, dim)`, of any length.

    Returns:
        `(...)`, float32; 0 for a single name.
    """
    count = embeds.shape[-2]
    total = nn.functional.normalize(embeds.float(), dim=-1).sum(dim=-2)
    return (total.square().sum(dim=-1) - count) / max(1, count * (count - 1))
