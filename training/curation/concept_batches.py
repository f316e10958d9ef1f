"""Training samples with captions and the concepts drawn for them, and their batches."""

import argparse
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from ..data.augmentation import colour_jitter, normalise, resize
from ..data.caption_cache import CachedCaptions
from ..engine.loop import SampleKey
from .concept_table import ConceptTable
from .concepts import random_for
from .tokenization import NOUN_TEMPLATES


class CaptionsWithConcepts(torch.utils.data.Dataset):
    """Samples with the texts of one step; indexed with a `SampleKey`, and drawn from (seed, epoch, key) alone.

    Args:
        table: None leaves concepts out.
    """

    def __init__(self, cache: CachedCaptions, table: ConceptTable | None, args: argparse.Namespace):
        self.cache, self.table, self.args = cache, table, args
        self.archive_size = table.longest_archive() if table else 0  # the same on all processes

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        name = self.cache.keys[key.index]
        random = random_for(f"{name} {key.epoch}", self.args.seed)
        captions = self.cache.captions[key.index] or [""]
        caption = captions[random.integers(len(captions))]
        image = torch.from_numpy(np.array(self.cache.images[key.index])).permute(2, 0, 1)
        sample = {
            "image": image.flip(2) if random.random() < 0.5 else image,
            "jitter": torch.from_numpy(random.uniform(-0.2, 0.2, 3)).float(),
            "caption": " ".join(caption.split()),
        }
        if self.table is not None:
            names = self.table.sample(name, self.args.sampling, self.args.num_concepts, self.args.temperature, random)
            missing = self.args.num_concepts - len(names)
            templates = [NOUN_TEMPLATES[random.integers(len(NOUN_TEMPLATES))] for _ in names]
            prompts = [template.format(concept) for template, concept in zip(templates, names, strict=True)]
            sample["concepts"] = prompts + missing * [sample["caption"]]
            sample["concept_ids"] = [self.table.id_of(concept) for concept in names] + missing * [-1]
            if not self.args.contrast_archive:
                archive = [self.table.id_of(concept) for concept in self.table.archive(name, self.args.sampling)]
                sample["archive_ids"] = archive + (self.archive_size - len(archive)) * [-1]
        return sample


class Collate:
    """List of samples -> arguments of the model."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, size: int):
        self.tokenizer, self.size = tokenizer, size

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images = resize(torch.stack([sample["image"] for sample in samples]).float() / 255, self.size)
        images = colour_jitter(images, torch.stack([sample["jitter"] for sample in samples]))
        batch = {"pixel_values": normalise(images), "caption_input_ids": self.tokens([sample["caption"] for sample in samples])}
        if "concepts" in samples[0]:
            concepts = self.tokens([text for sample in samples for text in sample["concepts"]])
            batch["concept_input_ids"] = concepts.unflatten(0, (len(samples), -1))
        for name in ("concept_ids", "archive_ids"):
            if name in samples[0]:
                batch[name] = torch.tensor([sample[name] for sample in samples])
        return batch

    def tokens(self, texts: list[str]) -> torch.Tensor:
        """Concepts are shorter than captions, so each kind is padded by itself."""
        return self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")["input_ids"]
