"""Toyscapes scenes with everything about a frozen CLIP computed once, for VPL's experiments. Masks score, and make oracles.

Two protocols: `full`, every pixel belongs to one of 30 classes; `things`, as in VOC: the 20 things are classes, the 10 stuff
names are background words, and scenes without a thing are left out.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from hf_clipseg import SegmentationProcessor, VplForSemanticSegmentation
from hf_clipseg.evaluation.metrics import ConfusionMatrix
from hf_clipseg.localization.localization import (
    Localization,
    LocalizationSettings,
    class_slots,
    gradient_cams,
    last_block,
    run_to_last_block,
    similarity_localization,
    spread,
)
from hf_clipseg.localization.prototype_rules import PrototypeSettings, Regions
from hf_clipseg.localization.prototypes import encode_image_labels, region_embeddings, text_prototypes
from hf_clipseg.localization.pseudo_labels import pseudo_labels, refined_localization
from hf_clipseg.models.vpl.vpl_losses import labels_on_grid
from hf_clipseg.toyscapes.scene_datasets import ToyscapesDataset
from hf_clipseg.toyscapes.scene_vocabulary import CLASS_NAMES, STUFF_NAMES, SYNONYMS, THING_NAMES

BATCH = 16


@dataclass(frozen=True)
class Protocol:
    """Classes, background words, and how a mask of Toyscapes is renumbered (a table of its 30 ids)."""

    class_names: list
    background_words: list
    renumber: np.ndarray

    @property
    def num_labels(self) -> int:
        return len(self.class_names) + bool(self.background_words)


def make_protocol(name: str) -> Protocol:
    if name == "full":
        return Protocol([[name, *SYNONYMS[name]] for name in CLASS_NAMES], [], np.arange(len(CLASS_NAMES)))
    renumber = np.array([THING_NAMES.index(name) + 1 if name in THING_NAMES else 0 for name in CLASS_NAMES])
    return Protocol([[name, *SYNONYMS[name]] for name in THING_NAMES], list(STUFF_NAMES), renumber)


def open_clip(folder: str, image_size: int = 128, templates: str = "ensemble"):
    """The localiser as VPL's shipped checkpoint has it, and its processor."""
    model = VplForSemanticSegmentation.from_clip(folder, attention_variant="value", keep_residual=False)
    size = {"shortest_edge": image_size, "longest_edge": 4 * image_size}
    return model, SegmentationProcessor.from_clip(folder, templates=templates, size=size)


class FrozenScenes:
    """Scenes of a split, with the input of CLIP's last block and the mean attention of the last `affinity_layers`.

    Attributes:
        images: `(scenes, 128, 128, 3)` uint8.
        truth: `(scenes, 128, 128)` int64 label of every pixel, in the numbers of the protocol.
        labels: `(scenes, classes)` bool.
    """

    def __init__(self, model, processor, protocol: Protocol, split: str, seed: int, count: int, affinity_layers: int):
        self.clip, self.processor, self.protocol = model.clip, processor, protocol
        scenes = ToyscapesDataset(split, (128, 128), count, seed)
        names = [names[0] for names in protocol.class_names]
        kept = [(scene, tags) for scene in map(scenes.__getitem__, range(count)) if (tags := visible(scene, names))]
        self.keys = [scene.key for scene, _ in kept]
        self.images = np.stack([scene.image for scene, _ in kept])
        self.true_ids = np.stack([scene.mask for scene, _ in kept]).astype(np.int64)  # Toyscapes' own numbers
        self.truth = protocol.renumber[self.true_ids]
        self.labels = encode_image_labels([tags for _, tags in kept], protocol.class_names)
        parts = [run_to_last_block(self.clip, self.pixel_values(batch), affinity_layers) for batch in self.batches()]
        self.tokens = torch.cat([tokens for tokens, _, _ in parts])
        self.attention = torch.cat([attention.half() for _, attention, _ in parts]) if affinity_layers else None
        self.grid = parts[0][2]

    def __len__(self) -> int:
        return len(self.images)

    def batches(self) -> list[slice]:
        return [slice(start, min(start + BATCH, len(self))) for start in range(0, len(self), BATCH)]

    def pixel_values(self, batch: slice) -> torch.Tensor:
        return self.processor(images=[Image.fromarray(image) for image in self.images[batch]])["pixel_values"]

    def pixels(self, batch: slice) -> torch.Tensor:
        return torch.from_numpy(self.images[batch]).permute(0, 3, 1, 2)

    def text(self) -> torch.Tensor:
        return text_prototypes(self.clip, self.processor, self.protocol.class_names, self.protocol.background_words)

    def localize(self, batch: slice, prototypes: torch.Tensor, settings: LocalizationSettings) -> Localization:
        """What `hf_clipseg.localization.localization.localize` gives, from the cached activations."""
        labels = self.labels[batch]
        class_ids, used = class_slots(labels)
        maps, features = gradient_cams(self.clip, self.tokens[batch], self.grid, prototypes, labels, class_ids, settings)
        maps = maps * used[:, :, None, None]
        if settings.affinity_layers:
            maps = spread(maps, self.attention[batch].float(), settings.affinity_threshold)
        return Localization(maps, class_ids, used, features)

    def pseudo_masks(
        self, prototypes: torch.Tensor, settings: LocalizationSettings, refinement: str = "none"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels and confidence of all scenes, `(scenes, 128, 128)`."""
        parts = []
        for batch in self.batches():
            found = self.localize(batch, prototypes, settings)
            parts.append(pseudo_labels(found, self.pixels(batch), bool(self.protocol.background_words), refinement))
        return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))

    def score(self, predictions) -> float:
        """mIoU in percent of label maps of all scenes."""
        confusion = ConfusionMatrix(self.protocol.num_labels)
        confusion.update(predictions, self.truth)
        return 100 * confusion.mean_iou()

    def features(self, batch: slice, settings: LocalizationSettings) -> torch.Tensor:
        """`patch_features` from the cached activations."""
        with torch.no_grad():
            block, tokens = self.clip.blocks[-1], self.tokens[batch]
            hidden = last_block(block, tokens, block.layer_norm1(tokens), self.grid, settings)
            return self.clip.project(hidden[:, 1:]).unflatten(1, self.grid)

    def regions(self, prototypes: torch.Tensor, maps: LocalizationSettings, settings: PrototypeSettings) -> Regions:
        """`collect_regions` from the cached activations."""
        parts = []
        for batch in self.batches():
            labels = self.labels[batch]
            if settings.region_maps == "similarity":
                found = similarity_localization(self.features(batch, maps), prototypes, labels)
            else:
                found = self.localize(batch, prototypes, maps)
            if settings.region_maps == "refined":
                found = refined_localization(found, self.pixels(batch), bool(self.protocol.background_words), "crf")
            parts.append(region_embeddings(found, labels, prototypes, settings.sharpness))
        return Regions.concatenate(parts)

    def image_level_regions(self, settings: LocalizationSettings, num_prototypes: int) -> Regions:
        """The mean patch of an image stands for each of its classes: InMaP's own choice of x_i."""
        means = [self.features(batch, settings).flatten(1, 2).mean(1) for batch in self.batches()]
        rows, class_ids = self.labels.nonzero(as_tuple=True)
        allowed = F.pad(self.labels[rows], (0, num_prototypes - self.labels.shape[1]), value=True)
        return Regions(F.normalize(torch.cat(means)[rows], dim=-1), class_ids, allowed)

    @torch.no_grad()
    def true_regions(self, settings: LocalizationSettings) -> Regions:
        """One region per scene and true class (and background word), from the ground truth: for oracles only."""
        names = [*(names[0] for names in self.protocol.class_names), *self.protocol.background_words]
        row_of = torch.tensor([names.index(name) for name in CLASS_NAMES])
        embeds, rows = [], []
        for batch in self.batches():
            features = self.features(batch, settings).flatten(1, 2)
            on_grid = row_of[labels_on_grid(torch.from_numpy(self.true_ids[batch]), self.grid)].flatten(1)
            members = F.one_hot(on_grid, len(names)).float().transpose(1, 2)  # (batch, prototypes, n)
            occurs = members.sum(-1) > 0
            embeds.append(F.normalize((members @ features)[occurs], dim=-1))
            rows.append(occurs.nonzero()[:, 1])
        rows = torch.cat(rows)
        return Regions(torch.cat(embeds), rows, F.one_hot(rows, len(names)).bool())


def visible(scene, names: list[str]) -> list[str]:
    """The scene's tags that are classes of the protocol."""
    return [CLASS_NAMES[label] for label in scene.image_labels if CLASS_NAMES[label] in names]


def oracle_prototypes(regions: Regions, centred: bool) -> torch.Tensor:
    """Mean true region of every prototype; the same centring as the learnt ones."""
    weights = regions.allowed.float()
    means = weights.T @ regions.embeds / weights.sum(0).clamp(min=1)[:, None]
    return F.normalize(means - means.mean(0) if centred else means, dim=1)


def without_affinity(settings: LocalizationSettings) -> LocalizationSettings:
    return replace(settings, affinity_layers=0)
