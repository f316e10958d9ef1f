"""Label maps of the shipped checkpoints on fixed scenes, and the ones that are stored in `label_maps/` to compare with.

`python -m tests.shipped_label_maps` stores those of the present code: run it where a checkpoint was trained anew, never to make
a test pass.
"""

import functools
import hashlib
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForSemanticSegmentation

from hf_clipseg import SegmentationProcessor, VplForSemanticSegmentation
from hf_clipseg.atomic import replace_file
from hf_clipseg.checkpoints import find_checkpoints
from hf_clipseg.localization.pseudo_labels import pseudo_labels
from hf_clipseg.processing.inference import segment
from hf_clipseg.toyscapes import CLASS_NAMES, SYNONYMS, render

CARDS = Path(__file__).parent.parent / "model_cards"
STORED = Path(__file__).parent / "label_maps"
DIGESTS = STORED / "digests.json"
SEGMENTERS = [checkpoint.name for checkpoint in find_checkpoints(CARDS)]
NUM_SCENES, NUM_FEW = 24, 4


@functools.cache
def load(name: str):
    """Model and processor of a shipped checkpoint; shared by all tests, so leave them as they are."""
    model = AutoModelForSemanticSegmentation.from_pretrained(CARDS / name)
    return model, SegmentationProcessor.from_pretrained(CARDS / name)


@functools.cache
def scenes(height: int = 128, width: int = 128, count: int = NUM_SCENES) -> list:
    return [render(7, index, height, width, split="test") for index in range(count)]


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are divided among threads, so their number decides how they round."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
@one_thread()
def label_maps(name: str) -> dict[str, np.ndarray]:
    """What a checkpoint makes of the scenes, `(scenes, height, width)` uint8 for each way of asking.

    `baked`: its own classes; `other_size`: sides that are no multiple of a patch; `named`: names and synonyms in the call;
    `pseudo`: the pseudo masks that its prototypes make of image labels.
    """
    model, processor = load(name)
    few = [scene.image for scene in scenes(count=NUM_FEW)]
    maps = {
        "baked": segment(model, processor, [scene.image for scene in scenes()]),
        "other_size": segment(model, processor, [scene.image for scene in scenes(100, 150, NUM_FEW)]),
    }
    if model.open_vocabulary:
        names = [[name, *SYNONYMS.get(name, ())] for name in CLASS_NAMES]
        maps["named"] = segment(model, processor, few, class_names=names)
    if isinstance(model, VplForSemanticSegmentation):
        maps["pseudo"] = pseudo_masks(model, processor)
    return {kind: np.stack(list(each)).astype(np.uint8) for kind, each in maps.items()}


def pseudo_masks(model, processor) -> list[np.ndarray]:
    masks = []
    for scene in scenes(count=NUM_FEW):
        tags = torch.zeros(1, len(CLASS_NAMES), dtype=torch.bool)
        tags[0, torch.from_numpy(np.unique(scene.mask)).long()] = True
        found = model.localize(processor(images=scene.image)["pixel_values"], tags)
        pixels = torch.from_numpy(np.array(scene.image)).permute(2, 0, 1)[None]
        masks.append(pseudo_labels(found, pixels, has_background=False)[0][0].numpy())
    return masks


def digest(maps: np.ndarray) -> str:
    return hashlib.sha256(str(maps.shape).encode() + np.ascontiguousarray(maps).tobytes()).hexdigest()[:16]


@functools.cache
@one_thread()
def arithmetic() -> str:
    """Two runs with the same answer here round alike: version, instructions, and bits of a few products."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(96, 256, 256, generator=generator)
    products = [values[0] @ values[1], values.softmax(-1), torch.nn.functional.layer_norm(values, (256,)), values.exp().sum(1)]
    bits = hashlib.sha256(b"".join(product.numpy().tobytes() for product in products)).hexdigest()[:12]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {platform.machine()} {capability}, {bits}"


def picture(name: str, kind: str) -> Path:
    """Where a stack of label maps is stored, one below the other, as a grey PNG whose values are class ids."""
    return STORED / f"{name}.{kind}.png"


def read_stored(name: str, kind: str, count: int) -> np.ndarray:
    return np.stack(np.split(np.asarray(Image.open(picture(name, kind))), count))


def store() -> None:
    stored = {"arithmetic": arithmetic(), "sha256": {}}
    for name in SEGMENTERS:
        stored["sha256"][name] = {kind: digest(maps) for kind, maps in label_maps(name).items()}
        for kind, maps in label_maps(name).items():
            with replace_file(picture(name, kind)) as partial:
                Image.fromarray(np.concatenate(list(maps))).save(partial, format="PNG", optimize=True)
    with replace_file(DIGESTS) as partial:
        partial.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    store()
