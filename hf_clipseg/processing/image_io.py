"""Reading images that people really have: any mode, any orientation tag, broken files."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 150_000_000
"""Larger images are refused: decoding them would need gigabytes. 12,000 x 12,000 pixels pass."""

TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # the latter where warnings are errors

ImageSource = str | os.PathLike | bytes | Image.Image | np.ndarray


def load_image(
    source: ImageSource, longest_side: int | None = None, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> Image.Image:
    """Any image as upright 8-bit RGB.

    Orientation tags are applied, transparency is laid over white, CMYK, palette, grey and 16-bit images are converted.

    Args:
        source: a path, the bytes of a file, a PIL image, or an array `(height, width[, 3 or 4])`.
        longest_side: larger images are shrunk to it, before anything else so that a huge JPEG is never decoded in full.
        max_pixels: that are decoded; checked before decoding.
        name: what errors call the image, in place of its path.

    Raises:
        ValueError: the file is missing, empty, corrupt or too large.
    """
    name = name or ("The image" if not isinstance(source, (str, os.PathLike)) else str(source))
    image = _open(source, name)
    check_size(image.size, MAX_PIXELS, name)
    if longest_side is not None and image is not source:
        image.draft(None, (2 * longest_side, 2 * longest_side))  # a JPEG is decoded at a fraction of its size
    check_size(image.size, max_pixels, name)
    try:
        if longest_side is not None and max(image.size) > longest_side:
            image = _shrink(image.copy() if image is source else image, longest_side)
        image = ImageOps.exif_transpose(image)
        return _to_rgb(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} is damaged and cannot be decoded ({error}). Save it again, or leave it out.") from error


def check_size(size: tuple[int, int], max_pixels: int, name: str) -> None:
    """Raises ValueError for `(width, height)` with more than `max_pixels`."""
    width, height = size
    if width * height > max_pixels:
        raise ValueError(f"{name} has {width} x {height} pixels; at most {max_pixels:,} are read. Resize it first.")


def batches_of_one_size(images: Sequence[Image.Image], batch_size: int) -> list[list[int]]:
    """Indices of `images` in batches of equal size, sizes in the order of their first image."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, image in enumerate(images):
        by_size.setdefault(image.size, []).append(index)
    return [group[i : i + batch_size] for group in by_size.values() for i in range(0, len(group), batch_size)]


def _open(source: ImageSource, name: str) -> Image.Image:
    """The image, not decoded yet. Pillow's own limit, which is process-wide, stays as it is; EPS would run a program."""
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return Image.fromarray(source)
    stream = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
    if isinstance(stream, Path) and not stream.is_file():
        raise ValueError(f"There is no image file {name}.")
    try:
        image = Image.open(stream)
    except TOO_LARGE as error:
        raise ValueError(f"{name} has too many pixels; at most {MAX_PIXELS:,} are read. Resize it first.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} is no image that can be read: it is empty, damaged or of an unknown format.") from error
    if image.format == "EPS":
        raise ValueError(f"{name} is a PostScript program, not an image. Save it as PNG or JPEG.")
    return image


def _shrink(image: Image.Image, longest_side: int) -> Image.Image:
    if image.mode in ("1", "P", "PA"):  # PIL can only drop pixels of these
        image = _to_rgb(image)
    image.thumbnail((longest_side, longest_side))
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16-bit, 32-bit and float grey: PIL would clip them at 255
        return _stretch_deep_grey(image)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def _stretch_deep_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        low, high = values.min(), values.max()
        values = (values - low) / max(high - low, 1e-12)
    else:
        values = values / (65535.0 if values.max() > 255 else 255.0)
    grey = (values.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
