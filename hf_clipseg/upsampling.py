"""From logits on a token grid to a label per pixel, without ever holding all classes at full resolution."""

import torch
from torch import nn

MAX_ELEMENTS = 2**25
"""Largest float tensor that `upsample_argmax` builds at once (128 MB in fp32), unless a single class is larger."""


def upsample_argmax(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear up-sampling followed by argmax over classes, a few classes at a time.

    Args:
        logits: `(classes, h, w)`.
        size: `(height, width)` of the result.

    Returns:
        `(height, width)` int64, identical to up-sampling all classes at once; the first class wins a tie.
    """
    chunk_size = max(1, MAX_ELEMENTS // (size[0] * size[1]))
    best_score, best_class = None, None
    for start in range(0, logits.shape[0], chunk_size):
        score, label = upsample(logits[start : start + chunk_size], size).max(dim=0)
        if best_score is None:
            best_score, best_class = score, label
            continue
        better = score > best_score
        best_score = torch.where(better, score, best_score)
        best_class = torch.where(better, label + start, best_class)
    return best_class


def upsample(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`(classes, h, w)` -> `(classes, height, width)`, bilinear, in fp32."""
    return nn.functional.interpolate(logits[None].float(), size=tuple(size), mode="bilinear", align_corners=False)[0]
