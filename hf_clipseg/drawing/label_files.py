"""Label maps as files that other programs read: an index PNG whose palette has the classes' colours, and a JSON record."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..constants import IGNORE_INDEX
from .class_palette import class_colors, class_palette
from .overlay import class_areas


def index_picture(label_map: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """`(H, W)` class ids as a picture whose pixel values are these ids.

    Up to 255 classes: 8 bit, with the colours of the overlays as its palette, 255 (ignore) in black; more: 16 bit, grey.

    Raises:
        ValueError: an id is negative, or no class has it.
    """
    label_map, num_classes = np.asarray(label_map), len(class_names)
    known = label_map[label_map != IGNORE_INDEX] if num_classes <= IGNORE_INDEX else label_map
    if known.size and not 0 <= known.min() <= known.max() < num_classes:
        raise ValueError(
            f"the label map holds ids {known.min()}..{known.max()}, but there are {num_classes} classes, from 0 on"
        )
    if num_classes > IGNORE_INDEX:
        return Image.fromarray(label_map.astype(np.uint16))
    picture = Image.fromarray(label_map.astype(np.uint8))
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[:num_classes] = class_palette(class_names)
    picture.putpalette(colours.ravel().tolist())
    return picture


def label_record(label_map: np.ndarray, class_names: Sequence[Sequence[str]]) -> dict:
    """What a program wants to know beside the index picture: size, and every class with id, names, colour and share.

    Args:
        label_map: `(H, W)` class ids.
        class_names: synonyms of every class, its name first.
    """
    names = [synonyms[0] for synonyms in class_names]
    areas, colours = class_areas(label_map, names), class_colors(names)
    classes = [
        {"id": class_id, "name": synonyms[0], "synonyms": list(synonyms[1:]), "colour": colours[synonyms[0]]}
        | {"area": round(areas.get(synonyms[0], 0.0), 6)}
        for class_id, synonyms in enumerate(class_names)
    ]
    return {"height": int(label_map.shape[0]), "width": int(label_map.shape[1]), "classes": classes}
