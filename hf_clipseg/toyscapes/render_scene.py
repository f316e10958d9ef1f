"""One Toyscapes sample: picture, class mask, part mask, image labels and caption of scene (seed, split, index)."""

from dataclasses import dataclass

import numpy as np

from .canvas import Dice
from .captions import visible_classes, write_caption, write_closeup_caption
from .scene_vocabulary import CLASS_IDS
from .scenes import Scene, compose_closeup, compose_scene

SPLITS = ("train", "validation", "test")
MIN_SIZE = 16


@dataclass(frozen=True)
class ToyScene:
    """One sample. `image` (height, width, 3), `mask` (class ids) and `part_mask` (0 = no part) (height, width), uint8;
    `image_labels` the sorted ids of the classes that are visible; `caption` a sentence; `key` unique per sample."""

    image: np.ndarray
    mask: np.ndarray
    part_mask: np.ndarray
    image_labels: tuple[int, ...]
    caption: str
    key: str


def check_request(seed: int, split: str, height: int, width: int, omission_rate: float) -> None:
    """Raise ValueError for what cannot be drawn."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    if min(height, width) < MIN_SIZE:
        raise ValueError(f"height and width must be at least {MIN_SIZE} pixels, got {height} x {width}")
    if not 0 <= omission_rate <= 1:
        raise ValueError(f"omission_rate must be between 0 and 1, got {omission_rate}")


def render(
    seed: int,
    index: int,
    height: int,
    width: int,
    split: str = "train",
    closeup: bool = False,
    omission_rate: float = 0.5,
) -> ToyScene:
    """Draw scene `index` of a split. The same arguments give the same scene on every machine, in any order.

    Args:
        seed, index: which scene; 0 or more.
        height, width: pixels, 16 or more each. The same scene is drawn at every size.
        split: "train", "validation" or "test"; the splits share no random stream.
        closeup: one concept fills the frame instead of an ordinary scene.
        omission_rate: probability with which the caption leaves out each visible concept (never all of them).

    Raises:
        ValueError: unknown split, negative seed or index, size below 16, omission_rate outside [0, 1].
    """
    check_request(seed, split, height, width, omission_rate)
    if index < 0:
        raise ValueError(f"index must be 0 or more, got {index}")
    stream = (SPLITS.index(split), index, int(closeup))
    scene = (compose_closeup if closeup else compose_scene)(height, width, Dice(seed, *stream, 0))
    image, mask, part_mask = _finish(scene)
    words = Dice(seed, *stream, 1)  # a stream of its own: the omission rate does not change the picture
    if closeup:
        caption = write_closeup_caption(scene.placed, words)
    else:
        caption = write_caption(scene.placed, scene.time, omission_rate, words)
    key = f"toyscapes-{seed}-{split}-{index:08d}" + ("-closeup" if closeup else "")
    labels = tuple(sorted(CLASS_IDS[name] for name in visible_classes(scene.placed)))
    return ToyScene(image, mask, part_mask, labels, caption, key)


def _finish(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picture, class mask and part mask of a composed scene; fills in each instance's visible area (a share)."""
    picture, instances, parts = scene.canvas.finish()
    areas = np.bincount(instances.ravel(), minlength=len(scene.placed)) / instances.size
    for placed, area in zip(scene.placed, areas, strict=True):
        placed.area = float(area)
    class_ids = np.array([CLASS_IDS[placed.class_name] for placed in scene.placed], np.uint8)
    return picture, class_ids[instances], parts
