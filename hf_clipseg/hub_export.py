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
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedModel

from .atomic import replace_file
from .processing.image_processing_segmentation import SegmentationImageProcessor
from .processing.processing_segmentation import SegmentationProcessor

PROCESSOR_CLASSES = {"AutoProcessor": SegmentationProcessor, "AutoImageProcessor": SegmentationImageProcessor}


def save_with_code(model: PreTrainedModel, processor: SegmentationProcessor, folder: str | os.PathLike) -> None:
    """Writes model, processor and their source files to `folder`, ready to be uploaded to the Hub."""
    folder = Path(folder)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    model_classes = dict.fromkeys(("AutoModel", "AutoModelForSemanticSegmentation"), type(model))
    write_auto_map(folder / "config.json", {"AutoConfig": type(model.config), **model_classes})
    write_auto_map(folder / "processor_config.json", PROCESSOR_CLASSES, "image_processor")
    for exported in {type(model.config), type(model), *PROCESSOR_CLASSES.values()}:
        copy_flat(Path(inspect.getfile(exported)), folder)


def write_auto_map(file: Path, classes: dict[str, type], *parts: str) -> None:
    """Says in a saved configuration, and in these parts of it, which file beside it defines which class."""
    content = json.loads(file.read_text(encoding="utf-8"))
    auto_map = {auto: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for auto, cls in classes.items()}
    for described in (content, *(content[part] for part in parts)):
        described["auto_map"] = auto_map
    with replace_file(file) as partial:
        partial.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_flat(source: Path, folder: Path) -> None:
    """Copies `source`, and what it reaches through relative imports, side by side into `folder`."""
    waiting, seen = [source], set()
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
