"""Class-aware affinity: localisation maps spread along CLIP's attention, out of the boxes around their strong responses.

Paper: CLIP-ES, Lin et al., CVPR 2023, arXiv 2212.09506. Deviation: boxes end with the last strong patch of a region; those of
CLIP-ES that touch the lower or right edge end one patch before it.
"""

import torch
from torch import nn


def scale_to_one(maps: torch.Tensor) -> torch.Tensor:
    """Shift and scale the last dimension to [0, 1]; a constant map becomes 0."""
    maps = maps - maps.amin(-1, keepdim=True)
    return maps / maps.amax(-1, keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


@torch.no_grad()
def spread(maps: torch.Tensor, attention: torch.Tensor, threshold: float) -> torch.Tensor:
    """Class-aware affinity: move maps `(batch, slots, h, w)` along `attention (batch, n, n)`; same shape, in [0, 1]."""
    moved = move_along(maps, attention, threshold)
    return scale_to_one(moved.flatten(2)).view_as(moved)


@torch.no_grad()
def move_along(maps: torch.Tensor, attention: torch.Tensor, threshold: float) -> torch.Tensor:
    """`spread` before the maps are scaled: what a patch gets from all others, by an affinity whose rows sum to about 1."""
    affinity = attention
    for _ in range(3):
        affinity = affinity / affinity.sum(1, keepdim=True)
        affinity = affinity / affinity.sum(2, keepdim=True)
    affinity = (affinity + affinity.transpose(1, 2)) / 2
    sources = (maps * strong_boxes(maps, threshold)).flatten(2).transpose(1, 2)  # (batch, n, slots)
    moved = affinity @ (affinity @ sources)  # the square of the affinity, without forming it
    return moved.transpose(1, 2).reshape(maps.shape)


def strong_boxes(maps: torch.Tensor, threshold: float) -> torch.Tensor:
    """Union of the bounding boxes of the connected regions in which a map reaches `threshold` times its maximum.

    Args:
        maps: `(batch, slots, h, w)`, not negative.

    Returns:
        `(batch, slots, h, w)` bool. Regions are 8-connected.
    """
    height, width = maps.shape[-2:]
    flat = maps.flatten(0, 1)
    strong = (flat >= threshold * flat.amax((1, 2), keepdim=True)) & (flat > 0)
    rows = torch.arange(height, device=maps.device, dtype=torch.float32).view(1, height, 1).expand_as(flat)
    columns = torch.arange(width, device=maps.device, dtype=torch.float32).view(1, 1, width).expand_as(flat)
    # Flood each region with its largest -top, bottom, -left and right.
    extremes = torch.stack([-rows, rows, -columns, columns], dim=1).masked_fill(~strong[:, None], float("-inf"))
    while True:
        grown = nn.functional.max_pool2d(extremes, 3, stride=1, padding=1).masked_fill(~strong[:, None], float("-inf"))
        if torch.equal(grown, extremes):
            break
        extremes = grown
    # Every strong pixel adds its region's box to a table of corner differences; the double running sum counts boxes.
    picture, row, column = strong.nonzero(as_tuple=True)
    top, bottom, left, right = extremes[picture, :, row, column].long().unbind(1)
    top, bottom, left, right = -top, bottom + 1, -left, right + 1
    corners = maps.new_zeros(len(flat), height + 1, width + 1)
    for edge_row, edge_column, sign in ((top, left, 1.0), (bottom, left, -1.0), (top, right, -1.0), (bottom, right, 1.0)):
        corners.index_put_((picture, edge_row, edge_column), maps.new_tensor(sign), accumulate=True)
    counts = corners.cumsum(1).cumsum(2)[:, :height, :width]
    return (counts > 0.5).view_as(maps)
