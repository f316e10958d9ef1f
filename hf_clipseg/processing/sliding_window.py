"""Inference over windows, scales and mirror images, for any function that maps pixels to logits.

`predict` is any callable `(N, 3, h, w) pixel values -> (N, C, h', w') logits` on a grid of its own, coarser or finer
than the pixels. Windows follow the protocol of SCLIP (arXiv 2312.01597) and its successors: logits are up-sampled per
window, summed on one canvas and divided by the number of windows that saw each cell. The canvas has one cell per
`output_stride` pixels, so memory is that of the canvas and one batch of windows, never of all windows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

Predict = Callable[[torch.Tensor], torch.Tensor]
HALVES = (torch.float16, torch.bfloat16)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First positions of the windows along one axis; the last is shifted back so that it ends at `length`.

    Returns `[0]` where `length <= window`: one window that holds everything.
    """
    if length <= window:
        return [0]
    return [*range(0, length - window, stride), length - window]


@torch.no_grad()
def sliding_window_logits(
    predict: Predict,
    pixel_values: torch.Tensor,
    window: int | tuple[int, int],
    stride: int | tuple[int, int],
    batch_size: int = 8,
    output_stride: int = 4,
) -> torch.Tensor:
    """Averages the logits of overlapping windows.

    Args:
        predict: see the module docstring.
        pixel_values: `(B, 3, H, W)`. Sides that are no multiple of `output_stride` are resized up to one.
        window, stride: pixels, one number or (height, width); multiples of `output_stride`, stride <= window.
            Along an axis that is shorter than the window, the window is that axis.
        batch_size: windows per call of `predict`; windows of different images share a batch.
        output_stride: pixels per cell of the result, along both axes. 1 is full resolution.

    Returns:
        `(B, C, H / output_stride, W / output_stride)` float32 logits (sides rounded up).
    """
    window, stride = _as_pair(window, "window"), _as_pair(stride, "stride")
    _check_windows(window, stride, batch_size, output_stride)
    pixel_values = _resize_to_multiple(pixel_values, output_stride)
    batch, _, height, width = pixel_values.shape
    window = min(window[0], height), min(window[1], width)
    places = [
        (image, top, left)
        for image in range(batch)
        for top in window_starts(height, window[0], stride[0])
        for left in window_starts(width, window[1], stride[1])
    ]
    cells = window[0] // output_stride, window[1] // output_stride
    canvas: Any = None
    for first in range(0, len(places), batch_size):
        group = places[first : first + batch_size]
        crops = [pixel_values[i, :, top : top + window[0], left : left + window[1]] for i, top, left in group]
        logits = _resize(predict(torch.stack(crops)).float(), cells)
        if canvas is None:
            canvas = logits.new_zeros(batch, logits.shape[1], height // output_stride, width // output_stride)
            count = logits.new_zeros(batch, 1, *canvas.shape[2:])
        for (image, top, left), crop_logits in zip(group, logits, strict=True):
            rows = slice(top // output_stride, top // output_stride + cells[0])
            columns = slice(left // output_stride, left // output_stride + cells[1])
            canvas[image, :, rows, columns] += crop_logits
            count[image, :, rows, columns] += 1
    return canvas.div_(count)


@torch.no_grad()
def multi_scale_logits(
    predict: Predict, pixel_values: torch.Tensor, scales: Sequence[float] = (1.0,), flip: bool = False
) -> torch.Tensor:
    """Averages the logits at several image scales and, with `flip`, of the mirror images.

    Returns:
        `(B, C, h', w')` on the grid that `predict` gives at the largest scale; the coarser grids are up-sampled to it.
        float32; one scale of 1.0 without `flip` is `predict(pixel_values)`.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales is {tuple(scales)}; give at least one factor, all above 0, for example (1.0, 1.5).")
    total: Any = None
    for scale in sorted(scales, reverse=True):  # the largest first: it sets the grid of the sum
        height, width = (max(1, round(side * scale)) for side in pixel_values.shape[-2:])
        resized = _resize(pixel_values, (height, width))
        for mirrored in (False, True) if flip else (False,):
            logits = predict(resized.flip(-1)).flip(-1).float() if mirrored else predict(resized).float()
            total = logits if total is None else total + _resize(logits, total.shape[-2:])
    views = len(scales) * (2 if flip else 1)
    return total if views == 1 else total / views


def _as_pair(value, name: str) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"{name} is {value!r}; expected a positive number of pixels or a (height, width) pair.")
    return pair


def _check_windows(window, stride, batch_size: int, output_stride: int) -> None:
    if batch_size < 1 or output_stride < 1:
        raise ValueError(f"batch_size is {batch_size} and output_stride {output_stride}; both must be at least 1.")
    for side, step in zip(window, stride, strict=True):
        if step > side:
            raise ValueError(f"stride {step} is larger than window {side}; pixels between the windows would be lost.")
        if side % output_stride or step % output_stride:
            raise ValueError(
                f"window {side} and stride {step} must be multiples of the output stride {output_stride}; "
                f"try window {_round_up(side, output_stride)} and stride {_round_up(step, output_stride)}."
            )


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _resize_to_multiple(pixel_values: torch.Tensor, multiple: int) -> torch.Tensor:
    return _resize(pixel_values, (_round_up(pixel_values.shape[-2], multiple), _round_up(pixel_values.shape[-1], multiple)))


def _resize(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear; smoothed when it shrinks, so that small scales do not alias. The very tensor where nothing changes."""
    if tuple(values.shape[-2:]) == tuple(size):
        return values
    shrinks = size[0] < values.shape[-2] or size[1] < values.shape[-1]
    precise = values.float() if shrinks and values.dtype in HALVES else values  # torch has no smoothing for them on a CPU
    resized = F.interpolate(precise, size=tuple(size), mode="bilinear", align_corners=False, antialias=shrinks)
    return resized.to(values.dtype)
