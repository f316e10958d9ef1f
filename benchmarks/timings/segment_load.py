"""`segment` in one process for minutes: never the same call twice, and its memory on the way.

    python -m benchmarks.timings.segment_load --minutes 10 --json segment_load.json

Every call takes other sizes, numbers and names of classes, batches, windows and refinements, of models with an open vocabulary
and of closed ones. The first call of each kind is repeated at the end, and must give the same labels.
"""

import argparse
import itertools
import random
from pathlib import Path

import numpy as np
import torch

from hf_clipseg.processing.inference import segment
from hf_clipseg.toyscapes import CLASS_NAMES, render

from .rows_around import loaded
from .run_all import command_of
from .steady import Watch, save

OPEN, CLOSED = ("mask-clip-toyscapes", "mvp-seg-toyscapes"), ("vpl-toyscapes", "mta-clip-toyscapes")
ADJECTIVES = ("red", "small", "old", "distant", "blue", "wooden", "broken", "bright", "wet", "tall")
SCENES = 12
LONGEST = 256


def make_call(choose: random.Random, scenes: list[np.ndarray]) -> dict:
    """A model's name, pictures cut from the scenes, and options."""
    name = choose.choice(OPEN + CLOSED)
    pictures = []
    for _ in range(choose.randint(1, 4)):
        height, width = choose.randint(33, LONGEST), choose.randint(33, LONGEST)
        pictures.append(choose.choice(scenes)[:height, :width])
    options = {
        "batch_size": choose.randint(1, 8),
        "flip": choose.random() < 0.1,
        "window": 96 if choose.random() < 0.05 else None,
    }
    options["refinement"] = "pamr" if choose.random() < 0.05 else None
    return {"name": name, "pictures": pictures, "options": options | {"class_names": class_names(choose, name)}}


def class_names(choose: random.Random, name: str) -> list | None:
    """Up to 20 classes, some with a synonym and most of them new to the cache of texts; None for the baked ones."""
    if name in CLOSED or choose.random() < 0.2:
        return None
    words = list(itertools.product(ADJECTIVES, CLASS_NAMES))
    names: list = [" ".join(pair) for pair in choose.sample(words, choose.randint(1, 20))]
    return [[text, f"{text} {index}"] if choose.random() < 0.2 else text for index, text in enumerate(names)]


def load(minutes: float, models: dict) -> tuple[Watch, str]:
    scenes = [np.asarray(render(0, index, LONGEST, LONGEST).image) for index in range(SCENES)]
    choose, first, calls, pictures = random.Random(0), {}, 0, 0
    watch = Watch("calls")
    while watch.share(minutes) < 1:
        call = make_call(choose, scenes)
        labels = run(models, call)
        first.setdefault(call["name"], (call, labels))
        calls, pictures = calls + 1, pictures + len(labels)
        watch.note(watch.share(minutes), calls)
    same = sum(all(map(np.array_equal, run(models, call), labels)) for call, labels in first.values())
    return watch, f"{pictures} pictures; the first call of {same} of {len(first)} models, made again, gave the same labels."


def run(models: dict, call: dict) -> list[np.ndarray]:
    model, processor = models[call["name"]]
    return segment(model, processor, call["pictures"], **call["options"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--json", type=Path, help="write the readings here, for the page")
    args = parser.parse_args()
    watch, said = load(args.minutes, {name: loaded(name) for name in OPEN + CLOSED})
    save(args.json, "segment-load", command_of("segment_load", "--minutes", f"{args.minutes:g}"), watch, [said])


if __name__ == "__main__":
    with torch.no_grad():
        main()
