"""Sizes, resampling and padding of images as arrays `(channels, height, width)`: settings that published protocols differ in.

Two conventions meet in this field. CLIP's own preprocessing rounds the long side down and filters before it shrinks (PIL,
bicubic); mmsegmentation, on which the training-free methods are evaluated, rounds to the nearest pixel and reads four
pixels bilinearly without a filter, as OpenCV does.
"""

import numpy as np
from transformers.image_utils import SizeDict


def output_size(
    image_size: tuple[int, int], size: SizeDict, size_divisor: int | None, round_size: bool = False
) -> tuple[int, int]:
    """`(height, width)` after resizing: aspect kept, both sides at least one patch and rounded up to a multiple of it.

    Args:
        image_size: `(height, width)` of the image.
        size: `height` and `width`, or `shortest_edge` with an optional `longest_edge` that the long side may not pass.
        size_divisor: both sides become a multiple of it; None or 1 leaves them.
        round_size: round both sides to the nearest pixel, as mmsegmentation does; otherwise the long side is rounded down, as
            CLIP does.
    """
    height, width = image_size
    divisor = size_divisor or 1
    if size.height and size.width:
        target = (size.height, size.width)
    elif round_size:
        factor = size.shortest_edge / min(height, width)
        if size.longest_edge:
            factor = min(factor, size.longest_edge / max(height, width))
        target = (int(height * factor + 0.5), int(width * factor + 0.5))
    else:
        short, long = min(height, width), max(height, width)
        new_short, new_long = size.shortest_edge, int(size.shortest_edge * long / short)  # int() as CLIP does
        if size.longest_edge and new_long > size.longest_edge:
            new_short, new_long = int(size.longest_edge * short / long), size.longest_edge
        target = (new_short, new_long) if height <= width else (new_long, new_short)
    return max(1, -(-target[0] // divisor)) * divisor, max(1, -(-target[1] // divisor)) * divisor


def pad_to(image: np.ndarray, size: tuple[int, int], value: float) -> np.ndarray:
    """`(channels, h, w)` -> `(channels, height, width)`: `value` below and on the right."""
    height, width = (target - side for target, side in zip(size, image.shape[-2:], strict=True))
    return np.pad(image, ((0, 0), (0, height), (0, width)), constant_values=value) if height or width else image


def resize_unfiltered(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear interpolation of 8-bit pixels without a filter, in OpenCV's fixed-point arithmetic (`cv2.INTER_LINEAR`).

    Equal to OpenCV 5.0 when it shrinks; when it enlarges, fewer than 0.1 % of the values differ, by 1.

    Args:
        image: `(channels, h, w)` uint8.
        size: `(height, width)` of the result.
    """
    if image.dtype != np.uint8:
        raise ValueError(f"antialias=False resizes 8-bit pixels, got {image.dtype}; pass images with values 0 to 255.")
    pixels = image.astype(np.int64)
    low, high, low_weight, high_weight = _taps(size[1], image.shape[2])
    rows = (pixels[:, :, low] * low_weight + pixels[:, :, high] * high_weight) >> 4
    low, high, low_weight, high_weight = _taps(size[0], image.shape[1])
    columns = ((rows[:, low] * low_weight[:, None]) >> 16) + ((rows[:, high] * high_weight[:, None]) >> 16)
    return ((columns + 2) >> 2).clip(0, 255).astype(np.uint8)


def _taps(new: int, old: int) -> tuple[np.ndarray, ...]:
    """Both neighbours of every new pixel along one axis, and their weights in units of 1/2048."""
    positions = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    low = np.floor(positions).astype(np.int64)
    share = np.where((low < 0) | (low >= old - 1), np.float32(0), positions - low.astype(np.float32))
    low = low.clip(0, old - 1)
    weights = (np.rint(part * np.float32(2048)).astype(np.int64) for part in (np.float32(1) - share, share))
    return low, np.minimum(low + 1, old - 1), *weights
