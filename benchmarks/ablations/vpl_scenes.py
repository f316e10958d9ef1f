"""Scenes with everything about a frozen CLIP computed once, for VPL's experiments. Masks score, and make oracles and tags.

Any data set with masks will do; scenes are squares of one size, cut from the middle of an image. A scene is tagged with what
its mask holds. Three roles, which share no scene: `fitted`, prototypes and segmenters are learnt from their tags; `chosen`,
settings are chosen by their masks; `unseen`, for the score.

Protocols: `full`, every pixel belongs to a class, or to background where the data set has one (`--background_words`);
`things` of Toyscapes, as in VOC: the 20 things are classes, the 10 stuff names are background words, and scenes without a
thing are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from hf_clipseg import SegmentationProcessor, VplForSemanticSegmentation
from hf_clipseg.constants import IGNORE_INDEX
from hf_clipseg.evaluation.metrics import ConfusionMatrix
from hf_clipseg.localization.localization import (
    Localization,
    LocalizationSettings,
    last_features,
    localize_tokens,
    run_to_last_block,
    similarity_localization,
)
from hf_clipseg.localization.prototype_rules import PrototypeSettings, Regions
from hf_clipseg.localization.prototypes import region_embeddings, text_prototypes
from hf_clipseg.localization.pseudo_labels import pseudo_labels, refined_localization
from hf_clipseg.models.vpl.vpl_losses import labels_on_grid
from hf_clipseg.toyscapes.scene_datasets import ToyscapesDataset
from hf_clipseg.toyscapes.scene_vocabulary import CLASS_NAMES, STUFF_NAMES, SYNONYMS, THING_NAMES
from training.data.sources import load_source

BATCH = 16


@dataclass(frozen=True)
class Protocol:
    """Classes, background words, and how a mask is renumbered.

    Attributes:
        renumber: `(256,)` from the data set's ids to labels; 255 stays.
        rows: `(256,)` from the data set's ids to prototypes, -1 where a label has several; for centroids of true regions.
    """

    class_names: list
    background_words: list
    renumber: np.ndarray
    rows: np.ndarray

    @property
    def num_labels(self) -> int:
        return len(self.class_names) + bool(self.background_words)

    def labels_of_rows(self) -> torch.Tensor:
        """The label of every prototype: 0 for all background words."""
        classes = torch.arange(len(self.class_names)) + bool(self.background_words)
        return torch.cat([classes, torch.zeros(len(self.background_words), dtype=torch.long)])


def table(values: Sequence[int], rest: int) -> np.ndarray:
    return np.array([*values, *[rest] * (256 - len(values))])


def toyscapes_protocol(name: str) -> Protocol:
    if name == "full":
        ids = range(len(CLASS_NAMES))
        return Protocol([[name, *SYNONYMS[name]] for name in CLASS_NAMES], [], table(ids, IGNORE_INDEX), table(ids, -1))
    rows = [[*THING_NAMES, *STUFF_NAMES].index(name) for name in CLASS_NAMES]
    labels = [row + 1 if row < len(THING_NAMES) else 0 for row in rows]
    names = [[name, *SYNONYMS[name]] for name in THING_NAMES]
    return Protocol(names, list(STUFF_NAMES), table(labels, IGNORE_INDEX), table(rows, -1))


def dataset_protocol(class_names: list, background_words: Sequence[str] = ()) -> Protocol:
    """Of a data set; with `background_words`, its id 0 is background."""
    labels = table(range(len(class_names)), IGNORE_INDEX)
    names = [[name] if isinstance(name, str) else list(name) for name in class_names]
    if not background_words:
        return Protocol(names, [], labels, table(range(len(names)), -1))
    return Protocol(names[1:], list(background_words), labels, table([-1, *range(len(names) - 1)], -1))


@dataclass(frozen=True)
class Sample:
    """A square image `(side, side, 3)` uint8, its mask `(side, side)`, and the ids of what is visible."""

    key: str
    image: np.ndarray
    mask: np.ndarray
    tags: list[int]


class SceneSource:
    """Scenes of Toyscapes or of any data set with masks, by role and seed.

    Toyscapes draws every role from its own split. Of another data set `validation_fraction` is held out (or there is a
    split "validation"); the first half of that is `chosen`, the other one `unseen`.
    """

    SPLITS = {"fitted": ("train", 1000), "chosen": ("validation", 3000), "unseen": ("test", 2000), "test": ("test", 0)}

    def __init__(self, dataset_name: str, side: int, validation_fraction: float | None = 0.4):
        self.name, self.side = dataset_name, side
        if dataset_name != "toyscapes":
            self.parts = [
                load_source(dataset_name, split, validation_fraction=validation_fraction) for split in ("train", "validation")
            ]
            if self.parts[0].class_names is None:
                raise ValueError(f"{dataset_name} does not name its classes: give it a classes.txt")

    def protocol(self, name: str, background_words: Sequence[str] = ()) -> Protocol:
        if self.name == "toyscapes":
            return toyscapes_protocol(name)
        return dataset_protocol(self.parts[0].class_names, background_words)

    def samples(self, role: str, seed: int, count: int) -> list[Sample]:
        """`count` scenes, or as many as there are; `test` is `unseen`, the same for all seeds."""
        if self.name == "toyscapes":
            split, first = self.SPLITS[role]
            offset = 0 if role in ("chosen", "test") else seed
            scenes = ToyscapesDataset(split, (self.side, self.side), count, first + offset)
            return [Sample(scene.key, scene.image, scene.mask, list(scene.image_labels)) for scene in scenes]
        source = self.parts[role != "fitted"]
        rows = np.random.default_rng(0).permutation(len(source))
        if role != "fitted":
            rows = rows[: len(rows) // 2] if role == "chosen" else rows[len(rows) // 2 :]
        if role in ("fitted", "unseen"):
            rows = np.random.default_rng(seed).permutation(rows)
        return [self.square(source[int(row)]) for row in rows[:count]]

    def square(self, item: dict) -> Sample:
        """The short side scaled to the square, the middle of the long one."""
        image, mask = item["image"].convert("RGB"), Image.fromarray(np.asarray(item["mask"]).astype(np.uint8))
        factor = self.side / min(image.size)
        size = tuple(max(self.side, round(length * factor)) for length in image.size)
        left, top = ((length - self.side) // 2 for length in size)
        box = (left, top, left + self.side, top + self.side)
        image = np.array(image.resize(size, Image.Resampling.BICUBIC).crop(box))
        mask = np.array(mask.resize(size, Image.Resampling.NEAREST).crop(box)).astype(np.int64)
        return Sample(str(item["key"]), image, mask, [int(label) for label in np.unique(mask) if label != IGNORE_INDEX])


def open_clip(folder: str, image_size: int = 128, templates: str = "ensemble"):
    """The localiser as VPL's shipped checkpoint has it, and its processor."""
    model = VplForSemanticSegmentation.from_clip(folder, attention_variant="value", keep_residual=False)
    size = {"shortest_edge": image_size, "longest_edge": 4 * image_size}
    return model, SegmentationProcessor.from_clip(folder, templates=templates, size=size)


class FrozenScenes:
    """Scenes with the input of CLIP's last block and the mean attention of the last `affinity_layers`.

    Attributes:
        images: `(scenes, side, side, 3)` uint8.
        truth: `(scenes, side, side)` int64 label of every pixel, in the numbers of the protocol.
        labels: `(scenes, classes)` bool.

    Raises:
        ValueError: no scene holds a class.
    """

    def __init__(self, model, processor, protocol: Protocol, samples: Sequence[Sample], affinity_layers: int):
        self.clip, self.processor, self.protocol = model.clip, processor, protocol
        labels = torch.zeros(len(samples), len(protocol.class_names), dtype=torch.bool)
        for row, sample in enumerate(samples):
            classes = protocol.renumber[sample.tags] - bool(protocol.background_words)
            labels[row, classes[(classes >= 0) & (classes < labels.shape[1])]] = True
        kept = labels.any(1)
        if not kept.any():
            raise ValueError("none of the scenes holds a class: there is nothing to localise")
        samples = [sample for sample, keep in zip(samples, kept.tolist(), strict=True) if keep]
        self.labels = labels[kept]
        self.keys = [sample.key for sample in samples]
        self.images = np.stack([sample.image for sample in samples])
        self.true_ids = np.stack([sample.mask for sample in samples]).astype(np.int64)  # the data set's own numbers
        self.truth = protocol.renumber[self.true_ids]
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
        attention = self.attention[batch].float() if settings.affinity_layers else None
        return localize_tokens(self.clip, self.tokens[batch], attention, self.grid, prototypes, self.labels[batch], settings)

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
        return last_features(self.clip, self.tokens[batch], self.grid, settings)

    def truth_on_grid(self) -> torch.Tensor:
        """Share of every patch that each label covers, `(scenes, n, labels)`; unlabelled pixels count for none."""
        truth, labels = torch.from_numpy(self.truth), torch.arange(self.protocol.num_labels).view(1, -1, 1, 1)
        shares = [F.adaptive_avg_pool2d((truth[batch, None] == labels).float(), self.grid) for batch in self.batches()]
        return torch.cat(shares).flatten(2).transpose(1, 2)

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
        rows_of, count = torch.from_numpy(self.protocol.rows), self.num_prototypes
        embeds, rows = [], []
        for batch in self.batches():
            features = self.features(batch, settings).flatten(1, 2)
            on_grid = rows_of[labels_on_grid(torch.from_numpy(self.true_ids[batch]), self.grid)].flatten(1)
            members = (on_grid[:, None] == torch.arange(count)[:, None]).float()  # (batch, prototypes, n)
            occurs = members.sum(-1) > 0
            embeds.append(F.normalize((members @ features)[occurs], dim=-1))
            rows.append(occurs.nonzero()[:, 1])
        rows = torch.cat(rows)
        return Regions(torch.cat(embeds), rows, F.one_hot(rows, count).bool())

    @property
    def num_prototypes(self) -> int:
        return len(self.protocol.class_names) + len(self.protocol.background_words)


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
