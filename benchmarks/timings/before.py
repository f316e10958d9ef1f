"""How things were done before, plainly, so that one run can time the old way beside the new one.

Results are the same (tests/test_timings.py); only the way there differs.
"""

import math

import torch
import torch.nn.functional as F

from hf_clipseg.evaluation.metrics import harmonic_mean
from hf_clipseg.refinement.pamr import DILATIONS, _propagate, local_affinity

OLD_ELEMENTS, OLD_CHANNELS = 2**25, 16


def segformer_labels(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """transformers' SegFormer post-processing: every class at full size."""
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0].argmax(dim=0)


def labels_in_chunks(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """All classes at full size, in chunks of 128 MB, with a running maximum."""
    best, labels = torch.full(size, -torch.inf), torch.zeros(size, dtype=torch.long)
    step = max(1, OLD_ELEMENTS // (size[0] * size[1]))
    for first in range(0, len(logits), step):
        chunk = F.interpolate(logits[None, first : first + step], size=size, mode="bilinear", align_corners=False)[0]
        scores, winners = chunk.max(dim=0)
        labels = torch.where(scores > best, winners + first, labels)
        best = torch.maximum(best, scores)
    return labels


def pamr_by_16(images: torch.Tensor, masks: torch.Tensor, iterations: int = 10) -> torch.Tensor:
    """PAMR with 16 channels at once."""
    weights = local_affinity(images, DILATIONS)
    return torch.cat([_propagate(chunk, weights, iterations, DILATIONS) for chunk in masks.split(OLD_CHANNELS, dim=1)], dim=1)


def boundary_f_by_class(prediction: torch.Tensor, target: torch.Tensor, tolerance: float = 0.0075) -> dict[int, float]:
    """Boundary F of every class of a target without ignored pixels, one class at a time at full size."""
    radius = max(1.0, tolerance * math.hypot(*target.shape))
    found = {}
    for class_id in target.unique().tolist():
        edges = torch.stack([inner_boundary(labels == class_id) for labels in (prediction, target)])
        near, counts = dilate(edges, radius), edges.sum(dim=(1, 2)).double()
        if counts.any():
            hits = (edges & near.flip(0)).sum(dim=(1, 2)).double()
            found[class_id] = harmonic_mean(*(hits / counts).tolist()) if counts.all() else 0.0
    return found


def inner_boundary(mask: torch.Tensor) -> torch.Tensor:
    """Pixels of an `(H, W)` bool mask with a 4-neighbour outside of it; the border of the image makes no boundary."""
    beside = torch.zeros_like(mask)
    beside[1:] |= ~mask[:-1]
    beside[:-1] |= ~mask[1:]
    beside[:, 1:] |= ~mask[:, :-1]
    beside[:, :-1] |= ~mask[:, 1:]
    return mask & beside


def dilate(masks: torch.Tensor, radius: float) -> torch.Tensor:
    """`(K, H, W)` bool masks grown by a Euclidean disk, the union of its horizontal runs."""
    grown, source, height = torch.zeros_like(masks), masks.float(), masks.shape[1]
    for rise in range(min(int(radius), height - 1) + 1):
        half_width = int(math.sqrt(radius**2 - rise**2))
        run = F.max_pool1d(source, 2 * half_width + 1, stride=1, padding=half_width) > 0
        grown[:, rise:] |= run[:, : height - rise]
        grown[:, : height - rise] |= run[:, rise:]
    return grown
