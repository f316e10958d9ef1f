"""Boundary pixels of all classes of a label map at once, and which of them lie near another map's.

A pixel has one class, so one pass finds the boundaries of all; what follows costs by boundary pixels, not by classes. Nearness
is asked of squares of 8 x 8 pixels, whose pixels are the bits of one integer: a disk is a few masks of such integers.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

SIDE = 8
MAX_SQUARES = 2**22
"""So many squares are held at once (32 MB); with more, classes take turns."""

_UPPER, _LOWER = (slice(None, -1),), (slice(1, None),)
_LEFT, _RIGHT = (slice(None), slice(None, -1)), (slice(None), slice(1, None))


class EdgePixels:
    """Every pixel with a 4-neighbour of another class, both of them valid.

    Args:
        labels: `(H, W)` integers; bytes are the quickest to compare by far.
        valid: `(H, W)` bool, or None where every pixel is.

    Attributes:
        classes, rows, columns: `(N,)` int64 each.
    """

    def __init__(self, labels: torch.Tensor, valid: torch.Tensor | None = None):
        edge = torch.zeros_like(labels, dtype=torch.bool)
        for one, other in ((_UPPER, _LOWER), (_LEFT, _RIGHT)):
            differ = labels[one] != labels[other]
            if valid is not None:
                differ &= valid[one] & valid[other]
            edge[one] |= differ
            edge[other] |= differ
        places = _places(edge)
        self.shape = labels.shape
        self.classes = labels.flatten().index_select(0, places).long()
        self.rows = places // labels.shape[1]
        self.columns = places - self.rows * labels.shape[1]


def _places(mask: torch.Tensor) -> torch.Tensor:
    """The numbers of the True pixels, int64. On a CPU numpy looks for them in half the time."""
    if mask.device.type == "cpu":
        return torch.from_numpy(mask.numpy().ravel().nonzero()[0])
    return mask.flatten().nonzero().flatten()


def near_each_other(one: EdgePixels, other: EdgePixels, radius: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Bool per pixel of each: whether a pixel of the other, of the same class, lies within the radius (Euclidean)."""
    near = torch.zeros_like(one.classes, dtype=torch.bool), torch.zeros_like(other.classes, dtype=torch.bool)
    if not len(one.classes) or not len(other.classes):
        return near
    grid, count = _Grid(one.shape, radius), 1 + int(torch.maximum(one.classes.max(), other.classes.max()))
    shared = (torch.bincount(one.classes, minlength=count) > 0) & (torch.bincount(other.classes, minlength=count) > 0)
    ranks, num_shared = torch.where(shared, shared.cumsum(0) - 1, -1), int(shared.sum())
    for first in range(0, num_shared, grid.classes_at_once):
        turns = [grid.place(edges, ranks - first) for edges in (one, other)]
        bitmaps = [grid.bitmap(turn, min(grid.classes_at_once, num_shared - first)) for turn in turns]
        for found, turn, bitmap in zip(near, turns, reversed(bitmaps), strict=True):
            found.masked_scatter_(turn.chosen, grid.hits(bitmap, turn))
    return near


@dataclass
class _Turn:
    """The pixels of a few classes: which of all they are, and for those the number of their square and their bit in it."""

    chosen: torch.Tensor
    squares: torch.Tensor
    bits: torch.Tensor


class _Grid:
    """Squares over a map, with empty ones around it, so that a disk never leaves them; one such grid per class."""

    def __init__(self, shape: torch.Size, radius: float):
        self.radius, self.reach = radius, math.ceil(radius / SIDE)
        self.height, self.width = (-(-side // SIDE) + 2 * self.reach for side in shape)
        self.classes_at_once = max(1, MAX_SQUARES // (self.height * self.width))

    def place(self, edges: EdgePixels, ranks: torch.Tensor) -> _Turn:
        """The pixels of those classes whose rank is the number of one of the grids."""
        ranks = ranks.index_select(0, edges.classes)
        rows, columns = (edges.rows >> 3) + self.reach, (edges.columns >> 3) + self.reach
        squares = (ranks * self.height + rows) * self.width + columns
        bits = (edges.rows & 7) << 3 | (edges.columns & 7)
        chosen = (ranks >= 0) & (ranks < self.classes_at_once)
        return _Turn(chosen, squares.masked_select(chosen), bits.masked_select(chosen))

    def bitmap(self, turn: _Turn, classes: int) -> torch.Tensor:
        """All squares of the grids. The pixels of one differ, so that the sum of their bits is their union."""
        empty = turn.squares.new_zeros(classes * self.height * self.width)
        return empty.index_add_(0, turn.squares, torch.ones_like(turn.bits) << turn.bits)

    def hits(self, bitmap: torch.Tensor, turn: _Turn) -> torch.Tensor:
        """Bool per pixel of the turn: whether a bit is set in its disk. Only those without a hit go on to the next ring."""
        hit, seeking = None, None
        squares, bits = turn.squares, turn.bits
        for ring in disk_masks(self.radius):
            found = torch.zeros_like(squares, dtype=torch.bool)
            for down, right, masks in ring:
                there = bitmap.index_select(0, squares + (down * self.width + right))
                found |= there.bitwise_and_(masks.to(bits.device).index_select(0, bits)).bool()
            hit = found if hit is None else hit.scatter_(0, seeking, found)
            missed = _places(~found)
            seeking = missed if seeking is None else seeking.index_select(0, missed)
            squares, bits = squares.index_select(0, missed), bits.index_select(0, missed)
        return hit


@lru_cache(maxsize=16)
def disk_masks(radius: float) -> list[list[tuple[int, int, torch.Tensor]]]:
    """Rings of squares around one: how far each is, in squares, and `(64,)` int64: per pixel of the middle one as the centre
    of the disk, the bits of the pixels that lie in it."""
    reach, along = math.ceil(radius / SIDE), torch.arange(SIDE)
    rings: list[list[tuple[int, int, torch.Tensor]]] = [[] for _ in range(reach + 1)]
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            rise, run = (SIDE * step + along[None, :] - along[:, None] for step in (down, right))  # of a centre and a pixel
            inside = rise[:, None, :, None] ** 2 + run[None, :, None, :] ** 2 <= radius**2
            masks = (inside.reshape(SIDE**2, SIDE**2).long() << torch.arange(SIDE**2)).sum(dim=1)
            if masks.any():
                rings[max(abs(down), abs(right))].append((down, right, masks))
    return rings
