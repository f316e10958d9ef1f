"""Toyscapes as data sets: a lazy sequence of scenes, and `datasets` objects, map-style and streaming.

The map-style data set holds PNG bytes in the `datasets` cache; its fingerprint names every setting, the drawing code
and the Pillow version, so two settings never share a cache and a change of the drawing code is never read stale.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import PIL
from PIL import Image

from .canvas import Dice
from .render_scene import SPLITS, ToyScene, check_request, render
from .scene_vocabulary import CLASS_NAMES

TOYSCAPES_VERSION = "1.0"
DEFAULT_NUM_SAMPLES = {"train": 10_000, "validation": 500, "test": 500}
STREAMING_SHARDS = 32
_CLOSEUP_STREAM = 2  # key of the dice that decides whether a sample is a close-up; 0 and 1 belong to `render`


def toyscapes_features() -> datasets.Features:
    """Columns of every Toyscapes data set. Masks are single-channel images of class ids and part ids."""
    return datasets.Features(
        {
            "image": datasets.Image(),
            "mask": datasets.Image(),
            "part_mask": datasets.Image(),
            "image_labels": datasets.Sequence(datasets.ClassLabel(names=list(CLASS_NAMES))),
            "caption": datasets.Value("string"),
            "key": datasets.Value("string"),
        }
    )


class ToyscapesDataset:
    """Scenes of a split by index, drawn when they are asked for; nothing is stored.

    Args:
        split: "train", "validation" or "test".
        size: (height, width) in pixels.
        num_samples: length; None = `DEFAULT_NUM_SAMPLES[split]`.
        seed: another seed gives other scenes.
        omission_rate: probability with which a caption leaves out each visible concept.
        closeup_rate: share of samples in which one concept fills the frame.

    Raises:
        ValueError: an argument is out of range (the message names it).
    """

    def __init__(
        self,
        split: str = "train",
        size: tuple[int, int] = (128, 128),
        num_samples: int | None = None,
        seed: int = 0,
        omission_rate: float = 0.5,
        closeup_rate: float = 0.0,
    ):
        check_request(seed, split, *size, omission_rate)
        if not 0 <= closeup_rate <= 1:
            raise ValueError(f"closeup_rate must be between 0 and 1, got {closeup_rate}")
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples must be 1 or more, got {num_samples}")
        self.split, self.size, self.seed = split, (size[0], size[1]), seed
        self.num_samples = DEFAULT_NUM_SAMPLES[split] if num_samples is None else num_samples
        self.omission_rate, self.closeup_rate = omission_rate, closeup_rate

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> ToyScene:
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} scenes")
        dice = Dice(self.seed, SPLITS.index(self.split), position, _CLOSEUP_STREAM)
        closeup = dice.chance(self.closeup_rate)
        return render(self.seed, position, *self.size, self.split, closeup, self.omission_rate)

    def settings(self) -> dict:
        """The constructor's arguments: two data sets with equal settings are equal."""
        names = ("split", "size", "num_samples", "seed", "omission_rate", "closeup_rate")
        return {name: getattr(self, name) for name in names}


def png_bytes(array) -> bytes:
    """A (height, width) or (height, width, 3) uint8 array as PNG; fast rather than small."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_scene(scene: ToyScene) -> dict:
    """One row of `toyscapes_features` with images as PNG bytes."""
    planes = {"image": scene.image, "mask": scene.mask, "part_mask": scene.part_mask}
    row = {name: {"bytes": png_bytes(plane), "path": None} for name, plane in planes.items()}
    return row | {"image_labels": list(scene.image_labels), "caption": scene.caption, "key": scene.key}


def generate_rows(settings: dict, indices: Sequence[int]) -> Iterator[dict]:
    """Rows of the scenes `indices`; `datasets` splits that list over processes and streaming workers."""
    scenes = ToyscapesDataset(**settings)
    for index in indices:
        yield encode_scene(scenes[index])


def _generate_ranges(settings: dict, ranges: list[tuple[int, int]]) -> Iterator[dict]:
    for first, last in ranges:
        yield from generate_rows(settings, range(first, last))


def code_digest() -> str:
    """Digest of what decides a sample: the version, the modules that draw and write, and Pillow's version."""
    digest = hashlib.sha256(f"{TOYSCAPES_VERSION} {PIL.__version__}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in ("__init__", "__main__", "folder_export"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def load_toyscapes(
    split: str,
    size: tuple[int, int] = (128, 128),
    num_samples: int | None = None,
    seed: int = 0,
    omission_rate: float = 0.5,
    closeup_rate: float = 0.0,
    streaming: bool = False,
    num_proc: int | None = None,
    cache_dir: str | None = None,
) -> "datasets.Dataset | datasets.IterableDataset":
    """Toyscapes as a `datasets` data set with the columns of `toyscapes_features`.

    Args:
        split, size, num_samples, seed, omission_rate, closeup_rate: see `ToyscapesDataset`.
        streaming: draw rows when they are read (an IterableDataset whose shards workers and nodes divide).
        num_proc: processes that draw the map-style data set.
        cache_dir: where its Arrow files go; None = the cache of `datasets`.

    Raises:
        ValueError: an argument is out of range (the message names it).
    """
    scenes = ToyscapesDataset(split, size, num_samples, seed, omission_rate, closeup_rate)
    settings, count = scenes.settings(), len(scenes)
    features, named_split = toyscapes_features(), datasets.NamedSplit(split)
    shards = min(STREAMING_SHARDS, count)
    ranges = [(count * k // shards, count * (k + 1) // shards) for k in range(shards)]
    arguments = {"settings": settings, "ranges": ranges}
    if streaming:
        return datasets.IterableDataset.from_generator(
            _generate_ranges, features=features, gen_kwargs=arguments, split=named_split
        )
    identity = f"{code_digest()} {sorted(settings.items())}"
    return datasets.Dataset.from_generator(
        _generate_ranges,
        features=features,
        gen_kwargs=arguments,
        split=named_split,
        num_proc=min(num_proc, shards) if num_proc else None,
        cache_dir=cache_dir,
        fingerprint="toyscapes-" + hashlib.sha256(identity.encode()).hexdigest()[:24],
    )
