"""One picture's results as files: something to look at, pixel values that are class ids, names and areas."""

import json
from pathlib import Path

from ..atomic import replace_file
from ..drawing.label_files import index_picture, label_record
from ..drawing.overlay import overlay


def result_target(folder: Path, key: str) -> Path:
    """Where a picture's files go, without a suffix.

    Raises:
        ValueError: the key leads out of the folder.
    """
    path = Path(key)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError(f"The key {key!r} is no file name below {folder}; choose another --key_column, or --format parquet.")
    return folder / key


def write_class_file(folder: Path, class_names: list[list[str]]) -> None:
    """`classes.txt`, a class per line in the order of the ids, synonyms parted by `|`: what the pixel values mean."""
    with replace_file(folder / "classes.txt", per_process=True) as partial:
        partial.write_text("".join(f"{'|'.join(names)}\n" for names in class_names), encoding="utf-8")


def write_label_map(target: Path, label_map, class_names: list[list[str]]) -> None:
    """The index PNG alone, complete or absent."""
    with replace_file(target.with_name(f"{target.name}.labels.png")) as partial:
        index_picture(label_map, [synonyms[0] for synonyms in class_names]).save(partial, format="PNG")


def write_results(target: Path, picture, label_map, class_names: list[list[str]], about: dict, opacity: float) -> None:
    """Overlay, index PNG and JSON, each complete or absent; the JSON comes last, so that it stands for all three."""
    names = [synonyms[0] for synonyms in class_names]
    with replace_file(target.with_name(f"{target.name}.overlay.png")) as partial:
        overlay(picture, label_map, names, opacity).save(partial, format="PNG")
    write_label_map(target, label_map, class_names)
    with replace_file(target.with_name(f"{target.name}.json")) as partial:
        record = about | label_record(label_map, class_names)
        partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
