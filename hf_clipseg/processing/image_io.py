"""Reading images that people really have: any mode, any orientation tag, broken files."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 200_000_000
"""Larger images are refused: decoding them would need gigabytes. 12,000 x 12,000 pixels pass."""

ImageSource = str | os.PathLike | bytes | Image.Image | np.ndarray


def load_image(source: ImageSource, longest_side: int | None = None) -> Image.Image:
    """Any image as upright 8-bit RGB.

    Orientation tags are applied, transparency is laid over white, CMYK, palette, grey and 16-bit images are converted.

    Args:
        source: a path, the bytes of a file, a PIL image, or an array `(height, width[, 3 or 4])`.
        longest_side: larger images are shrunk to it, before anything else so that a huge JPEG is never decoded in full.

    Raises:
        ValueError: the file is missing, empty, corrupt or too large.
    """
    image = _open(source)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"The image has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read. Resize it first."
        )
    try:
        if longest_side is not None and max(image.size) > longest_side:
            image = _shrink(image.copy() if image is source else image, longest_side)
        image = ImageOps.exif_transpose(image)
        return _to_rgb(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"The image is damaged and cannot be decoded ({error}). Save it again, or leave it out.") from error


def batches_of_one_size(images: Sequence[Image.Image], batch_size: int) -> list[list[int]]:
    """Indices of `images` in batches of equal size, sizes in the order of their first image."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, image in enumerate(images):
        by_size.setdefault(image.size, []).append(index)
    return [group[i : i + batch_size] for group in by_size.values() for i in range(0, len(group), batch_size)]


def _open(source: ImageSource) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return Image.fromarray(source)
    if isinstance(source, bytes):
        name, stream = "the given bytes", io.BytesIO(source)
    else:
        name, stream = str(source), Path(source)
        if not stream.is_file():
            raise ValueError(f"There is no image file {name}.")
    try:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # our own limit applies, with a clearer message
        return Image.open(stream)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{name} is no image that can be read: it is empty, damaged or of an unknown format.") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


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
