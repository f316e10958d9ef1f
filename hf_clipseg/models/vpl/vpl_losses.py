"""Losses of VPL's segmenter on pseudo masks. Every loss is 0, with a gradient of 0, where all pixels are ignored.

Papers: WeCLIP, arXiv 2406.11189, for the balanced cross-entropy and the affinity loss; VPL, arXiv 2412.19650, for the regional
semantic contrast. Its exact form, temperature and weight are not published: a cross-entropy over prototypes is our reading.
"""

import torch
from torch import nn

from ...constants import IGNORE_INDEX
from ..losses import segmentation_cross_entropy


def balanced_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, has_background: bool) -> torch.Tensor:
    """Cross-entropy; with a background class (id 0), the mean of that over background and that over foreground pixels.

    Args:
        logits: `(batch, classes, h, w)`.
        labels: `(batch, H, W)` int64, 255 ignored.
    """
    if not has_background:
        return segmentation_cross_entropy(logits, labels)
    background = segmentation_cross_entropy(logits, labels.where(labels == 0, IGNORE_INDEX))
    foreground = segmentation_cross_entropy(logits, labels.where(labels != 0, IGNORE_INDEX))
    return (background + foreground) / 2


def labels_on_grid(labels: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """`(batch, H, W)` -> `(batch, h, w)`: the label at the centre of every patch."""
    rows, columns = (
        ((torch.arange(cells, device=labels.device) + 0.5) * side / cells).long()
        for cells, side in zip(grid, labels.shape[-2:], strict=True)
    )
    return labels[:, rows[:, None], columns]


def patch_affinity(features: torch.Tensor) -> torch.Tensor:
    """How alike patches are: `(batch, n, dim)` -> `(batch, n, n)` float32, the sigmoid of their scaled dot products."""
    scaled = features.float() * features.shape[-1] ** -0.5
    return (scaled @ features.float().transpose(1, 2)).sigmoid()


def affinity_loss(features: torch.Tensor, grid_labels: torch.Tensor, radius: int) -> torch.Tensor:
    """Patches of one class should be alike, patches of two classes should not.

    Args:
        features: `(batch, n, dim)`, see `patch_affinity`.
        grid_labels: `(batch, h, w)`, 255 ignored.
        radius: only pairs at most so many rows and columns apart take part.

    Returns:
        (mean of 1 - affinity over pairs of one class + mean of affinity over other pairs) / 2.
    """
    _batch, height, width = grid_labels.shape
    affinity = patch_affinity(features)
    flat = grid_labels.flatten(1)
    known = flat != IGNORE_INDEX
    rows = torch.arange(height, device=flat.device).repeat_interleave(width)
    columns = torch.arange(width, device=flat.device).repeat(height)
    near = ((rows[:, None] - rows).abs() <= radius) & ((columns[:, None] - columns).abs() <= radius)
    pairs = known[:, :, None] & known[:, None] & near
    same = pairs & (flat[:, :, None] == flat[:, None])
    different = pairs & ~same
    attraction = ((1 - affinity) * same).sum() / same.sum().clamp(min=1)
    repulsion = (affinity * different).sum() / different.sum().clamp(min=1)
    return (attraction + repulsion) / 2


def region_contrast(
    features: torch.Tensor, grid_labels: torch.Tensor, prototypes: torch.Tensor, num_classes: int, temperature: float
) -> torch.Tensor:
    """Regional semantic contrast: the mean feature of a class's patches should point to the prototype of that class.

    Args:
        features: `(batch, n, dim)` decoder features, projected to the space of the prototypes.
        grid_labels: `(batch, h, w)`, 255 ignored.
        prototypes: `(num_classes + background words, dim)`, L2-normalised; they get no gradient.
        num_classes: where there are more prototypes, label 0 is background, and a background region may be any of its words.

    Returns:
        Mean over the regions (one per image and label) of -log softmax(cosines / temperature) at the region's label.
    """
    flat = grid_labels.flatten(1)
    known = flat != IGNORE_INDEX
    image_ids = torch.arange(len(flat), device=flat.device)[:, None].expand_as(flat)
    regions, index = torch.stack([image_ids[known], flat[known]], dim=1).unique(dim=0, return_inverse=True)
    if not len(regions):
        return features.float().sum() * 0
    values = features[known].float()
    sums = values.new_zeros(len(regions), values.shape[-1]).index_add(0, index, values)
    cosines = nn.functional.normalize(sums, dim=-1) @ prototypes.detach().float().T
    log_probabilities = (cosines / temperature).log_softmax(1)
    if len(prototypes) > num_classes:
        background = log_probabilities[:, num_classes:].logsumexp(1, keepdim=True)
        log_probabilities = torch.cat([background, log_probabilities[:, :num_classes]], dim=1)
    return -log_probabilities.gather(1, regions[:, 1:]).mean()
