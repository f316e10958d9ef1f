"""The pictures that the page offers: scenes of Toyscapes with their ground truth, and photographs that are on the machine."""

import hashlib
import importlib.util
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from hf_clipseg import toyscapes
from hf_clipseg.drawing.comparison import renumber
from hf_clipseg.processing.image_io import load_image

SCENE_SIZE = (384, 512)
THUMBNAIL = 160
SCENES = {
    8: "Balloons and a bird",
    7: "Lighthouse",
    2: "Bird by the road",
    16: "Boat",
    0: "Cat in the wheat",
    10: "Cats at night",
}
"""Index in Toyscapes' test split -> what the button says; the first is shown when the page opens."""

PHOTOGRAPHS = (
    ("gradio", "media_assets/images/cheetah.jpg", "Cheetah", "cheetah|leopard, grass, tree, sky"),
    ("gradio", "media_assets/images/tower.jpg", "Tower", "tower, sky, tree, building|house, grass"),
    ("gradio", "media_assets/images/lion.jpg", "Lion", "lion, grass, rock, sky"),
    ("sklearn", "datasets/images/china.jpg", "Palace", "building|palace, sky, tree, road|pavement, person, water"),
    ("sklearn", "datasets/images/flower.jpg", "Flower", "flower, leaf|plant, background"),
)
"""Package, file in it, what the button says, classes. The files come with the packages; none is copied here."""


@dataclass(frozen=True)
class Photograph:
    """A photograph on this machine, and the classes to look for in it."""

    path: str
    title: str
    class_text: str


@lru_cache(len(SCENES))
def scene(index: int) -> toyscapes.ToyScene:
    return toyscapes.render(0, index, *SCENE_SIZE, split="test")


def scene_picture(index: int) -> Image.Image:
    return Image.fromarray(scene(index).image)


@lru_cache(1)
def thumbnails() -> dict[int | str, str]:
    """Scene index or path of a photograph -> a small picture of it, in a folder that lasts as long as the process."""
    folder = Path(tempfile.mkdtemp(prefix="hf-clipseg-thumbnails-"))
    files = {}
    for number, source in enumerate([*SCENES, *(photograph.path for photograph in photographs())]):
        picture = scene_picture(source) if isinstance(source, int) else load_image(source)
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        files[source] = str(folder / f"{number}.png")
        picture.save(files[source])
    return files


def truth_of(picture: Image.Image, shared: list[str]) -> np.ndarray | None:
    """Ground truth `(H, W)` in ids of `shared` where the picture is one of the scenes, pixel by pixel; None for any other.

    Classes are matched by name or synonym; see `comparison.renumber` for those that are not in the list.
    """
    index = _scenes_by_digest().get(_digest(picture))
    if index is None:
        return None
    called = {toyscapes.CAPTION_NOUNS.get(name.lower(), name): name for name in reversed(shared)}
    names = [called.get(name, name) for name in toyscapes.CLASS_NAMES]
    return renumber(scene(index).mask, names, shared)


def photographs() -> list[Photograph]:
    """Those of `PHOTOGRAPHS` whose package is installed and brings them."""
    found = []
    for package, file, title, class_text in PHOTOGRAPHS:
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent / file if spec and spec.origin else None
        if path is not None and path.is_file():
            found.append(Photograph(str(path), title, class_text))
    return found


@lru_cache(1)
def _scenes_by_digest() -> dict[str, int]:
    return {_digest(scene_picture(index)): index for index in SCENES}


def _digest(picture: Image.Image) -> str:
    return hashlib.sha256(f"{picture.size}".encode() + picture.convert("RGB").tobytes()).hexdigest()
