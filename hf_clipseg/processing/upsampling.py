"""From logits on a token grid to a label per pixel, without ever holding all classes at full resolution.

Most classes win nowhere, and that can be seen on the grid: a pixel mixes the four cells around it with the same weights for
every class, so a class that is below one and the same other class in all four cells is below it in every pixel between them.
Classes that lose in every 2 x 2 quad are never up-sampled, and the others one at a time, while the running maximum stays in the
cache.
"""

import torch
from torch import nn

WHOLE = (1.0, 1.0)
"""Extent of a grid without padding."""

MAX_ELEMENTS = 2**25
"""Largest float tensor that `upsample_argmax` builds at once (128 MB in fp32), unless a single class is larger."""

FEW_ELEMENTS = 2**21
"""So many scores are made at once on a CPU (8 MB, near its cache), where images are too small to go class by class."""

ONE_BY_ONE_PIXELS = 2**16
"""Pixels from which on the classes are made one at a time on a CPU: the calls then cost nothing beside the work."""

DROP_FROM_RATIO = 8
"""Pixels per grid cell from which on looking for classes that cannot win costs less than it saves."""

MOST_WINNERS = 0.3
"""Share of the classes that win a cell of the grid from which on too few can be dropped to pay for the search."""

ROWS_AT_ONCE = 64
"""Rows of the result that are renumbered at once."""

ROUNDING = 2.0**-20
"""Relative slack of that comparison: above the rounding error of an interpolation in fp32 (4 operations of 2^-24 each)."""


@torch.no_grad()
def upsample_argmax(logits: torch.Tensor, size: tuple[int, int], extent: tuple[float, float] = WHOLE) -> torch.Tensor:
    """Bilinear up-sampling followed by argmax over classes, without up-sampling the classes that cannot win.

    Args:
        logits: `(classes, h, w)`; they may carry gradients, which end here.
        size: `(height, width)` of the result.
        extent: see `upsample`.

    Returns:
        `(height, width)` int64; the first class wins a tie, NaN over any number. Identical to up-sampling all classes, but for
        pixels where two scores differ in the last bit only: torch rounds them by how many classes it is given at once.
    """
    logits, size = logits.float(), (size[0], size[1])
    pixels = size[0] * size[1]
    if len(logits) * pixels < FEW_ELEMENTS or not logits.sum().isfinite():
        return _in_chunks(logits, size, extent, MAX_ELEMENTS)
    if pixels < DROP_FROM_RATIO * logits[0].numel() or winners_of_cells(logits) > MOST_WINNERS * len(logits):
        return _by_device(logits, size, extent)
    kept = may_win(logits).nonzero().flatten()
    if len(kept) == len(logits):
        return _by_device(logits, size, extent)
    labels = _by_device(logits[kept], size, extent)
    for rows in labels.split(ROWS_AT_ONCE):  # in place: a second map of labels would be the most that is held
        rows.copy_(kept.index_select(0, rows.flatten()).view_as(rows))
    return labels


def winners_of_cells(logits: torch.Tensor) -> int:
    """How many classes are the best of some cell: so many at least will be kept, and counting them is one pass."""
    return int(torch.bincount(logits.argmax(dim=0).flatten(), minlength=len(logits)).count_nonzero())


def may_win(logits: torch.Tensor) -> torch.Tensor:
    """`(classes,)` bool: False for classes that are nowhere the maximum of bilinearly up-sampled `logits (classes, h, w)`.

    In every quad a class has five rivals: the winners of the four corners, and the class whose lowest corner is the highest.
    Only finite logits can be compared.
    """
    places = [(rows, columns) for rows in _pair(logits.shape[1]) for columns in _pair(logits.shape[2])]
    slack = ROUNDING * logits.abs()
    high, low = logits + slack, logits - slack
    lowest = torch.stack([logits[:, rows, columns] for rows, columns in places]).amin(dim=0)
    winner = logits.argmax(dim=0, keepdim=True)
    rivals = [lowest.argmax(dim=0, keepdim=True), *(winner[:, rows, columns] for rows, columns in places)]
    possible = torch.ones_like(lowest, dtype=torch.bool)
    for rival in rivals:
        above = torch.zeros_like(possible)
        for rows, columns in places:
            above |= high[:, rows, columns] >= low[:, rows, columns].gather(0, rival)
        possible &= above
    return possible.flatten(1).any(dim=1)


def upsample(
    logits: torch.Tensor, size: tuple[int, int], extent: tuple[float, float] = WHOLE, out: torch.Tensor | None = None
) -> torch.Tensor:
    """`(classes, h, w)` -> `(classes, height, width)`, bilinear, in fp32.

    Args:
        logits: a grid that covers the padded image.
        size: `(height, width)` of the result.
        extent: the share of height and width of the grid, from its top left corner, that the result shows.
        out: float32 of the result's shape, to be written into; new memory where left out.
    """
    logits, size = logits[None].float(), (size[0], size[1])
    if tuple(extent) == WHOLE and out is None:
        return nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0]
    # `interpolate` takes a size or a scale; the operator below takes both, so that the grid is read up to a part of a cell.
    scales: list = [None, None]
    if tuple(extent) != WHOLE:
        scales = [side / (cells * share) for side, cells, share in zip(size, logits.shape[-2:], extent, strict=True)]
    if out is None:
        return torch.ops.aten.upsample_bilinear2d(logits, list(size), False, *scales)[0]
    return torch.ops.aten.upsample_bilinear2d.out(logits, list(size), False, *scales, out=out[None])[0]


def _pair(length: int) -> tuple[slice, slice]:
    """The first and the second of every two neighbours along an axis; the only cell is its own neighbour."""
    return (slice(0, length - 1), slice(1, length)) if length > 1 else (slice(0, 1), slice(0, 1))


def _by_device(logits: torch.Tensor, size: tuple[int, int], extent: tuple[float, float]) -> torch.Tensor:
    """An accelerator wants few calls, a CPU wants what it compares to stay in its cache."""
    if logits.device.type != "cpu":
        return _in_chunks(logits, size, extent, MAX_ELEMENTS)
    if size[0] * size[1] < ONE_BY_ONE_PIXELS:
        return _in_chunks(logits, size, extent, FEW_ELEMENTS)
    return _one_by_one(logits, size, extent)


def _one_by_one(logits: torch.Tensor, size: tuple[int, int], extent: tuple[float, float]) -> torch.Tensor:
    """The running winner as a byte that only ever grows, in rounds of 255 classes: comparing, multiplying and taking the
    maximum of bytes are vectorised, `where` and `masked_fill` are not. Two maps of scores are held, and written anew."""
    if len(logits) == 1:
        return torch.zeros(size, dtype=torch.int64)
    best, score = (torch.empty(1, *size) for _ in range(2))
    better = torch.empty_like(best, dtype=torch.bool)
    upsample(logits[:1], size, extent, best)
    labels = None
    for first in range(0, len(logits) - 1, 255):
        ranks = torch.zeros_like(best, dtype=torch.uint8)
        for rank, class_logits in enumerate(logits[first + 1 : first + 256].split(1), start=1):
            upsample(class_logits, size, extent, score)
            torch.gt(score, best, out=better)
            torch.maximum(ranks, better.view(torch.uint8).mul_(rank), out=ranks)
            torch.maximum(best, score, out=best)
        if first + 256 >= len(logits):
            del best, score, better  # the labels are wider than any of them
        winners = ranks.to(torch.int64)[0].add_(first)
        labels = winners if labels is None else torch.where(ranks[0] > 0, winners, labels)
    return labels


def _in_chunks(logits: torch.Tensor, size: tuple[int, int], extent: tuple[float, float], max_elements: int) -> torch.Tensor:
    """As many classes at once as fit."""
    best_score, best_class = None, None
    chunk_size = max(1, max_elements // (size[0] * size[1]))
    if len(logits) <= chunk_size:
        return upsample(logits, size, extent).argmax(dim=0)
    for first in range(0, len(logits), chunk_size):
        score, label = upsample(logits[first : first + chunk_size], size, extent).max(dim=0)
        if best_score is None:
            best_score, best_class = score, label
            continue
        better = (score > best_score) | (score.isnan() & ~best_score.isnan())
        best_score = torch.maximum(best_score, score)
        best_class = torch.where(better, label + first, best_class)
    return best_class
