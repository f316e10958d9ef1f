"""From groups and class texts to class maps: GroupViT's zero-shot inference, step by step.

Paper: Xu et al. 2022, arXiv 2202.11094; the steps follow its released evaluation, which CoCu (arXiv 2309.13505) shares.
Deviation: background is a score that competes (the threshold itself) instead of a 0/1 map. The two agree wherever nothing is
interpolated or averaged; a 0/1 map would make background grow when logits are resized, since other scores are below 1.
"""

import torch
from torch import nn


def assign_cells(assignments: torch.Tensor, size: tuple[int, int], hard: bool) -> torch.Tensor:
    """Soft assignments on another grid, each cell given whole to its best group where `hard`.

    Args:
        assignments: `(batch, groups, h, w)`.
        size: `(height, width)` of the result.

    Returns:
        `(batch, groups, height, width)`, summing to 1 over groups.
    """
    assignments = assignments.float()
    if tuple(assignments.shape[-2:]) != tuple(size):
        assignments = nn.functional.interpolate(assignments, size=size, mode="bilinear", align_corners=False)
    if not hard:
        return assignments
    return torch.zeros_like(assignments).scatter_(1, assignments.argmax(dim=1, keepdim=True), 1.0)


def group_class_scores(group_logits: torch.Tensor, image_logits: torch.Tensor, top_classes: int | None = None) -> torch.Tensor:
    """Probability of each class for each group.

    The softmax over the classes that suit the whole image best, times the softmax over all classes.

    Args:
        group_logits: `(batch, classes, groups)`, scaled cosines.
        image_logits: `(batch, classes)`, of the whole image.
        top_classes: how many classes an image may show; None for no limit.

    Returns:
        `(batch, classes, groups)` in [0, 1].
    """
    unrestricted = group_logits.softmax(dim=1)
    if top_classes is None or top_classes >= image_logits.shape[1]:
        return unrestricted.square()
    best = image_logits.topk(top_classes, dim=1).indices
    allowed = torch.zeros_like(image_logits, dtype=torch.bool).scatter_(1, best, True)
    return group_logits.masked_fill(~allowed[:, :, None], float("-inf")).softmax(dim=1) * unrestricted


def add_background(class_maps: torch.Tensor, group_scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Class 0 in front of the others: it wins where no class reaches `threshold`, or the image's best score if that is lower.

    Args:
        class_maps: `(batch, classes, h, w)`.
        group_scores: `(batch, classes, groups)`, from `group_class_scores`.

    Returns:
        `(batch, 1 + classes, h, w)`.
    """
    best = group_scores.flatten(1).amax(dim=1).clamp_max(threshold)
    # Just below, so that a class at the threshold wins although background comes first.
    background = best * (1 - 2 * torch.finfo(class_maps.dtype).eps)
    batch, _, height, width = class_maps.shape
    background = background.to(class_maps.dtype).view(-1, 1, 1, 1).expand(batch, 1, height, width)
    return torch.cat([background, class_maps], dim=1)
