"""Teaching a model new classes from a few tagged pictures: VPL's vision prototypes, round by round. No Gradio here.

Paper: VPL, arXiv 2412.19650. A handful of pictures instead of a data set: regions are pooled from plain similarity maps, which
is fast, and the prototypes are moved by the rule of `prototype_rules`.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from hf_clipseg import toyscapes
from hf_clipseg.checkpoints import LoadedCheckpoint
from hf_clipseg.drawing.comparison import NO_TRUTH
from hf_clipseg.drawing.overlay import overlay
from hf_clipseg.localization.localization import LocalizationSettings
from hf_clipseg.localization.prototype_rules import PrototypeSettings
from hf_clipseg.localization.prototypes import VisionPrototypes
from hf_clipseg.processing.upsampling import upsample

from .limits import Limits, check_text
from .scenes import truth_of

ROUNDS = 3
SHARPNESS = 1.0
OPACITY = 0.6
TOY_CLASSES = ("kite", "mushroom", "boat")
TOY_OTHERS = "sky, grass, sea, sand, road, snow"
PICTURES_EACH = 4
SIDE = 128


@dataclass(frozen=True)
class Lesson:
    """What a visitor teaches.

    Args:
        class_names: of the new classes.
        pictures: RGB.
        tags: of each picture, the names of the classes that it shows.
        others: what else the pictures show; not taught, and left unpainted.
    """

    class_names: list[str]
    pictures: list[Image.Image]
    tags: list[list[str]]
    others: list[str]


@dataclass(frozen=True)
class Taught:
    """What has been learnt after some rounds: prototypes, and a test picture with text and with vision prototypes."""

    prototypes: VisionPrototypes
    rounds: int
    by_text: Image.Image
    by_vision: Image.Image
    text_score: float | None
    vision_score: float | None

    @property
    def gap(self) -> tuple[float, float]:
        """Mean distance of the regions to their text prototypes, and to their vision prototypes."""
        gap = self.prototypes.details["modality_gap"]
        return gap["text"]["region_distance"], gap["vision"]["region_distance"]


def check_lesson(lesson: Lesson, limits: Limits | None = None) -> None:
    """Raises ValueError, in a visitor's words, for a lesson that nothing can be learnt from, or that is too long."""
    check_text(", ".join([*lesson.class_names, *lesson.others]), limits or Limits())
    if not lesson.class_names:
        raise ValueError("Name at least one class, and give it three to five pictures.")
    repeated = {name for name in lesson.class_names if lesson.class_names.count(name) > 1}
    if repeated:
        raise ValueError(f"{sorted(repeated)[0]!r} is there twice. Give every class a name of its own.")
    for name in lesson.class_names:
        if not any(name in tags for tags in lesson.tags):
            raise ValueError(f"{name!r} has no picture. Add three to five, or remove its name.")


def teach(
    loaded: LoadedCheckpoint, lesson: Lesson, test: Image.Image, check: Callable[[], None], rounds: int = ROUNDS
) -> Iterator[Taught]:
    """Learns prototypes in 1, 2, ... `rounds` rounds, and shows the test picture after each.

    Raises:
        ValueError: a lesson that nothing can be learnt from.
    """
    check_lesson(lesson)
    for count in range(1, rounds + 1):
        with loaded.running(check=check) as model:
            config = model.config
            prototypes = VisionPrototypes.fit(
                lesson.pictures, lesson.tags, lesson.class_names, model.clip, loaded.processor, lesson.others,
                LocalizationSettings(config.attention_variant, config.keep_residual, affinity_layers=0),
                PrototypeSettings("step", "similarity", sharpness=SHARPNESS), rounds=count,
            )  # fmt: skip
            features = features_of(model, loaded.processor, test)
        yield show(prototypes, features, lesson, test, count)


@torch.no_grad()
def features_of(model, processor, picture: Image.Image) -> torch.Tensor:
    """`(h, w, dim)`, L2-normalised."""
    pixel_values = processor(images=[picture], return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    return model.dense_features(pixel_values)[0]


def show(prototypes: VisionPrototypes, features: torch.Tensor, lesson: Lesson, test: Image.Image, rounds: int) -> Taught:
    names = [*lesson.class_names, *lesson.others]
    truth = truth_of(test, names)
    maps = [nearest(features, embeds, test) for embeds in (prototypes.text_embeds, prototypes.embeds)]
    unpainted = tuple(range(len(lesson.class_names), len(names)))
    pictures = [overlay(test, label_map, names, OPACITY, unpainted=unpainted) for label_map in maps]
    scores = [None if truth is None else taught_iou(label_map, truth, len(lesson.class_names)) for label_map in maps]
    return Taught(prototypes, rounds, *pictures, *scores)


def nearest(features: torch.Tensor, embeds: torch.Tensor, picture: Image.Image) -> np.ndarray:
    """`(height, width)` prototype that each pixel is most similar to."""
    cosines = features.float() @ embeds.to(features.device).T
    return upsample(cosines.permute(2, 0, 1), picture.size[::-1]).argmax(0).cpu().numpy()


def taught_iou(label_map: np.ndarray, truth: np.ndarray, num_taught: int) -> float | None:
    """Mean IoU over the taught classes that the picture shows, everything else one class; None where it shows none."""
    other = np.uint16(num_taught)
    truth = np.where((truth == NO_TRUTH) | (truth >= num_taught), other, truth)
    shown = [index for index in np.unique(truth) if index != other]
    predicted = np.minimum(label_map, num_taught)
    ious = [np.sum((predicted == i) & (truth == i)) / np.sum((predicted == i) | (truth == i)) for i in shown]
    return float(np.mean(ious)) if ious else None


@lru_cache(1)
def toy_lesson() -> Lesson:
    """Close-ups of three classes of Toyscapes, so that everybody can try it without a picture of their own."""
    found: dict[str, list[Image.Image]] = {name: [] for name in TOY_CLASSES}
    ids = {toyscapes.CLASS_NAMES.index(name): name for name in TOY_CLASSES}
    for index in itertools.count():
        scene = toyscapes.render(1, index, SIDE, SIDE, closeup=True)
        for class_id in ids.keys() & set(scene.image_labels):
            if len(found[ids[class_id]]) < PICTURES_EACH:
                found[ids[class_id]].append(Image.fromarray(scene.image))
        if all(len(pictures) == PICTURES_EACH for pictures in found.values()):
            break
    pictures = [(picture, name) for name, pictures in found.items() for picture in pictures]
    return Lesson(list(TOY_CLASSES), [p for p, _ in pictures], [[name] for _, name in pictures], split_names(TOY_OTHERS))


def split_names(text: str) -> list[str]:
    return [name.strip() for name in text.replace("\n", ",").split(",") if name.strip()]


def lesson_from(names: Sequence[str], pictures: Sequence[Sequence[Image.Image]], others: str) -> Lesson:
    """A lesson from the page's rows: a name and its pictures each; empty rows are left out."""
    rows = [(" ".join(name.split()), files) for name, files in zip(names, pictures, strict=True) if name.strip() or files]
    if any(files and not name for name, files in rows):
        raise ValueError("There are pictures without a name. Type what they show.")
    tagged = [(picture, name) for name, files in rows for picture in files]
    return Lesson([name for name, _ in rows], [p for p, _ in tagged], [[name] for _, name in tagged], split_names(others))
