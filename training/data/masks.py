"""Reading segmentation masks as class ids, however they were stored.

Masks come as single-channel or palette images of ids, as colours of a map (Pascal VOC), or as three equal channels (some
Parquet copies). Which of these a file is, is found from its content and logged once.
"""

import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_clipseg.constants import IGNORE_INDEX

from .id_maps import REST, SAME

logger = logging.getLogger(__name__)

Colour = tuple[int, int, int]
VOC_BORDER = (224, 224, 192)
PACK = (65_536, 256, 1)  # (red, green, blue) @ PACK is one number


def voc_palette(num_classes: int = 21) -> list[tuple[int, int, int]]:
    """Colours of Pascal VOC: the bits of a class id, three at a time, fill each channel from the top."""
    palette: list[tuple[int, int, int]] = []
    for class_id in range(num_classes):
        colour = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                colour[channel] |= (class_id >> (3 * bit + channel) & 1) << (7 - bit)
        palette.append((colour[0], colour[1], colour[2]))
    return palette


class MaskReader:
    """Encoded mask -> (H, W) int64 class ids, `IGNORE_INDEX` where nothing is known.

    Args:
        num_classes: ids from this on are an error; None: not checked.
        colour_map: for masks stored as colours: the colour of each class (white and VOC's border are unlabelled), or
            colour -> stored id.
        reduce_labels: 0 means unlabelled: 0 -> 255, k -> k - 1.
        id_map: stored id -> class id (or 255), see `read_id_map`; a stored id that it does not list is an error, unless its
            "rest" says what becomes of those. Applied instead of `reduce_labels`.
        ignore_label: a stored id that also means unlabelled.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        colour_map: Sequence[Colour] | Mapping[Colour, int] | None = None,
        reduce_labels: bool = False,
        id_map: Mapping[Any, int | str] | None = None,
        ignore_label: int | None = None,
    ):
        if reduce_labels and id_map:
            raise ValueError("reduce_labels and id_map exclude each other: write the reduction into the map")
        if num_classes is not None and num_classes > IGNORE_INDEX:
            raise ValueError(
                f"there are {num_classes} classes, but at most {IGNORE_INDEX} can be told apart, since {IGNORE_INDEX} means "
                "unlabelled; leave some out with an id map"
            )
        self.num_classes, self.reduce_labels, self.ignore_label = num_classes, reduce_labels, ignore_label
        self.id_map = id_map
        self.ids_of_colours: dict[int, int] | None = None
        if colour_map is not None:
            self.use_colours(colour_map)
        self.kinds: set[str] = set()

    def use_colours(self, colour_map: Sequence[Colour] | Mapping[Colour, int]) -> None:
        """From now on, masks stored as colours are read by this map."""
        self.ids_of_colours = _packed(colour_map)

    def __call__(self, value: Any, key: str) -> np.ndarray:
        """`value` is bytes, a path, a PIL image, an array, or `{"bytes", "path"}`; `key` names it in errors.

        Raises:
            ValueError: it cannot be read, is a JPEG, or holds a label that no class has.
        """
        image = open_mask(value, key)
        if image.format == "JPEG":
            raise ValueError(f"mask {key!r} is a JPEG, whose compression changes labels at every edge; save masks as PNG")
        labels, kind = self.stored_ids(image, key)
        if kind not in self.kinds:
            self.kinds.add(kind)
            logger.info("masks are read as %s (first seen in %s)", kind, key)
        labels = self.relabel(labels, key)
        known = labels[labels != IGNORE_INDEX]
        if self.num_classes is not None and known.size and not 0 <= known.min() <= known.max() < self.num_classes:
            wrong = sorted(set(known[(known < 0) | (known >= self.num_classes)].tolist()))
            raise ValueError(
                f"mask {key!r} holds the labels {wrong[:5]}, but there are {self.num_classes} classes (0 to "
                f"{self.num_classes - 1}); name all classes, or use --ignore_label, --reduce_labels or --id_map"
            )
        return labels

    def stored_ids(self, image: Image.Image, key: str) -> tuple[np.ndarray, str]:
        """Ids as the file holds them, and in which form it does."""
        if image.mode == "P":
            return self.palette_ids(image)
        if image.mode in ("RGBA", "CMYK", "YCbCr", "HSV", "LAB"):
            image = image.convert("RGB")
        pixels = np.asarray(image)
        if pixels.dtype.kind == "f" and (pixels != np.floor(pixels)).any():
            raise ValueError(f"mask {key!r} holds numbers with fractions: it is no map of class ids")
        pixels = pixels.astype(np.int64)
        if pixels.ndim == 2:
            return pixels, "an image of ids"
        if pixels.shape[2] != 3:  # grey with transparency
            return pixels[..., 0], "an image of ids"
        if (ids := self.colour_ids(pixels)) is not None:
            return ids, "colours of the colour map"
        if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
            return pixels[..., 0], "three equal channels of ids"
        known = self.ids_of_colours or {}
        strange = next(colour for colour in np.unique(pixels @ PACK).tolist() if colour not in known)
        triple = (strange >> 16, strange >> 8 & 255, strange & 255)
        reason = "it is not in the colour map" if known else "there is no colour map"
        raise ValueError(
            f"mask {key!r} is a colour image with the colour {triple}, but {reason}; give a colour map (--colour_map, a file "
            "with a line per class: sky 128 128 128)"
        )

    def palette_ids(self, image: Image.Image) -> tuple[np.ndarray, str]:
        """The indices; where a colour map gives their palette's colours other ids, these: editors reorder palettes."""
        indices = np.asarray(image).astype(np.int64)
        palette = np.array(image.convert("P").getpalette("RGB"), dtype=np.int64).reshape(-1, 3)
        if self.ids_of_colours is not None and indices.max() < len(palette):
            ids = self.colour_ids(palette[indices])
            told = indices != IGNORE_INDEX
            if ids is not None and (ids[told] != indices[told]).any():
                return ids, "palette colours of the colour map"
        return indices, "a palette image of ids"

    def colour_ids(self, pixels: np.ndarray) -> np.ndarray | None:
        """`(H, W, 3)` colours -> `(H, W)` ids; None where a colour is not in the map."""
        if self.ids_of_colours is None:
            return None
        colours, positions = np.unique(pixels @ PACK, return_inverse=True)
        ids = [self.ids_of_colours.get(colour) for colour in colours.tolist()]
        return None if None in ids else np.array(ids)[positions].reshape(pixels.shape[:2])

    def relabel(self, labels: np.ndarray, key: str) -> np.ndarray:
        """Stored ids -> class ids."""
        if self.ignore_label is not None:
            labels = np.where(labels == self.ignore_label, IGNORE_INDEX, labels)
        if self.reduce_labels:
            return np.where((labels == 0) | (labels == IGNORE_INDEX), IGNORE_INDEX, labels - 1)
        if self.id_map is None:
            return labels
        values, positions = np.unique(labels, return_inverse=True)
        id_map = {IGNORE_INDEX: IGNORE_INDEX, **self.id_map}
        rest = id_map.get(REST)
        unlisted = [value for value in values.tolist() if value not in id_map]
        if unlisted and rest is None:
            raise ValueError(
                f"mask {key!r} holds the labels {unlisted[:5]}, which the id map does not list; map them, or say what becomes "
                "of all others: rest:255 ignores them, rest:same keeps them"
            )
        mapped = [id_map.get(value, value if rest == SAME else rest) for value in values.tolist()]
        return np.array(mapped)[positions].reshape(labels.shape)


def holds_voc_colours(values: Iterable[Any]) -> bool:
    """Whether masks are stored as colours, all of them of Pascal VOC's palette: then no other map needs to be given."""
    known = [*voc_palette(IGNORE_INDEX), VOC_BORDER]
    coloured = False
    for value in values:
        image = open_mask(value, "")
        if image.mode not in ("RGB", "RGBA"):
            return False
        pixels = np.asarray(image.convert("RGB")).astype(np.int64)
        if not np.isin(pixels @ PACK, np.array(known) @ PACK).all():
            return False
        coloured |= bool((pixels != pixels[..., :1]).any())
    return coloured


def is_coloured(image: Image.Image) -> bool:
    """Whether its channels differ somewhere."""
    if image.mode not in ("RGB", "RGBA"):
        return False
    pixels = np.asarray(image.convert("RGB"))
    return bool((pixels != pixels[..., :1]).any())


def colours_of(image: Image.Image) -> dict[Colour, int]:
    """Pixels of every colour."""
    colours, counts = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0, return_counts=True)
    return dict(zip(map(tuple, colours.tolist()), counts.tolist(), strict=True))


def _packed(colour_map: Sequence[Colour] | Mapping[Colour, int]) -> dict[int, int]:
    """Packed colour -> id; in a list of colours, white and VOC's border mean unlabelled unless they are classes."""
    if not isinstance(colour_map, Mapping):
        special = {colour: IGNORE_INDEX for colour in (VOC_BORDER, (255, 255, 255))}
        colour_map = special | {tuple(colour): class_id for class_id, colour in enumerate(colour_map)}
    return {(red << 16) + (green << 8) + blue: class_id for (red, green, blue), class_id in colour_map.items()}


def open_mask(value: Any, key: str) -> Image.Image:
    """A mask file as it is stored: no conversion, no rotation.

    Raises:
        ValueError: it is missing, or no image.
    """
    if isinstance(value, dict):
        value = value["bytes"] if value["bytes"] is not None else value["path"]
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, list):  # rows of an Array2D column
        value = np.array(value)
    if isinstance(value, np.ndarray):
        return Image.fromarray(value.astype(np.int32) if value.dtype.kind in "iu" and value.dtype.itemsize > 1 else value)
    if not isinstance(value, (bytes, str, Path)):
        raise ValueError(f"mask {key!r} is no image but {type(value).__name__}; choose another --mask_column")
    try:
        image = Image.open(io.BytesIO(value) if isinstance(value, bytes) else value)
        image.load()
        return image
    except (OSError, SyntaxError) as error:
        raise ValueError(f"mask {key!r} cannot be read ({error})") from error
