"""Shows what the labels of a data set look like, before anything is trained on it: `python -m training.check_dataset NAME`.

Prints the share of every stored label, what `--reduce_labels` and `--ignore_label` make of it, and draws one picture with its
mask.
"""

import argparse
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hf_clipseg.constants import IGNORE_INDEX
from hf_clipseg.drawing.overlay import overlay

from .data.sources import ToyscapesSource, load_source


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.check_dataset", description="Shows the labels of a data set.")
    parser.add_argument("dataset_name", help="toyscapes, a preset (voc, ade20k, ...), a Hub id, or a folder")
    parser.add_argument("--split", default="train", help="(%(default)s)")
    parser.add_argument("--config_name", help="configuration of a Hub data set")
    parser.add_argument("--image_column", help="where it cannot be guessed")
    parser.add_argument("--mask_column", help="where it cannot be guessed")
    parser.add_argument("--classes_file", help="one class name per line, a JSON list or an id2label JSON")
    parser.add_argument("--reduce_labels", action="store_true", help="0 means unlabelled: 0 -> 255, k -> k - 1")
    parser.add_argument("--ignore_label", type=int, help="a label that means unlabelled")
    parser.add_argument("--limit", type=int, default=50, help="look at so many images (%(default)s)")
    parser.add_argument("--streaming", action="store_true", help="read the first --limit rows without downloading the rest")
    parser.add_argument("--picture", default="dataset_check.png", help="where the overlay is written (%(default)s)")
    options = vars(parser.parse_args(arguments))
    picture = options.pop("picture")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    source = load_source(**options)
    for line in report(source):
        print(line)
    sample = source[0]
    overlay(sample["image"], sample["mask"], source.class_names).save(Path(picture))
    print(f"overlay of {sample['key']}: {picture}")


def report(source) -> list[str]:
    """One line per label: what the files hold, what it becomes, its share of the pixels, and the class name."""
    pixels, becomes = count_labels(source)
    total = sum(pixels.values())
    lines = [f"{len(source)} images, {len(source.class_names) if source.class_names else 'unknown'} classes"]
    for stored in sorted(pixels):
        label = becomes[stored]
        lines.append(f"{stored:>6} -> {label:>4}  {pixels[stored] / total:7.2%}  {label_name(source.class_names, label)}")
    ignored = sum(count for stored, count in pixels.items() if becomes[stored] == IGNORE_INDEX)
    return [*lines, f"ignored: {ignored / total:.2%}"]


def count_labels(source) -> tuple[Counter[int], dict[int, int]]:
    """Pixels of every stored label, and the label it becomes; labels that no class has are counted too."""
    pixels: Counter[int] = Counter()
    becomes: dict[int, int] = {}
    for index in range(len(source)):
        if isinstance(source, ToyscapesSource):
            stored = relabelled = source[index]["mask"]
        else:
            stored, relabelled = source.stored_and_relabelled(index)
        values, firsts, counts = np.unique(stored, return_index=True, return_counts=True)
        pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        becomes.update(zip(values.tolist(), relabelled.ravel()[firsts].tolist(), strict=True))
    return pixels, becomes


def label_name(class_names: Sequence[str] | None, label: int) -> str:
    if label == IGNORE_INDEX:
        return "(ignored)"
    if class_names is None:
        return ""
    return class_names[label] if 0 <= label < len(class_names) else "OUT OF RANGE"


if __name__ == "__main__":
    main()
