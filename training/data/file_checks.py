"""Reads every image and mask of a data set, in parallel: what its files hold, and what is wrong with each of them."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from hf_clipseg.constants import IGNORE_INDEX

from .masks import MaskReader, colours_of, is_coloured, open_mask
from .source_types import ToyscapesSource, read_image

logger = logging.getLogger(__name__)

NO_CLASS = -1


@dataclass
class FileCheck:
    """One image with its mask.

    Args:
        problems: kind of finding -> detail.
        pixels: of every stored label.
        becomes: stored label -> class id.
        palette: of an indexed mask, the colours of its labels.
        colours: pixels of every colour, of a mask stored as colours where no map tells their classes.
        content: digest of the image's pixels.
    """

    key: str
    problems: dict[str, str] = field(default_factory=dict)
    pixels: Counter = field(default_factory=Counter)
    becomes: dict[int, int] = field(default_factory=dict)
    palette: dict[int, tuple] = field(default_factory=dict)
    colours: Counter = field(default_factory=Counter)
    content: str = ""


@dataclass
class Finding:
    """Something to know before training: `fatal` where training would stop or learn something wrong.

    Args:
        options: flags that would answer it.
    """

    text: str
    fatal: bool = True
    options: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text if self.fatal else f"(note) {self.text}"


def check_file(source, index: int) -> FileCheck:
    """Reads one image and its mask, and collects what is wrong with them."""
    if isinstance(source, ToyscapesSource):
        sample = source[index]
        labels, counts = np.unique(sample["mask"], return_counts=True)
        pixels = dict(zip(labels.tolist(), counts.tolist(), strict=True))
        return FileCheck(sample["key"], {}, Counter(pixels), dict(zip(pixels, pixels, strict=True)))
    key, stored_image, stored_mask = source.stored(index)
    check = FileCheck(key)
    size = check_image(check, stored_image)
    labels = check_mask(check, source.read_mask, stored_mask)
    if size is not None and labels is not None and labels.shape != size:
        check.problems["mask of another size than its image"] = f"image {size}, mask {labels.shape} (height, width)"
    return check


def check_image(check: FileCheck, stored: Any) -> tuple[int, int] | None:
    """(height, width), and the digest of the pixels in `check`; None where the image cannot be read."""
    try:
        image = read_image(stored, check.key)
    except ValueError as error:
        check.problems["broken image"] = str(error)
        return None
    check.content = hashlib.sha256(image.tobytes()).hexdigest()
    return image.height, image.width


def check_mask(check: FileCheck, read_mask: MaskReader, stored: Any) -> np.ndarray | None:
    """The stored labels, counted in `check`; None where the mask cannot be read."""
    try:
        mask = open_mask(stored, check.key)
        if mask.format == "JPEG":
            check.problems["JPEG mask"] = "compression changes labels at every edge; save masks as PNG"
            return None
        if read_mask.ids_of_colours is None and is_coloured(mask):
            check.colours.update(colours_of(mask))
            check.problems["mask stored as colours"] = "no colour map says which colour is which class"
            return None
        labels, _ = read_mask.stored_ids(mask, check.key)
    except (ValueError, OSError) as error:
        check.problems["mask that cannot be read"] = str(error)
        return None
    values, counts = np.unique(labels, return_counts=True)
    check.pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    check.becomes = {value: class_of(read_mask, value) for value in check.pixels}
    if mask.mode == "P":
        colours = np.array(mask.getpalette("RGB")).reshape(-1, 3).tolist()
        check.palette = {value: tuple(colours[value]) for value in check.pixels if value < len(colours)}
    return labels


def class_of(read_mask: MaskReader, stored: int) -> int:
    """What a stored label becomes; `NO_CLASS` where the id map does not list it."""
    try:
        return int(read_mask.relabel(np.array([stored]), "")[0])
    except ValueError:
        return NO_CLASS


def check_files(source) -> list[FileCheck]:
    """All files of a split, read by as many threads as there are processors: decoding does not hold Python's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        checks = threads.map(lambda index: check_file(source, index), range(len(source)))
        return list(tqdm(checks, total=len(source), desc="reading images and masks", unit="image", leave=False))


def check_some_masks(source, count: int = 8) -> None:
    """Reads a spread of images and masks, so that a run that cannot learn ends before its first step.

    Raises:
        ValueError: what reading them raises: a label that no class has, a mask of another size, a broken file.
    """
    if isinstance(source, ToyscapesSource):
        return
    seen = FileCheck("")
    for row in sorted({round(row) for row in np.linspace(0, len(source) - 1, count)}):
        _ = source[row]
        check_mask(seen, source.read_mask, source.stored(row)[2])
    if looks_binary(seen.pixels, seen.becomes):
        logger.warning(
            "masks hold 0 and 255 only, and 255 means unlabelled: nothing but class 0 is learnt; with --id_map 0:0,255:1 it is "
            "class 1"
        )


def looks_binary(pixels: Counter, becomes: Mapping[int, int]) -> bool:
    """Whether the masks are black and white, and white would be ignored."""
    return set(pixels) == {0, IGNORE_INDEX} and becomes[IGNORE_INDEX] == IGNORE_INDEX


def label_table(source, checks: Sequence[FileCheck]) -> list[str]:
    """One line per label: what the files hold, what it becomes, its share of the pixels, and the class name."""
    pixels, becomes = totals(checks)
    total = max(1, sum(pixels.values()))
    lines = [f"{len(source)} images, {len(source.class_names) if source.class_names else 'unknown'} classes"]
    for stored in sorted(pixels):
        label = becomes[stored]
        becoming = "-" if label == NO_CLASS else label
        lines.append(f"{stored:>6} -> {becoming:>4}  {pixels[stored] / total:7.2%}  {label_name(source.class_names, label)}")
    ignored = sum(count for stored, count in pixels.items() if becomes[stored] == IGNORE_INDEX)
    return [*lines, f"ignored: {ignored / total:.2%}"]


def totals(checks: Sequence[FileCheck]) -> tuple[Counter, dict[int, int]]:
    """Pixels of every stored label, and the label it becomes; labels that no class has are counted too."""
    pixels: Counter = Counter()
    becomes: dict[int, int] = {}
    for check in checks:
        pixels.update(check.pixels)
        becomes.update(check.becomes)
    return pixels, becomes


def label_name(class_names: Sequence[str] | None, label: int) -> str:
    if label == IGNORE_INDEX:
        return "(ignored)"
    if class_names is None:
        return ""
    return class_names[label] if 0 <= label < len(class_names) else "OUT OF RANGE"


def twin_finding(checks: Mapping[str, Sequence[Any]]) -> Finding | None:
    """The same photograph in two splits. Checks are of masks or of texts; both have `content` and `key`."""
    places: dict[str, tuple[str, str]] = {}
    twins = []
    for split, of_split in checks.items():
        for check in of_split:
            other, key = places.setdefault(check.content, (split, check.key))
            if check.content and other != split:
                twins.append(f"{split} {check.key} = {other} {key}")
    if not twins:
        return None
    return Finding(f"{len(twins)} images are in two splits, such as {twins[:3]}: scores on them would be too good", fatal=False)
