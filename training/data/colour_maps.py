"""Files that say which colour is which class, for masks stored as colours.

Text has one class per line, its name or id before or after the three numbers: `sky 128 128 128`, CamVid's `128 128 128 Sky`,
`class_dict.csv` (`name,r,g,b`), CVAT's `labelmap.txt` (`sky:128,128,128::`). JSON is `{"sky": [128, 128, 128],
"3": "#c0c0c0"}` or a list of `{"name" or "id", "color"}`.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_clipseg.constants import IGNORE_INDEX

logger = logging.getLogger(__name__)

Colour = tuple[int, int, int]
COLOUR_FILES = (
    "colour_map.txt", "color_map.txt", "colour_map.json", "color_map.json", "class_dict.csv", "label_colors.txt",
    "labelmap.txt",
)  # fmt: skip
UNLABELLED = ("unlabeled", "unlabelled", "void", "ignore", "ignored", "none", "255")
NUMBERS = r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})"
NAME_FIRST = re.compile(rf"(.*\S)\s*[\s,;:=]\s*[\[(]?{NUMBERS}[\])]?[\s,;:]*")
NAME_LAST = re.compile(rf"[\[(]?{NUMBERS}[\])]?\s*[\s,;:=]\s*(.*\S)")
HEXADECIMAL = re.compile(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")


def colour_map_in_folder(folder: Path) -> Path | None:
    return next((folder / name for name in COLOUR_FILES if (folder / name).is_file()), None)


def read_colour_map(path: str | Path) -> dict[Colour, str]:
    """Colour -> the name or id that the file gives it, in the file's order.

    Raises:
        ValueError: no such file, a line that is no colour, a number over 255, or a colour that stands there twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no colour map {path}.")
    text = path.read_text(encoding="utf-8-sig")
    entries = json_colours(path, text) if path.suffix == ".json" else line_colours(path, text)
    colours: dict[Colour, str] = {}
    for place, label, colour in entries:
        if max(colour) > 255:
            raise ValueError(f"{path}, {place}: {colour} is no colour; each number is 0 to 255")
        if colours.get(colour, label) != label:
            raise ValueError(f"{path}, {place}: the colour {colour} of {label!r} is that of {colours[colour]!r} already")
        colours[colour] = label
    if not colours:
        raise ValueError(f"{path} names no colour; write one class per line: sky 128 128 128")
    return colours


def line_colours(path: Path, text: str) -> list[tuple[str, str, Colour]]:
    entries: list[tuple[str, str, Colour]] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if match := NAME_FIRST.fullmatch(line):
            label, red, green, blue = match.groups()
        elif match := NAME_LAST.fullmatch(line):
            red, green, blue, label = match.groups()
        elif not entries and not re.search(r"\d", line):  # a table's header
            continue
        else:
            raise ValueError(f"{path}, line {number}: {line!r} is no class and colour; write: sky 128 128 128")
        entries.append((f"line {number}", label.strip(" ,;:\"'"), (int(red), int(green), int(blue))))
    return entries


def json_colours(path: Path, text: str) -> list[tuple[str, str, Colour]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error})") from error
    if isinstance(content, list) and all(isinstance(entry, dict) for entry in content):
        content = {str(entry.get("name", entry.get("id"))): entry.get("color", entry.get("colour")) for entry in content}
    elif isinstance(content, list):
        content = {str(index): colour for index, colour in enumerate(content)}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object of name or id -> colour, got {type(content).__name__}")
    return [(f"entry {label!r}", label, json_colour(path, label, colour)) for label, colour in content.items()]


def json_colour(path: Path, label: str, colour: Any) -> Colour:
    if isinstance(colour, str) and (match := HEXADECIMAL.fullmatch(colour)):
        return int(match[1], 16), int(match[2], 16), int(match[3], 16)
    if isinstance(colour, list) and len(colour) == 3 and all(isinstance(part, int) and part >= 0 for part in colour):
        return colour[0], colour[1], colour[2]
    raise ValueError(f"{path}: {colour!r} of {label!r} is no colour; write [128, 128, 128] or '#808080'")


def class_names_of_colours(colours: Mapping[Colour, str]) -> list[list[str]] | None:
    """The classes that a colour map names, in its order; None where it gives ids."""
    labels = list(dict.fromkeys(label for label in colours.values() if label.lower() not in UNLABELLED))
    return None if all(label.isdigit() for label in labels) else [[label] for label in labels]


def ids_of_colours(colours: Mapping[Colour, str], class_names: Sequence[Sequence[str]] | None) -> dict[Colour, int]:
    """Colour -> stored id: the id that the map gives, or that of the class it names; 255 for void and its like.

    Raises:
        ValueError: a name that is no class.
    """
    known = {name.lower(): index for index, names in enumerate(class_names or ()) for name in reversed(names)}
    ids: dict[Colour, int] = {}
    for colour, label in colours.items():
        name = label.lower()
        if name in UNLABELLED:  # also where a class is called so
            ids[colour] = IGNORE_INDEX
        elif name in known:
            ids[colour] = known[name]
        elif label.isdigit():
            ids[colour] = int(label)
        else:
            raise ValueError(
                f"the colour map names {label!r}, which is none of the {len(class_names or ())} classes; rename it, or call it "
                "void where it is to be ignored"
            )
    without = [names[0] for index, names in enumerate(class_names or ()) if index not in ids.values()]
    if without:
        logger.warning("the colour map has no colour for %s: no mask can hold them", ", ".join(without))
    return ids
