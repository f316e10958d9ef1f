"""Class names in files, as data sets and papers publish them: one reader for every command.

A text file has one class per line in the order of the ids, its synonyms parted by `,`, `|` or `;` (SCLIP's `cls_voc21.txt`,
ADE20K's `building;edifice`), lines that begin with `#` left out. Ids in front (`0 background`) are understood when all lines
have one. A table (`.csv`) has a header with a column of names and, if it likes, one of ids (ADE20K's `objectInfo150.csv`,
`class_dict.csv`, `_classes.csv`). JSON is a list of names, an `id2label` object, or `{"classes": [...]}`.
"""

import csv
import json
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from .text_bank import parse_class_names

logger = logging.getLogger(__name__)

NUMBER_IN_FRONT = re.compile(r"(\d+)\s*[\s:.,;)=]\s*(.*\S)")
NAME_COLUMNS = ("name", "class", "class_name", "label", "category")
ID_COLUMNS = ("id", "idx", "index", "pixel value", "class_id", "label_id", "trainid")
Entry = tuple[str, list[str]]
"""Where a class stands in its file ("line 3"), and its names."""


def class_names_of_argument(names_or_file: str) -> list[list[str]]:
    """What `--classes` means: names parted by commas (synonyms by `|`), or a file that `read_class_file` reads.

    Raises:
        ValueError: no file of that name, or names that cannot be used.
    """
    if Path(names_or_file).is_file():
        return read_class_file(names_or_file)
    if Path(names_or_file).suffix in (".txt", ".json", ".csv", ".names"):
        raise ValueError(f"There is no class file {names_or_file}.")
    return parse_class_names(names_or_file)


def read_class_file(path: str | Path) -> list[list[str]]:
    """The names of every class in the order of the ids, display name first.

    A synonym may stand in several classes, as published lists have it; a class that stands there twice is an error.

    Raises:
        ValueError: the file is none of those above, is empty, names a class twice (with the line), or its ids have gaps.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        entries = {".json": json_entries, ".csv": table_entries}.get(path.suffix, line_entries)(text)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested without end, or not as expected
        raise ValueError(f"{path}: {error}") from error
    if not entries:
        raise ValueError(f"{path} names no class; write one class per line, in the order of the labels")
    check_entries(path, entries)
    return [names for _, names in entries]


def split_synonyms(text: str) -> list[str]:
    """`ship, boat` -> both names, without the white space around them; each once (ADE20K has `door;double;door`)."""
    return each_once(re.split(r"[,|;]", text))


def each_once(written: Iterable[str]) -> list[str]:
    names: dict[str, str] = {}
    for name in written:
        if name.strip():
            names.setdefault(" ".join(name.lower().split()), " ".join(name.split()))
    return list(names.values())


def line_entries(text: str) -> list[Entry]:
    lines = [(f"line {number}", line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(place, line) for place, line in lines if line and not line.startswith("#")]
    numbered = [NUMBER_IN_FRONT.fullmatch(line) for _, line in lines]
    if len(lines) > 1 and all(numbered):
        lines = by_id([(place, match[1], match[2]) for (place, _), match in zip(lines, numbered, strict=True) if match])
    if len(lines) == 1 and "," in lines[0][1]:
        raise ValueError("one line with commas would be one class with synonyms; write one class per line")
    return [(place, split_synonyms(line)) for place, line in lines]


def table_entries(text: str) -> list[Entry]:
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    columns = {(column or "").strip().lower(): column for column in reader.fieldnames or ()}
    name = next((columns[column] for column in NAME_COLUMNS if column in columns), None)
    number = next((columns[column] for column in ID_COLUMNS if column in columns), None)
    if name is None:
        return line_entries(text)
    rows = [(f"line {reader.line_num}", row.get(number, ""), row[name] or "") for row in reader]
    rows = by_id(rows) if number else [(place, names) for place, _, names in rows]
    return [(place, split_synonyms(names)) for place, names in rows]


def json_entries(text: str) -> list[Entry]:
    content = json.loads(text)
    if isinstance(content, dict) and isinstance(content.get("classes"), list):
        content = content["classes"]
    if isinstance(content, dict) and all(str(key).isdigit() for key in content):
        content = [name for _, name in by_id([(f"id {key}", key, name) for key, name in content.items()], first_ids=(0,))]
    if not isinstance(content, list) or not all(isinstance(names, (str, list)) for names in content):
        raise ValueError(f"expected a list of class names or an object of id -> name, got {type(content).__name__}")
    for index, names in enumerate(content):
        if not isinstance(names, str) and not all(isinstance(name, str) for name in names):
            raise ValueError(f"entry {index}: expected a name or a list of names, got {names!r:.60}")
    return [
        (f"entry {index}", split_synonyms(names) if isinstance(names, str) else each_once(names))
        for index, names in enumerate(content)
    ]


def by_id(entries: Sequence[tuple[str, str, str]], first_ids: Sequence[int] = (0, 1)) -> list[tuple[str, str]]:
    """(place, id, names) in the order of their ids, which must count from 0 (or from 1, with a word about it)."""
    if not all(str(number).strip().isdigit() for _, number, _ in entries):
        raise ValueError(f"ids must be numbers, got {[number for _, number, _ in entries][:5]}")
    ids = sorted(int(number) for _, number, _ in entries)
    first = next((start for start in first_ids if ids == list(range(start, start + len(ids)))), None)
    if first is None:
        raise ValueError(
            f"ids must be 0 to {len(ids) - 1} without gaps, got {ids[:8]}; give consecutive ids and an id map for the masks"
        )
    if len(first_ids) > 1:
        counted = "" if first == 0 else "; they count from 1: where masks do, too, and 0 is unlabelled, pass --reduce_labels"
        logger.warning("class names are numbered: the numbers are taken as ids, not as part of the names%s", counted)
    return [(place, names) for place, _, names in sorted(entries, key=lambda entry: int(entry[1]))]


def check_entries(path: Path, entries: Sequence[Entry]) -> None:
    """Every class once; says which synonym stands in several classes."""
    first: dict[str, str] = {}
    owner: dict[str, str] = {}
    shared: dict[str, None] = {}
    for place, names in entries:
        folded = [name.lower() for name in names]
        if not folded or "" in folded:
            raise ValueError(f"{path}, {place}: a class without a name; name it, or remove the {place.split()[0]}")
        if folded[0] in first:
            raise ValueError(f"{path}, {place}: the class {names[0]!r} stands in {first[folded[0]]} already; remove one")
        first[folded[0]] = place
        shared |= {name: None for name in folded if name in owner}
        owner |= dict.fromkeys(folded, place)
    if shared:
        logger.warning("%s: %s stand in several classes; where they tie, the first class wins", path, ", ".join(shared))
