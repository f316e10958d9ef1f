"""What is known about a checkpoint before its weights are read: its name, and what its card says, as plain text."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

RESULT_FOLDERS = re.compile(r"final|best|last|latest|model|checkpoint[-_]?\d*")  # say nothing about the run they belong to


@dataclass(frozen=True)
class Checkpoint:
    """What is known about a checkpoint before its weights are read.

    Args:
        source: folder or Hub id.
        name: short and unique: the folder's name, the run's where the folder is called `final`, or the Hub id.
        title: what people read, from the first heading of its card.
        description: first paragraph of its card.
        class_names: its own classes, each a list of synonyms; None where it has none.
        open_vocabulary: whether it takes other class names per call.
        model_type: the method; empty where it is not known before loading.
        attention: of the last block, where it is not the checkpoint's own.
    """

    source: str
    name: str
    title: str
    description: str = ""
    class_names: list[list[str]] | None = None
    open_vocabulary: bool = True
    model_type: str = ""
    attention: str | None = None

    @property
    def on_hub(self) -> bool:
        return not Path(self.source).is_dir()


def run_name(folder: Path) -> str:
    """`runs/mine/final` is called `mine`, and `runs/mine/checkpoint-40` is `mine/checkpoint-40`."""
    folder = folder.resolve()
    if not RESULT_FOLDERS.fullmatch(folder.name):
        return folder.name
    return folder.parent.name if folder.name == "final" else f"{folder.parent.name}/{folder.name}"


def distinguish(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints with names and titles that are unique; one that is given twice comes once, in its first place."""
    once: dict[tuple, Checkpoint] = {}
    for checkpoint in checkpoints:
        place = checkpoint.source if checkpoint.on_hub else os.path.realpath(checkpoint.source)
        once.setdefault((place, checkpoint.attention), checkpoint)
    kept = list(once.values())
    named: list[Checkpoint] = []
    for checkpoint in kept:
        alike = [other for other in kept if other.name == checkpoint.name]
        name = checkpoint.name if len(alike) == 1 else longer_name(checkpoint, alike)
        named.append(replace(checkpoint, name=name))
    titles = Counter(checkpoint.title for checkpoint in named)
    return [c if titles[c.title] == 1 else replace(c, title=f"{c.title} ({c.name})") for c in named]


def longer_name(checkpoint: Checkpoint, alike: Sequence[Checkpoint]) -> str:
    """As many of the last folders as tell a checkpoint from those of the same name."""
    parts = Path(checkpoint.source).resolve().parts
    others = [Path(other.source).resolve().parts for other in alike if other is not checkpoint]
    for count in range(2, len(parts)):
        if all(other[-count:] != parts[-count:] for other in others):
            return "/".join(parts[-count:])
    return f"{checkpoint.source} {checkpoint.attention or ''}".strip()


def read_card(card: Path) -> tuple[str, str]:
    """First heading and first paragraph of a model card, as plain text, without its metadata; empty where there is none."""
    if not card.is_file():
        return "", ""
    text = re.sub(r"\A---\n.*?\n---\n", "", card.read_text(encoding="utf-8"), flags=re.DOTALL)
    title = re.search(r"^# +(.+)$", text, flags=re.MULTILINE)
    paragraphs = (plain_text(block) for block in re.split(r"\n\s*\n", text))
    description = next((block for block in paragraphs if block and block[0] not in "#`|<!["), "")
    return plain_text(title[1]) if title else "", description


def plain_text(markdown: str) -> str:
    """Markdown of a stranger as one line of text: no picture that a browser would fetch, no link, no tag, no code marks."""
    text = re.sub(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])?", "", markdown)
    text = re.sub(r"\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])", r"\1", text)
    text = re.sub(r"</?[a-zA-Z!][^>]*>", "", text)
    return " ".join(re.sub(r"[`*]", "", text).split())
