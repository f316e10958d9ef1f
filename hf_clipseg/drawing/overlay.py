"""Label maps as pictures: overlay, legend, class areas, contact sheet. Everything returns data or PIL images, never HTML.

Class names are untrusted text: here they only ever become pixels, shortened to one line.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ..constants import IGNORE_INDEX
from .class_palette import class_palette
from .fonts import font_for
from .palette import palette

INK = (24, 28, 36)
PAPER = (255, 255, 255)
MAX_NAME_LENGTH = 40
OUTLINE = 2  # pixels around the letters of a name
MIN_LABELLED_AREA = 0.01  # share of the image below which a region is too small to carry its name


def overlay(
    image: Image.Image | np.ndarray,
    mask: np.ndarray,
    class_names: Sequence[str] | None = None,
    opacity: float = 0.5,
    boundaries: bool = True,
    unpainted: Sequence[int] = (),
) -> Image.Image:
    """The image with every class in its colour.

    Args:
        image: RGB, the size of `mask`.
        mask: `(H, W)` class ids. 255 (ignore) stays unpainted, unless `class_names` has more than 255 names.
        class_names: where given, each larger region carries its name, and colours follow the names (`class_palette`).
        opacity: 0 shows the image, 1 the colours alone.
        boundaries: white lines between regions.
        unpainted: further ids that are left as they are, without a name.

    Raises:
        ValueError: the sizes differ, or an id has no name.
    """
    pixels, mask = np.asarray(_as_rgb(image)), np.asarray(mask)
    if mask.shape != pixels.shape[:2]:
        raise ValueError(f"image is {pixels.shape[:2]} and mask {mask.shape} (height, width); resize one of them first.")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is {opacity}; expected 0 (image) to 1 (colours).")
    ids = _present(mask, class_names, unpainted)
    colors = palette(max(ids, default=0) + 1) if class_names is None else class_palette(class_names)
    painted = np.isin(mask, ids)
    colored = pixels.copy()
    colored[painted] = colors[mask[painted]]
    result = Image.blend(Image.fromarray(pixels), Image.fromarray(colored), opacity)
    if boundaries:
        result.paste(PAPER, mask=Image.fromarray(_region_edges(mask)))
    if class_names is not None:
        _write_names(result, mask, ids, class_names)
    return result


def class_areas(mask: np.ndarray, class_names: Sequence[str], ignored: Sequence[int] = ()) -> dict[str, float]:
    """Share of the labelled pixels (0..1) of every class that occurs, largest first; 255 as in `overlay`, `ignored` alike."""
    mask = np.asarray(mask)
    counts = {class_names[i]: int((mask == i).sum()) for i in _present(mask, class_names, ignored)}
    total = sum(counts.values())
    return {name: count / total for name, count in sorted(counts.items(), key=lambda item: -item[1])}


def legend(mask: np.ndarray, class_names: Sequence[str], width: int = 240, max_rows: int = 24) -> Image.Image:
    """Colour, name and area of the classes of `mask`, largest first; the last row counts those that did not fit."""
    areas = class_areas(mask, class_names)
    colors = dict(zip(class_names, map(tuple, class_palette(class_names).tolist()), strict=True))
    rows = [(colors[name], name, f"{share:.1%}") for name, share in areas.items()]
    if len(rows) > max_rows:
        rows = [*rows[: max_rows - 1], (PAPER, f"{len(rows) - max_rows + 1} more", "")]
    line, size = 26, 15
    picture = Image.new("RGB", (width, line * max(1, len(rows)) + 8), PAPER)
    draw = ImageDraw.Draw(picture)
    for row, (color, name, share) in enumerate(rows):
        top = 4 + row * line
        draw.rounded_rectangle((8, top + 4, 28, top + line - 4), 4, fill=color)
        share_width = draw.textlength(share, font=font_for(share, size))
        draw.text((width - 8 - share_width, top + 4), share, fill=INK, font=font_for(share, size))
        font = font_for(name, size)
        draw.text((38, top + 4), _fit(draw, name, width - 54 - share_width, font), fill=INK, font=font)
    return picture


def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str] = (), columns: int = 4, cell_width: int = 240
) -> Image.Image:
    """Pictures in rows of `columns`, each scaled to `cell_width` pixels, with a caption above it where one is given.

    A side-by-side panel is a sheet with as many columns as pictures.
    """
    if not images or columns < 1 or (captions and len(captions) != len(images)):
        raise ValueError(
            f"got {len(images)} images, {len(captions)} captions and {columns} columns; "
            "expected at least one image and column, and a caption for each image or for none."
        )
    columns, gap = min(columns, len(images)), 8
    cells = [_scaled(_as_rgb(image), cell_width) for image in images]
    header = 24 if captions else 0
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    heights = [header + max(cell.height for cell in row) + gap for row in rows]
    sheet = Image.new("RGB", (columns * (cell_width + gap) + gap, sum(heights) + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        left, top = gap + column * (cell_width + gap), gap + sum(heights[:row])
        if captions:
            font = font_for(captions[index], 15)
            draw.text((left, top + 2), _fit(draw, captions[index], cell_width, font), fill=INK, font=font)
        sheet.paste(cell, (left, top + header))
    return sheet


def _as_rgb(image) -> Image.Image:
    return (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")


def _scaled(image: Image.Image, width: int) -> Image.Image:
    return image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)


def _present(mask: np.ndarray, class_names: Sequence[str] | None, ignored: Sequence[int] = ()) -> list[int]:
    """Class ids of the mask, without the ignored ones."""
    ids = [class_id for class_id in np.unique(mask).tolist() if class_id not in ignored]
    if class_names is None or len(class_names) <= IGNORE_INDEX:
        ids = [class_id for class_id in ids if class_id != IGNORE_INDEX]
    if ids and (ids[0] < 0 or (class_names is not None and ids[-1] >= len(class_names))):
        names = "any number of" if class_names is None else len(class_names)
        raise ValueError(f"the mask holds ids {ids[0]}..{ids[-1]}, but there are {names} class names, from 0 on.")
    return ids


def _region_edges(mask: np.ndarray) -> np.ndarray:
    """`(H, W)` bool: pixels left of or above a change of class, thickened on large images so that lines stay visible."""
    edges = np.zeros(mask.shape, dtype=bool)
    thickness = max(1, round(min(mask.shape) / 400))
    changes_down, changes_right = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    for shift in range(thickness):
        rows, columns = max(0, len(changes_down) - shift), max(0, changes_right.shape[1] - shift)
        edges[shift : shift + rows] |= changes_down[:rows]
        edges[:, shift : shift + columns] |= changes_right[:, :columns]
    return edges


def _write_names(picture: Image.Image, mask: np.ndarray, ids: list[int], class_names: Sequence[str]) -> None:
    """Writes each name where its class is widest, whole and within the picture, in white with a dark outline."""
    draw = ImageDraw.Draw(picture)
    size = max(11, min(picture.size) // 24)
    step = max(1, max(mask.shape) // 128)  # a coarse copy finds the place just as well
    coarse = mask[::step, ::step]
    for class_id in ids:
        region = coarse == class_id
        if region.mean() >= MIN_LABELLED_AREA:
            row, column = _innermost(region)
            font = font_for(class_names[class_id], size)
            text = _fit(draw, class_names[class_id], picture.width - 2 * OUTLINE, font)
            place = _within(draw, (column * step, row * step), text, font, picture.size)
            draw.text(place, text, fill=PAPER, font=font, anchor="mm", stroke_width=OUTLINE, stroke_fill=INK)


def _within(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, font, size: tuple[int, int]) -> tuple[float, float]:
    """`(x, y)` moved so far that the text, centred there, is not cut off at the picture's edge where it fits at all."""
    left, top, right, bottom = draw.textbbox(place, text, font=font, anchor="mm", stroke_width=OUTLINE)
    x = place[0] + max(0, -left) - max(0, right - size[0])
    y = place[1] + max(0, -top) - max(0, bottom - size[1])
    return x, y


def _innermost(region: np.ndarray) -> tuple[int, int]:
    """`(row, column)` amid the pixels of the `(H, W)` bool region that survive the most erosions."""
    while True:
        framed = np.pad(region, 1)
        eroded = region & framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
        if not eroded.any():
            places = np.argwhere(region)
            return tuple(places[((places - places.mean(0)) ** 2).sum(1).argmin()].tolist())
        region = eroded


def _fit(draw: ImageDraw.ImageDraw, text: str, width: float, font) -> str:
    """`text` on one line, cut with an ellipsis where it is wider than `width` pixels."""
    text = " ".join(text.split())
    shortened = text[:MAX_NAME_LENGTH]
    while shortened and draw.textlength(shortened + ("…" if shortened != text else ""), font=font) > width:
        shortened = shortened[:-1]
    return shortened if shortened == text else shortened + "…"
