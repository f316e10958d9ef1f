"""What captions leave out: CoCu's archive for a few captioned pictures, on one page. No Gradio here.

Paper: CoCu, arXiv 2309.13505, sections 3.2 and 3.3, by the functions that curate whole data sets (`training.curation`).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from hf_clipseg import toyscapes
from hf_clipseg.checkpoints import LoadedCheckpoint
from hf_clipseg.localization.prototypes import text_prototypes
from training.curation.concepts import expand, rank

from .class_lists import COCO_STUFF, COCO_THINGS

POOL = 300  # captioned scenes that the visitor's pictures find their neighbours among
NEIGHBOURS = 12
SIDE = 96
AT_ONCE = 32
SHOWN = 12
TOY_EXAMPLES = (2, 7, 9, 20)  # of the test split


@dataclass(frozen=True)
class Captioned:
    """A picture with its caption, and where it is a scene the classes that it truly shows."""

    picture: Image.Image
    caption: str
    shown: frozenset[str] | None = None


@dataclass(frozen=True)
class Archive:
    """What curation found for one picture.

    Args:
        named: concepts of its own caption.
        found: further concepts, with their ranking scores, best first.
    """

    captioned: Captioned
    named: list[str]
    found: list[tuple[str, float]]


@dataclass(frozen=True)
class Pool:
    """Embedded captioned pictures: `(images, dim)`, and the concepts that each caption names."""

    embeds: np.ndarray
    concepts: list[set[int]]


def curate(
    loaded: LoadedCheckpoint, captioned: Sequence[Captioned], vocabulary: Sequence[str], pool: Pool | None, check: Callable
) -> list[Archive]:
    """The archive of every picture: concepts of its neighbours' captions, ranked by how well they fit it.

    Args:
        pool: further captioned pictures; None looks among the visitor's own only.

    Raises:
        ValueError: no picture, or a picture without a caption.
    """
    if not captioned:
        raise ValueError("There is no captioned picture yet. Add one, or press the button with the scenes.")
    if any(not item.caption.strip() for item in captioned):
        raise ValueError("A picture has no caption. Write one line per picture, in their order.")
    with loaded.running(check=check) as model:
        embeds = embed_pictures(model, loaded.processor, [item.picture for item in captioned])
        texts = text_prototypes(model.clip, loaded.processor, [[name] for name in vocabulary]).cpu().numpy()
    named = [concepts_of(item.caption, vocabulary) for item in captioned]
    everything = embeds if pool is None else np.concatenate([embeds, pool.embeds])
    everyones = named if pool is None else [*named, *pool.concepts]
    return [archive(item, index, vocabulary, texts, everything, everyones) for index, item in enumerate(captioned)]


def archive(item: Captioned, index: int, vocabulary, texts: np.ndarray, embeds: np.ndarray, named: list[set[int]]) -> Archive:
    similarities = embeds @ embeds[index]
    similarities[index] = -np.inf
    neighbours = np.argsort(-similarities, kind="stable")[:NEIGHBOURS]
    neighbours = neighbours[np.isfinite(similarities[neighbours])]
    concepts, member = expand(named[index], [named[neighbour] for neighbour in neighbours])
    scores = rank(texts[concepts] @ embeds[[index, *neighbours]].T, member)
    order = np.argsort(-scores, kind="stable")
    found = [(vocabulary[concepts[i]], float(scores[i])) for i in order if concepts[i] not in named[index]]
    return Archive(item, [vocabulary[concept] for concept in sorted(named[index])], found[:SHOWN])


@torch.no_grad()
def embed_pictures(model, processor, pictures: Sequence[Image.Image]) -> np.ndarray:
    """`(pictures, dim)` embeddings of whole pictures, L2-normalised."""
    embeds = []
    for picture in pictures:
        pixel_values = processor(images=[picture], return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
        embeds.append(model.clip.project(model.clip.hidden_states(pixel_values)[-1][:, :1])[:, 0])
    return torch.cat(embeds).float().cpu().numpy()


def concepts_of(caption: str, vocabulary: Sequence[str]) -> set[int]:
    """Ids of the concepts that a caption names as whole words, in the singular or plural; Toyscapes' synonyms count."""
    words = " " + " ".join(re.findall(r"[\w-]+", caption.lower())) + " "
    ids = {name: index for index, name in enumerate(vocabulary)}
    names = {noun: name for noun, name in toyscapes.CAPTION_NOUNS.items() if name in ids} | {name: name for name in vocabulary}
    found: set[int] = set()
    for noun in sorted(names, key=len, reverse=True):  # "wheat field" before "field"
        for form in (noun, f"{noun}s"):
            if f" {form} " in words:
                found.add(ids[names[noun]])
                words = words.replace(f" {form} ", " | ")
    return found


def vocabulary_for(is_toy: bool) -> list[str]:
    """Toyscapes' classes, or the things and stuff of COCO for photographs."""
    return list(toyscapes.CLASS_NAMES) if is_toy else [name.strip() for name in f"{COCO_THINGS}, {COCO_STUFF}".split(",")]


@lru_cache(1)
def toy_examples() -> list[Captioned]:
    scenes = [toyscapes.render(0, index, 192, 256, split="test") for index in TOY_EXAMPLES]
    return [
        Captioned(Image.fromarray(s.image), s.caption, frozenset(toyscapes.CLASS_NAMES[i] for i in s.image_labels))
        for s in scenes
    ]


class PoolCache:
    """Captioned scenes embedded by one checkpoint, made when first asked for."""

    def __init__(self):
        self._pools: dict[str, Pool] = {}

    def get(self, source: str, loaded: LoadedCheckpoint, check: Callable) -> Pool:
        if source not in self._pools:
            scenes = [toyscapes.render(2, index, SIDE, SIDE) for index in range(POOL)]
            with loaded.running(check=check) as model:
                embeds = embed_batches(model, loaded.processor, [scene.image for scene in scenes])
            concepts = [concepts_of(scene.caption, toyscapes.CLASS_NAMES) for scene in scenes]
            self._pools[source] = Pool(embeds, concepts)
        return self._pools[source]


@torch.no_grad()
def embed_batches(model, processor, images: Sequence[np.ndarray]) -> np.ndarray:
    """As `embed_pictures`, for images of one size."""
    embeds = []
    for start in range(0, len(images), AT_ONCE):
        batch = [Image.fromarray(image) for image in images[start : start + AT_ONCE]]
        pixel_values = processor(images=batch, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
        embeds.append(model.clip.project(model.clip.hidden_states(pixel_values)[-1][:, :1])[:, 0])
    return torch.cat(embeds).float().cpu().numpy()
