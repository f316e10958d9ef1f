"""Saving a model together with the code that runs it, for people who load it with `trust_remote_code=True`.

A Hub repository of code is flat: transformers follows `from .name import X`, one folder deep. The files that a class reaches
through relative imports are therefore copied side by side, with their imports rewritten to one level, and `auto_map` is
written into the saved configurations. Nothing is registered while saving, so nothing has to be undone.
"""

import ast
import inspect
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from .atomic import replace_file


def save_with_code(model: PreTrainedModel, processor: Any, folder: str | os.PathLike) -> None:
    """Writes model, processor and their source files to `folder`, ready to be uploaded to the Hub.

    Args:
        model: of this package, or of transformers, which needs no code.
        processor: has `save_pretrained`; or a list of such, tokenizer and image processor for instance.
        folder: is made where it does not exist.

    Raises:
        ValueError: the code cannot be laid side by side, see `copy_flat`.
    """
    processors = list(processor) if isinstance(processor, (list, tuple)) else [processor]
    for part in (model, *processors):
        part.save_pretrained(folder)
    add_code(folder, type(model), processors[0])


def add_code(folder: str | os.PathLike, model_class: type[PreTrainedModel], processor: Any) -> None:
    """Adds the source files of `model_class` and `processor` to a folder that both were saved in."""
    folder = Path(folder)
    model_classes = dict.fromkeys(("AutoModel", "AutoModelForSemanticSegmentation"), model_class)
    model_classes = {"AutoConfig": model_class.config_class, **model_classes}
    image_classes = {"AutoImageProcessor": type(getattr(processor, "image_processor", None))}
    processor_classes = {"AutoProcessor": type(processor), **image_classes}
    write_auto_map(folder / "config.json", model_classes)
    write_auto_map(folder / "processor_config.json", processor_classes, "image_processor")
    exported = {cls for cls in (*model_classes.values(), *processor_classes.values()) if needs_code(cls)}
    copy_flat([Path(inspect.getfile(cls)) for cls in exported], folder)


def needs_code(cls: type) -> bool:
    """Whether the code of a class has to travel: it is neither Python's nor transformers' own."""
    return cls.__module__.partition(".")[0] not in ("builtins", "transformers")


def write_auto_map(file: Path, classes: dict[str, type], *parts: str) -> None:
    """Says in a saved configuration, and in these parts of it, which file beside it defines which class."""
    auto_map = {auto: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for auto, cls in classes.items() if needs_code(cls)}
    if not auto_map or not file.is_file():
        return
    content = json.loads(file.read_text(encoding="utf-8"))
    for described in (content, *(content[part] for part in parts if part in content)):
        described["auto_map"] = auto_map
    with replace_file(file) as partial:
        partial.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_flat(sources: Iterable[Path], folder: Path) -> None:
    """Copies the files, and what they reach through relative imports, side by side into `folder`.

    Raises:
        ValueError: two files have one name, or an import names no file.
    """
    waiting, seen = list(sources), set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        text = path.read_text(encoding="utf-8")
        with replace_file(folder / path.name) as partial:
            partial.write_text(flatten_imports(text), encoding="utf-8")
        waiting += imported_files(path, text)
    stems = [path.stem for path in seen]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        raise ValueError(f"{sorted(twice)} are names of two files each; exported side by side, each needs a name of its own")


def relative_imports(text: str) -> Iterator[ast.ImportFrom]:
    return (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level)


def imported_files(path: Path, text: str) -> list[Path]:
    """The files that the relative imports of `path`, whose content is `text`, name.

    Raises:
        ValueError: an import names a package: `from ..room import X` has no file to copy.
    """
    files = []
    for node in relative_imports(text):
        file = path.parents[node.level - 1].joinpath(*(node.module or "").split(".")).with_suffix(".py")
        if not node.module or not file.is_file():
            raise ValueError(f"{path.name}, line {node.lineno}: exported code imports from a file, `from .file import X`")
        files.append(file)
    return files


def flatten_imports(text: str) -> str:
    """`from ..room.name import X` as `from .name import X`, in every line that imports relatively."""
    lines = text.splitlines(keepends=True)
    for node in relative_imports(text):
        line = lines[node.lineno - 1]
        lines[node.lineno - 1] = re.sub(r"from \.+(?:\w+\.)*(\w+) import", r"from .\1 import", line, count=1)
    return "".join(lines)
