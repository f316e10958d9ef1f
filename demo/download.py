"""Everything that a comparison found, as one ZIP that other programs read."""

import io
import json
import re
import zipfile

import numpy as np
from PIL import Image

from hf_clipseg.constants import IGNORE_INDEX
from hf_clipseg.drawing.class_palette import class_palette
from hf_clipseg.drawing.comparison import NONE_OF_THESE, Comparison, MethodResult
from hf_clipseg.drawing.label_files import index_picture, label_record

FAST = 3  # of zlib's 9 levels: two thirds of the default's time, for files up to a third larger

READ_ME = """What is in here, per method:

  labels.png    pixel values are class ids (classes.json names them); 255 is no class. 16 bit for more than 255 classes
  colours.png   the same in the colours of the page
  classes.json  size, and every class with id, names, colour and share of the picture

picture.png is the picture as the methods saw it, cut-outs/ hold the class that was asked for, transparent around it, and
numbers.json has seconds, areas and scores.
"""


def archive(comparison: Comparison, cut_out: str | None = None, files: dict[str, dict[str, bytes]] | None = None) -> bytes:
    """A ZIP of all results. Pictures in it are stored as they are: PNG is compressed already.

    Args:
        cut_out: a class of the comparison that is also wanted alone, on transparent ground.
        files: of every method by its name, where `method_files` has made them already.

    Raises:
        ValueError: nothing has been computed, or there is no such class.
    """
    if not comparison.results:
        raise ValueError("There is no result to download yet. Press Compare first.")
    if cut_out and cut_out not in comparison.class_names:
        raise ValueError(f"There is no class {cut_out[:60]!r} to cut out. Choose one of the legend.")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as target:
        target.writestr("README.txt", READ_ME)
        target.writestr("picture.png", png(comparison.picture))
        target.writestr("numbers.json", json.dumps(comparison.numbers(), indent=2, ensure_ascii=False))
        for result in comparison.results:
            folder = file_name(result.name)
            made = files[result.name] if files else method_files(comparison, result)
            for name, content in made.items():
                target.writestr(f"{folder}/{name}", content)
            if cut_out:
                picture = cut_out_picture(comparison, result.label_map, cut_out)
                target.writestr(f"cut-outs/{folder}.{file_name(cut_out)}.png", png(picture))
    return buffer.getvalue()


def method_files(comparison: Comparison, result: MethodResult) -> dict[str, bytes]:
    """File name -> content of one method's results."""
    labels, synonyms = labels_of(comparison, result.label_map)
    names = [names[0] for names in synonyms]
    index = index_picture(labels, names)
    colours = class_palette(names)[np.minimum(labels, len(names) - 1)]
    colours[labels >= len(names)] = 0
    record = {"checkpoint": result.name, "title": result.title, "seconds": round(result.seconds, 3)}
    record |= label_record(labels, synonyms)
    return {
        "labels.png": png(index),
        "colours.png": png(Image.fromarray(colours)),
        "classes.json": json.dumps(record, indent=2, ensure_ascii=False).encode(),
    }


def labels_of(comparison: Comparison, label_map: np.ndarray) -> tuple[np.ndarray, list[list[str]]]:
    """Ids `(H, W)` and classes for files. "None of these" becomes 255, unless there are so many classes that 255 is one."""
    names = comparison.class_names
    if NONE_OF_THESE not in names or len(names) > IGNORE_INDEX + 1:
        return label_map, comparison.synonyms
    none = names.index(NONE_OF_THESE)
    return np.where(label_map == none, IGNORE_INDEX, label_map), comparison.synonyms[:none]


def cut_out_picture(comparison: Comparison, label_map: np.ndarray, class_name: str) -> Image.Image:
    """The picture as RGBA, transparent where a method sees another class."""
    alpha = (label_map == comparison.class_names.index(class_name)).astype(np.uint8) * 255
    picture = comparison.picture.convert("RGBA")
    picture.putalpha(Image.fromarray(alpha))
    return picture


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=FAST)
    return buffer.getvalue()


def file_name(text: str) -> str:
    """Any text as a name that every file system takes."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.UNICODE).strip("-.")[:60] or "class"
