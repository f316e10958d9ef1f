"""Batches of pictures with captions: augmented, some of them put together into mosaics, with prompts of nouns beside them.

A mosaic is several pictures in a square, each with its own caption: what is known of where things are comes from how the batch
was laid out, not from a mask. What a step looks like is drawn from (seed, step), so that the data set, the collate function and
all processes agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from ..curation.tokenization import NounVocabulary
from ..data.augmentation import colour_jitter, normalise, resize
from ..data.caption_cache import CachedCaptions
from ..engine.loop import SampleKey
from .caption_styles import CaptionStyles
from .mosaics import put_together


class Layout(NamedTuple):
    """The images of a step: their side in pixels, and how many pictures lie along it."""

    size: int
    pictures: int


@dataclass(frozen=True)
class Layouts:
    """`layouts(step)` -> how the pictures of a step lie.

    Args:
        image_sizes: of whole pictures, one is drawn; a mosaic has the largest.
        mosaic_sides: pictures along a side, one is drawn; 1 is a picture by itself.
        batch_size: of one process; whole mosaics.
        patch_size: of the encoder; pictures end where patches do.
    """

    image_sizes: tuple[int, ...]
    mosaic_sides: tuple[int, ...]
    seed: int
    batch_size: int
    patch_size: int

    def __post_init__(self):
        for side in self.mosaic_sides:
            if side < 1 or self.batch_size % side**2 or max(self.image_sizes) % (side * self.patch_size):
                raise ValueError(
                    f"--mosaic_sides {side}: {side} x {side} pictures must divide --train_batch_size {self.batch_size}, and "
                    f"{side} patches of {self.patch_size} pixels the largest of --image_sizes, {max(self.image_sizes)}."
                )

    def __call__(self, step: int) -> Layout:
        random = np.random.default_rng((self.seed, step))
        size = self.image_sizes[random.integers(len(self.image_sizes))]
        pictures = self.mosaic_sides[random.integers(len(self.mosaic_sides))]
        return Layout(size if pictures == 1 else max(self.image_sizes), pictures)


class AugmentedCaptions(torch.utils.data.Dataset):
    """Pairs (image, caption) with the numbers their augmentation is seeded by; indexed with a `SampleKey`.

    Args:
        withheld: nouns that no loss on patches may see. In a mosaic a caption speaks to the patches of its own picture, so
            those with such a noun in any caption are replaced there by others.
    """

    def __init__(
        self,
        cache: CachedCaptions,
        layouts: Layouts,
        styles: CaptionStyles | None = None,
        withheld: NounVocabulary | None = None,
    ):
        self.cache, self.layouts, self.styles = cache, layouts, styles
        self.for_mosaics: Sequence[int] = range(len(cache.captions))
        if withheld:
            self.for_mosaics = [i for i, own in enumerate(cache.captions) if not any(map(withheld.find, own))]
            if not self.for_mosaics and max(layouts.mosaic_sides) > 1:
                raise ValueError("every caption has a noun of --unseen, so there is none for mosaics: pass --mosaic_sides 1")

    def __len__(self) -> int:
        return len(self.cache.captions)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        random = np.random.default_rng((self.layouts.seed, key.epoch, key.index))
        alone = self.layouts(key.step).pictures == 1
        index = key.index if alone else self.for_mosaics[key.index % len(self.for_mosaics)]
        captions = self.cache.captions[index]
        image = torch.from_numpy(np.array(self.cache.images[index])).permute(2, 0, 1).float() / 255
        image = image.flip(2) if random.random() < 0.5 else image
        caption = captions[random.integers(len(captions))]
        if self.styles:
            image, caption = self.styles(image, caption, random)
        return {
            "image": image,
            "caption": caption,
            "jitter": torch.from_numpy(random.uniform(-0.2, 0.2, 3)).float(),  # brightness, contrast, saturation
            "step": key.step,
        }


class Collate:
    """List of samples -> tensors. Noun prompts are drawn from (seed, step), so all processes agree on them.

    Args:
        nouns: of the noun-level loss, without the withheld ones; None where there is no such loss.
        templates: what stands around a noun, one is drawn for each.
        withheld: see `AugmentedCaptions`. A caption with one of them is no complete list of nouns.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        nouns: NounVocabulary | None,
        templates: Sequence[str],
        layouts: Layouts,
        withheld: NounVocabulary | None = None,
    ):
        self.tokenizer, self.nouns, self.templates = tokenizer, nouns, tuple(templates)
        self.layouts, self.withheld = layouts, withheld

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        step = samples[0]["step"]
        size, pictures = self.layouts(step)
        captions = [sample["caption"] for sample in samples]
        images = resize(torch.stack([sample["image"] for sample in samples]), size // pictures)
        images = colour_jitter(images, torch.stack([sample["jitter"] for sample in samples]))
        batch = {"pixel_values": normalise(put_together(images, pictures)), "input_ids": self.tokenize(captions)}
        return batch if self.nouns is None else batch | self.noun_inputs(self.nouns, captions, step)

    def noun_inputs(self, nouns: NounVocabulary, captions: list[str], step: int) -> dict[str, torch.Tensor]:
        """A prompt per noun, which nouns a caption mentions, and whether it mentions none that is withheld."""
        mentioned = torch.zeros(len(captions), len(nouns), dtype=torch.bool)
        for row, caption in enumerate(captions):
            mentioned[row, list(nouns.find(caption))] = True
        complete = torch.tensor([not (self.withheld and self.withheld.find(caption)) for caption in captions])
        prompts = self.noun_prompts(nouns, np.random.default_rng((self.layouts.seed, step, 1)))
        return {"noun_input_ids": self.tokenize(prompts), "mentioned": mentioned, "complete": complete}

    def noun_prompts(self, nouns: NounVocabulary, random: np.random.Generator) -> list[str]:
        """One sentence per concept: a random one of its words in a random template."""
        words = [concept[random.integers(len(concept))] for concept in nouns.concepts]
        return [self.templates[random.integers(len(self.templates))].format(word) for word in words]

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        return self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")["input_ids"]
