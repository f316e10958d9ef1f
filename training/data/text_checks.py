"""Looks through images with tags, or with captions, before anything is trained on them; `file_checks` does so for masks."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from hf_clipseg.drawing.overlay import contact_sheet

from .caption_files import CAPTION_LAYOUTS
from .file_checks import Finding, twin_finding
from .layouts import UnknownLayoutError, recognise
from .mask_layouts import MASK_LAYOUTS
from .rows import find_layout
from .sources import load_captions
from .tag_files import TAG_LAYOUTS
from .tagged_images import load_tagged_images

LAYOUTS = {"masks": MASK_LAYOUTS, "captions": CAPTION_LAYOUTS, "tags": TAG_LAYOUTS}
FEW = 5  # images of a tag, below which it is hardly learnt
COMMON = 0.2  # share of images with one and the same caption that is worth a note


@dataclass
class TextCheck:
    """One image with its tags or captions; `content` is a digest of its pixels, `problem` why it cannot be read."""

    key: str
    texts: list[str] = field(default_factory=list)
    content: str = ""
    problem: str = ""


def find_supervision(dataset_name: str) -> str:
    """What the images of a folder come with: the first of masks, captions and tags whose layouts it has; masks elsewhere."""
    folder = Path(dataset_name)
    if not folder.is_dir():
        return "masks"
    for kind, layouts in LAYOUTS.items():
        try:
            recognise(folder, layouts)
        except UnknownLayoutError:
            continue
        return kind
    return "masks"


def open_texts(kind: str, options: dict, split: str, limit: int | None) -> Any:
    """Tagged or captioned images of one split, as the trainers read them."""
    common = {"config_name": options["dataset_config_name"], "image_column": options["image_column"], "limit": limit,
              "streaming": options["streaming"], "validation_fraction": options["validation_fraction"]}  # fmt: skip
    if kind == "captions":
        return load_captions(options["dataset_name"], split, **common)
    names = options["class_names"]
    return load_tagged_images(options["dataset_name"], split, class_names=names, **common)


def splits_of(kind: str, dataset_name: str, config_name: str | None) -> list[str]:
    return list(find_layout(dataset_name, config_name, LAYOUTS[kind], True).splits)


def check_text(kind: str, source: Any, index: int) -> TextCheck:
    check = TextCheck(source.keys[index] if kind == "tags" else str(index))
    if kind == "tags":
        check.texts = [name for (name, *_), tagged in zip(source.class_names, source.labels[index], strict=True) if tagged]
    try:
        sample = source[index]
    except ValueError as error:
        check.problem = str(error)
        return check
    check.key = sample["key"]
    check.texts = check.texts or list(sample["captions"])
    check.content = hashlib.sha256(sample["image"].tobytes()).hexdigest()
    return check


def check_texts(kind: str, source: Any) -> list[TextCheck]:
    """All images of a split, read by as many threads as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        checks = threads.map(lambda index: check_text(kind, source, index), range(len(source)))
        return list(tqdm(checks, total=len(source), desc=f"reading images and {kind}", unit="image", leave=False))


def text_table(kind: str, checks: Sequence[TextCheck]) -> list[str]:
    """What there is: of tags, the images of each; of captions, how many and how long."""
    texts = [text for check in checks for text in check.texts]
    if kind == "captions":
        words = [len(text.split()) for text in texts] or [0]
        return [
            f"{len(checks)} images, {len(texts)} captions of {np.median(words):.0f} words (median), "
            f"{len(set(texts))} of them different"
        ]
    counts = Counter(texts)
    rows = [f"{count:>7}  {count / len(checks):7.2%}  {name}" for name, count in counts.most_common()]
    return [f"{len(checks)} images, {len(texts) / max(1, len(checks)):.1f} tags each", *rows]


def text_findings(kind: str, checks: dict[str, list[TextCheck]]) -> list[Finding]:
    """What is wrong with files, texts and splits."""
    findings = []
    for split, of_split in checks.items():
        if broken := [check for check in of_split if check.problem]:
            keys = ", ".join(check.key for check in broken[:FEW])
            findings.append(Finding(f"{split}: broken image, {len(broken)} of {len(of_split)}: {keys} ({broken[0].problem})"))
        if empty := [check.key for check in of_split if not check.problem and not "".join(check.texts).strip()]:
            findings.append(Finding(f"{split}: {len(empty)} images whose {kind} are empty: {empty[:FEW]}"))
    everything = [check for of_split in checks.values() for check in of_split]
    counts = Counter(text for check in everything for text in set(check.texts))
    if kind == "tags":
        rare = [name for name, count in counts.items() if count < FEW]
        everywhere = [name for name, count in counts.items() if count == len(everything) > 1]
        if rare:
            findings.append(Finding(f"tags of fewer than {FEW} images are hardly learnt: {rare[:10]}", fatal=False))
        if everywhere:
            findings.append(Finding(f"tags of every image say nothing about where they are: {everywhere[:10]}", fatal=False))
    elif counts and (often := counts.most_common(1)[0])[1] > max(1, COMMON * len(everything)):
        findings.append(Finding(f"one caption is that of {often[1]} images: {often[0]!r}", fatal=False))
    return findings + [finding for finding in (twin_finding(checks),) if finding]


def text_command(kind: str, dataset_name: str, split: str) -> str:
    """What trains on it."""
    name = Path(dataset_name).resolve().name
    data = f"--dataset_name {dataset_name} --split {split}"
    if kind == "tags":
        return f"python -m training.train_vpl {data} --output_dir runs/{name}"
    return (
        f"python -m training.curate_concepts {data} --output_dir runs/{name}-concepts\n"
        f"python -m training.train_cocu {data} --concepts runs/{name}-concepts --output_dir runs/{name}"
    )


def text_sheet(source: Any, checks: Sequence[TextCheck], count: int = 6):
    """Some images from all over the split, each under its tags or its first caption; None where none can be read."""
    readable = [index for index, check in enumerate(checks) if not check.problem]
    if not readable:
        return None
    chosen = [readable[round(place)] for place in np.linspace(0, len(readable) - 1, min(count, len(readable)))]
    captions = [", ".join(checks[index].texts) or "(none)" for index in chosen]
    return contact_sheet([source[index]["image"] for index in chosen], captions, columns=3, cell_width=320)
