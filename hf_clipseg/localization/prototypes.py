"""Vision prototypes: one embedding per class, learnt from images that are only tagged, in place of the class's text embedding.

Paper: VPL, Xu et al., AAAI 2025, arXiv 2412.19650 (a reconstruction: its code is not public). Text embeddings and image
features of CLIP lie apart (the modality gap), so a class is found better by what its regions look like than by its name:

    text prototypes -> refined maps -> region embeddings -> vision prototypes -> refined maps again -> ...

`prototype_rules` holds the objective, `localization` the maps.
"""

import dataclasses
import json
import os
from collections.abc import Sequence

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm.auto import tqdm

from ..atomic import replace_file
from ..clip.clip_backbone import ClipBackbone
from ..clip.text_bank import ClassName, average_templates, class_ids_of_names, normalise_class_names, weights_fingerprint
from ..processing.image_io import load_image
from .localization import (
    Localization,
    LocalizationSettings,
    localize,
    patch_features,
    similarity_localization,
    uniform_batches,
)
from .prototype_rules import PrototypeSettings, Regions, learn_prototypes, modality_gap, objective
from .pseudo_labels import refined_localization

VISION_SCALE = 25.0
"""Factor of vision-vision cosines before the softmax of the maps; CLIP's own scale belongs to vision-text cosines."""

IMAGES_AT_ONCE = 128
"""Decoded images held in memory while they are sorted into batches of one size and one number of classes."""

FORMAT = "hf_clipseg.vision_prototypes.v1"


@dataclasses.dataclass(frozen=True)
class VisionPrototypes:
    """Prototypes with all that says what they are valid for.

    Args:
        embeds: `(classes + background words, dim)` vision prototypes, L2-normalised, fp32, background last.
        text_embeds: the text prototypes they started from, same shape.
        class_names: the names of every class, display name first.
        background_words: what background is made of; empty where every pixel has a class.
        weights_hash: hash of the CLIP vision weights they were learnt with.
        details: settings, number of images and regions, templates and the modality gap before and after.
    """

    embeds: torch.Tensor
    text_embeds: torch.Tensor
    class_names: list[list[str]]
    background_words: list[str]
    weights_hash: str
    details: dict

    @classmethod
    def fit(
        cls,
        images: Sequence,
        image_labels,
        class_names: Sequence[ClassName],
        clip: ClipBackbone,
        processor,
        background_words: Sequence[str] = (),
        localization: LocalizationSettings | None = None,
        settings: PrototypeSettings | None = None,
        rounds: int = 1,
        batch_size: int = 16,
    ) -> "VisionPrototypes":
        """Learn prototypes from tagged images.

        ```python
        >>> model = VplForSemanticSegmentation.from_clip("openai/clip-vit-base-patch16")
        >>> prototypes = VisionPrototypes.fit(images, [["cat"], ["cat", "sofa"]], ["cat", "sofa"], model.clip, processor)
        >>> model.set_prototypes(prototypes)
        ```

        Args:
            images: PIL images, arrays, paths or bytes; any sequence that can be read more than once.
            image_labels: `(images, classes)` bool or 0/1, or per image a list of class names or ids.
            class_names: one name, or a list of synonyms, per class.
            clip: the backbone, usually `model.clip`, with its text encoder.
            processor: the `SegmentationProcessor`.
            background_words: see the class.
            localization: how maps are made; `cam_scale` applies to text prototypes, too, where it is given.
            settings: the rule and its numbers.
            rounds: how often maps and prototypes are made in turn.
            batch_size: images per forward pass.

        Raises:
            ValueError: images without labels, labels that are no class, a class that no image has, or no round.
        """
        classes = normalise_class_names(class_names)
        targets = encode_image_labels(image_labels, classes)
        check_all_classes_occur(targets, classes, len(images), rounds)
        localization, settings = localization or LocalizationSettings(), settings or PrototypeSettings()
        text_embeds = text_prototypes(clip, processor, classes, background_words)
        embeds = text_embeds
        for round_index in range(rounds):
            scale = localization.cam_scale if round_index == 0 else localization.cam_scale or VISION_SCALE
            maps = dataclasses.replace(localization, cam_scale=scale)
            regions = collect_regions(clip, processor, images, targets, embeds, maps, settings, batch_size)
            embeds = learn_prototypes(regions, text_embeds, settings)
        details = {
            "localization": dataclasses.asdict(localization),
            "settings": dataclasses.asdict(settings),
            "rounds": rounds,
            "num_images": len(images),
            "num_regions": len(regions),
            "templates": list(processor.templates),
            "objective": {
                "text": objective(regions, text_embeds, text_embeds, settings),
                "vision": objective(regions, embeds, text_embeds, settings),
            },
            "modality_gap": {"text": modality_gap(regions, text_embeds), "vision": modality_gap(regions, embeds)},
        }
        return cls(embeds, text_embeds, classes, list(background_words), vision_hash(clip), details)

    def save(self, path: str | os.PathLike) -> None:
        """One safetensors file, written to a temporary name first; an existing file stays whole if writing fails."""
        fields = {name: getattr(self, name) for name in ("class_names", "background_words", "weights_hash", "details")}
        metadata = {"format": FORMAT, **{name: json.dumps(value) for name, value in fields.items()}}
        tensors = {"embeds": self.embeds, "text_embeds": self.text_embeds}
        with replace_file(path) as partial:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike, clip: ClipBackbone | None = None) -> "VisionPrototypes":
        """Read what `save` wrote.

        Args:
            clip: where given, the prototypes must have been learnt with its weights.

        Raises:
            ValueError: no such file, another kind of file, or prototypes of other weights.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read ({error}). Pass a file that VisionPrototypes.save wrote.") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} holds no prototypes (format {metadata.get('format')!r}, expected {FORMAT!r}).")
        fields = {name: json.loads(metadata[name]) for name in ("class_names", "background_words", "weights_hash", "details")}
        prototypes = cls(tensors["embeds"], tensors["text_embeds"], **fields)
        if clip is not None:
            prototypes.check_weights(clip)
        return prototypes

    def check_weights(self, clip: ClipBackbone) -> None:
        """Raises ValueError where the prototypes belong to other CLIP weights."""
        actual = vision_hash(clip)
        if actual != self.weights_hash:
            raise ValueError(
                f"These prototypes were learnt with CLIP weights {self.weights_hash}, the model has {actual}: they mean "
                "nothing to it. Fit them again with this model, or load the checkpoint (and dtype) that they were made with."
            )

    def check_classes(self, class_names: Sequence[ClassName]) -> None:
        """Raises ValueError where the prototypes are of other classes, or in another order."""
        expected, actual = [names[0] for names in normalise_class_names(class_names)], [names[0] for names in self.class_names]
        if expected != actual:
            raise ValueError(f"These prototypes are for the classes {actual}, but {expected} are asked for. Fit them again.")


def encode_image_labels(image_labels, class_names: Sequence[ClassName]) -> torch.Tensor:
    """`(images, classes)` bool from a 0/1 matrix, or from a list of class names or ids per image.

    Raises:
        ValueError: a name or id that is no class, a matrix of another width, or values other than 0 and 1.
    """
    classes = normalise_class_names(class_names)
    if hasattr(image_labels, "shape"):
        matrix = torch.as_tensor(image_labels)
        if matrix.ndim != 2 or matrix.shape[1] != len(classes) or not ((matrix == 0) | (matrix == 1)).all():
            shape = f"{tuple(matrix.shape)} {matrix.dtype}"
            raise ValueError(f"image_labels must be (images, {len(classes)}) of 0 and 1, got {shape}.")
        return matrix.bool()
    ids = class_ids_of_names(classes)
    encoded = torch.zeros(len(image_labels), len(classes), dtype=torch.bool)
    for row, labels in enumerate(image_labels):
        if isinstance(labels, (str, int)):
            labels = [labels]
        for label in labels:
            class_id = ids.get(" ".join(label.lower().split())) if isinstance(label, str) else int(label)
            if class_id is None or not 0 <= class_id < len(classes):
                known = ", ".join(names[0] for names in classes[:20]) + (", ..." if len(classes) > 20 else "")
                raise ValueError(f"Image {row} has the label {label!r}, which is none of the {len(classes)} classes ({known}).")
            encoded[row, class_id] = True
    return encoded


def check_all_classes_occur(targets: torch.Tensor, classes: list[list[str]], num_images: int, rounds: int) -> None:
    if len(targets) != num_images:
        raise ValueError(f"Got {num_images} images and labels for {len(targets)}; every image needs its own.")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}.")
    empty = (~targets.any(1)).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(f"{len(empty)} images have no labels (the first: {empty[:5]}). Leave them out, or tag them.")
    missing = [names[0] for names, occurs in zip(classes, targets.any(0).tolist(), strict=True) if not occurs]
    if missing:
        raise ValueError(f"No image is tagged with {missing}: these classes cannot be learnt. Add images, or drop them.")


@torch.no_grad()
def text_prototypes(clip: ClipBackbone, processor, class_names, background_words: Sequence[str] = ()) -> torch.Tensor:
    """`(classes + background words, dim)`: templates averaged per name, then names per class, back on the sphere each time."""
    inputs = processor(class_names=[*class_names, *background_words], return_tensors="pt").to(clip.logit_scale.device)
    names = average_templates(clip.encode_text(inputs["input_ids"]), inputs["name_ids"])
    return average_templates(names, inputs["class_ids"]).float()


@torch.no_grad()
def collect_regions(
    clip: ClipBackbone,
    processor,
    images: Sequence,
    targets: torch.Tensor,
    prototypes: torch.Tensor,
    localization: LocalizationSettings,
    settings: PrototypeSettings,
    batch_size: int,
) -> Regions:
    """Regions of all images, in uniform batches; memory does not grow with the number of pixels."""
    parts, device = [], clip.logit_scale.device
    starts = range(0, len(targets), IMAGES_AT_ONCE)
    for start in tqdm(starts, desc=f"prototypes, {IMAGES_AT_ONCE} images each", mininterval=5, disable=len(starts) < 2):
        chunk = targets[start : start + IMAGES_AT_ONCE]
        loaded = [load_image(images[start + index]) for index in range(len(chunk))]
        for batch in uniform_batches(loaded, chunk, batch_size):
            labels = chunk[batch].to(device)
            pixel_values = processor(images=[loaded[index] for index in batch], return_tensors="pt")["pixel_values"]
            pixel_values = pixel_values.to(device, clip.logit_scale.dtype)
            if settings.region_maps == "similarity":
                features = patch_features(clip, pixel_values, localization)
                found = similarity_localization(features, prototypes, labels)
            else:
                found = localize(clip, pixel_values, prototypes, labels, localization)
            if settings.region_maps == "refined":
                pixels = torch.stack([torch.from_numpy(np.array(loaded[index])) for index in batch]).permute(0, 3, 1, 2)
                found = refined_localization(found, pixels, len(prototypes) > labels.shape[1], "crf")
            parts.append(region_embeddings(found, labels, prototypes, settings.sharpness))
    return Regions.concatenate(parts)


def region_embeddings(
    found: Localization, image_labels: torch.Tensor, prototypes: torch.Tensor, sharpness: float = 1.0
) -> Regions:
    """Patch features pooled with the maps.

    A patch counts for the class whose map is highest there, with the map to the power of `sharpness` as its weight. Where there
    are background words, it also counts for the word it is most similar to, with what no class claims as its weight.

    Args:
        found: maps of a batch.
        image_labels: `(batch, classes)` bool.
        prototypes: `(classes + background words, dim)`, L2-normalised.
    """
    maps = found.maps.flatten(2)  # (batch, slots, n)
    features = found.patch_embeds.flatten(1, 2).to(maps.dtype)
    highest = maps.amax(1, keepdim=True)
    weights = maps**sharpness * (maps == highest)
    class_ids = found.class_ids
    num_classes = image_labels.shape[1]
    words = prototypes[num_classes:].to(maps.dtype)
    if len(words):
        nearest = nn.functional.one_hot((features @ words.T).argmax(-1), len(words)).transpose(1, 2)  # (batch, words, n)
        weights = torch.cat([weights, nearest * found.left_over(maps) ** sharpness], dim=1)
        word_ids = torch.arange(num_classes, len(prototypes), device=class_ids.device)
        class_ids = torch.cat([class_ids, word_ids.expand(len(class_ids), -1)], dim=1)
    kept = weights.sum(-1) > 0  # unused slots have no weight, and a map may lose everywhere
    pooled = weights @ features  # (batch, slots + words, dim)
    background = image_labels.new_ones(len(image_labels), len(words), dtype=torch.bool)
    allowed = torch.cat([image_labels.bool(), background], dim=1)[:, None].expand(-1, pooled.shape[1], -1)
    return Regions(nn.functional.normalize(pooled[kept], dim=-1), class_ids[kept], allowed[kept])


def vision_hash(clip: ClipBackbone) -> str:
    """Content hash of the weights that image features depend on; the same with and without a text encoder."""
    return weights_fingerprint(nn.ModuleDict({"model": clip.vision_model, "projection": clip.visual_projection}))
