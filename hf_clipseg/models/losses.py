"""Losses that more than one method uses."""

import torch
from torch import nn

from ..constants import IGNORE_INDEX


def segmentation_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Pixel-wise cross-entropy at the resolution of the labels.

    Args:
        logits: `(batch, classes, h, w)`; resized bilinearly to the labels.
        labels: `(batch, height, width)` int64, `IGNORE_INDEX` where nothing is known.
        weight: `(classes,)`, optional class weights.

    Returns:
        A scalar, in fp32. It is exactly 0, with a gradient of 0, when every pixel is ignored.

    Raises:
        ValueError: labels outside `0 .. classes - 1` that are not `IGNORE_INDEX`, or another batch size.
    """
    check_labels(labels, logits.shape[0], logits.shape[1])
    logits = nn.functional.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    total = nn.functional.cross_entropy(logits, labels, weight=weight, ignore_index=IGNORE_INDEX, reduction="sum")
    valid = labels != IGNORE_INDEX
    weights = valid if weight is None else weight[labels.where(valid, 0)] * valid
    return total / weights.sum().clamp(min=1e-6)


def check_labels(labels: torch.Tensor, batch: int, num_classes: int) -> None:
    """Reject label maps that cannot belong to these logits, before an index error deep inside a kernel does."""
    if labels.dim() != 3 or labels.shape[0] != batch:
        raise ValueError(f"labels must be (batch={batch}, height, width), got {tuple(labels.shape)}.")
    valid = labels[labels != IGNORE_INDEX]
    if valid.numel() and (valid.min() < 0 or valid.max() >= num_classes):
        wrong = valid.min() if valid.min() < 0 else valid.max()
        raise ValueError(
            f"labels hold the value {int(wrong)}, but the model has {num_classes} classes (0 to {num_classes - 1}) and "
            f"{IGNORE_INDEX} for ignored pixels. Pass every class of the dataset as a class name, or remap the labels."
        )
