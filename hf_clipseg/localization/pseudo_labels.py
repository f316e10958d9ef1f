"""From localisation maps to pseudo masks: background, refinement with the image's colours, and how sure each pixel is.

Background takes what no class claims: 1 - max over classes (CLIP-ES, arXiv 2212.09506), or 1 - sum where maps are shares. Where
there are background words, masks follow VOC: 0 is background and class c has the value c + 1. Where every pixel has a class,
class c has the value c.
"""

from dataclasses import replace

import torch
from torch import nn

from ..refinement.refinements import Refinement, find_refinement
from .localization import Localization


@torch.no_grad()
def pseudo_labels(
    found: Localization, images: torch.Tensor, has_background: bool, refinement: str = "crf"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of a batch at the size of its images.

    Args:
        found: maps of the batch; only the classes an image is tagged with can appear in its mask.
        images: `(batch, 3, H, W)` pixels in 0 .. 255.
        has_background: whether there is a background class.
        refinement: `"crf"`, `"pamr"` or `"none"`.

    Returns:
        Labels `(batch, H, W)` int64, and the probability of each label `(batch, H, W)` in [0, 1].
    """
    refine_batch = find_refinement(refinement)
    maps = nn.functional.interpolate(found.maps.float(), size=images.shape[-2:], mode="bilinear", align_corners=False)
    values, used = found.class_ids, found.used
    if has_background:
        maps = torch.cat([found.left_over(maps), maps], dim=1)
        values = torch.cat([torch.zeros_like(values[:, :1]), values + 1], dim=1)
        used = torch.cat([torch.ones_like(used[:, :1]), used], dim=1)
    probabilities = slot_probabilities(maps, used)
    if refine_batch is not None:
        probabilities = refine(refine_batch, images.to(maps.device), probabilities)
    confidence, winner = probabilities.masked_fill(~used[:, :, None, None], -1).max(1)
    return values.gather(1, winner.flatten(1)).view_as(winner), confidence


def refined_localization(found: Localization, images: torch.Tensor, has_background: bool, refinement: str) -> Localization:
    """`found` with the share of every patch that the refined mask gives to a class in place of its maps."""
    labels, _ = pseudo_labels(found, images, has_background, refinement)
    members = labels[:, None] == (found.class_ids + has_background)[:, :, None, None]
    shares = nn.functional.adaptive_avg_pool2d((members & found.used[:, :, None, None]).float(), found.maps.shape[-2:])
    return replace(found, maps=shares)


def slot_probabilities(maps: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """Maps `(batch, slots, H, W)` divided by their sum; uniform over the used slots where all maps are 0."""
    maps = (maps + 1e-6) * used[:, :, None, None]
    return maps / maps.sum(1, keepdim=True)


def refine(refinement: Refinement, images: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """One image after the other: refinement is bound by memory traffic, and the maps of one image stay in the cache."""
    rows = zip(images.split(1), probabilities.split(1), strict=True)
    return torch.cat([refinement(image, row) for image, row in rows])
