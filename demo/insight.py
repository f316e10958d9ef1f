"""What a method sees on its way to a label map: views, prototypes, masks, groups, attention. No Gradio here."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn

from hf_clipseg.checkpoints import LoadedCheckpoint
from hf_clipseg.clip.clip_backbone import KEEPS_RESIDUAL
from hf_clipseg.drawing.comparison import heat_map
from hf_clipseg.drawing.overlay import overlay
from hf_clipseg.models.cocu.group_maps import segment_groups
from hf_clipseg.processing.inference import segment

CLASSES_SHOWN = 3
MASKS_SHOWN = 9
OPACITY = 0.6


@dataclass(frozen=True)
class Look:
    """What a method is asked to look at: a picture, prompts (None: the baked classes), and the name of each class."""

    picture: Image.Image
    to_encode: list[list[str]] | None
    names: list[str]


@dataclass(frozen=True)
class Method:
    """One method for people: its name, its idea in a sentence, its paper, and what there is to see.

    Args:
        see: gets the checkpoint, the look, and the check of a ticket; returns pictures with captions.
    """

    title: str
    idea: str
    paper: str
    see: Callable[[LoadedCheckpoint, Look, Callable], list[tuple[Image.Image, str]]]


def see_attention(loaded: LoadedCheckpoint, look: Look, check: Callable) -> list[tuple[Image.Image, str]]:
    """The same weights under every attention of the last block."""
    views = []
    for variant in KEEPS_RESIDUAL:
        with loaded.running(variant, check) as model:
            (label_map,) = segment(model, loaded.processor, [look.picture], look.to_encode)
        views.append((paint(look, label_map), f"attention: {variant}"))
    return [*views, feature_view(loaded, look, check)]


def see_views(loaded: LoadedCheckpoint, look: Look, check: Callable) -> list[tuple[Image.Image, str]]:
    """The map of every view, for the largest classes, and how present the global prompt thinks they are."""
    with loaded.running(check=check) as model, torch.no_grad():
        outputs = model(**inputs(loaded, model, look), output_view_maps=True)
        class_ids = name_classes(model, loaded, look)
    views = []
    for class_id in largest(outputs.logits):
        name = class_ids.index(class_id)
        presence = ""
        if outputs.presence_logits is not None:
            presence = f" · present {outputs.presence_logits[0, class_id].sigmoid():.0%}"
        for view in range(1, outputs.view_maps.shape[1]):
            picture = heat(look.picture, outputs.view_maps[0, view, name])
            views.append((picture, f"{look.names[class_id]}, view {view}{presence}"))
    return views


def see_student(loaded: LoadedCheckpoint, look: Look, check: Callable) -> list[tuple[Image.Image, str]]:
    """The student's features, and how each of the largest classes answers them."""
    with loaded.running(check=check) as model, torch.no_grad():
        logits = model(**inputs(loaded, model, look)).logits
    maps = [(heat(look.picture, logits[0, index]), f"{look.names[index]}: similarity") for index in largest(logits)]
    return [feature_view(loaded, look, check), *maps]


def see_prototypes(loaded: LoadedCheckpoint, look: Look, check: Callable) -> list[tuple[Image.Image, str]]:
    """The pixels that each vision prototype claims, what the decoder makes of them, and localisation maps."""
    with loaded.running(check=check) as model:
        pixel_values = inputs(loaded, model, look)["pixel_values"]
        with torch.no_grad():
            logits = model(pixel_values=pixel_values).logits
            cosines = model.dense_features(pixel_values)[0] @ model.prototypes[: len(model.config.class_names)].T
        found = largest(logits)
        tags = torch.zeros(1, len(model.config.class_names), dtype=torch.bool, device=pixel_values.device)
        tags[0, [index for index in found if index < tags.shape[1]]] = True
        maps = model.localization_maps(pixel_values, tags).detach()
    views = [
        (paint(look, enlarged(cosines.permute(2, 0, 1)[None], look.picture).argmax(0)), "pixels that the prototypes claim"),
        (paint(look, enlarged(logits, look.picture).argmax(0)), "what the decoder makes of them"),
    ]
    return views + [(heat(look.picture, maps[0, index]), f"{look.names[index]}: localisation map") for index in found]


def see_masks(loaded: LoadedCheckpoint, look: Look, check: Callable) -> list[tuple[Image.Image, str]]:
    """The masks that are surest of their class, with the text that each is nearest to."""
    with loaded.running(check=check) as model, torch.no_grad():
        outputs = model(**inputs(loaded, model, look), output_queries=True)
    probabilities = outputs.class_queries_logits[0].softmax(-1)[:, :-1]
    best, class_ids = probabilities.max(-1)
    views = []
    for query in best.argsort(descending=True)[:MASKS_SHOWN].tolist():
        caption = f"{look.names[class_ids[query]]} {best[query]:.2f}"
        if outputs.similarities is not None:
            text, prompt = divmod(int(outputs.similarities[0, query, :-1].argmax()), outputs.similarities.shape[-1])
            caption += f" · nearest text: {look.names[text]}, prompt {prompt + 1}"
        mask = enlarged(outputs.masks_queries_logits[:, query : query + 1].sigmoid(), look.picture)[0]
        views.append((heat_map(look.picture, mask), caption))
    return views


def see_groups(loaded: LoadedCheckpoint, look: Look, check: Callable) -> list[tuple[Image.Image, str]]:
    """The regions that it puts together, and the classes that they get."""
    with loaded.running(check=check) as model:
        groups, names = segment_groups(model, loaded.processor, look.picture, look.to_encode)
        (label_map,) = segment(model, loaded.processor, [look.picture], look.to_encode)
    return [
        (overlay(look.picture, groups, names, OPACITY), "groups, each with its best class"),
        (paint(look, label_map), "the classes that the groups get"),
    ]


METHODS = {
    "mask_clip": Method(
        "Training-free", "Compares every patch of a frozen CLIP with the text of every class; only the attention of its last "
        "block is changed, and the variants differ in how.", "2112.01071", see_attention,
    ),
    "mvp_seg": Method(
        "MVP-SEG", "Learns several prompts, views that may each look at another part of an object, and one that says which "
        "classes are in the picture at all.", "2304.06957", see_views,
    ),
    "mvp_seg_plus": Method(
        "MVP-SEG+", "Trains a student on what those prompts see, so that it needs no second look.", "2304.06957", see_student,
    ),
    "vpl": Method(
        "VPL", "Replaces the text of a class by a vision prototype, learnt from pictures that are only tagged, and teaches a "
        "decoder with the masks that follow from it.", "2412.19650", see_prototypes,
    ),
    "mta_clip": Method(
        "MTA-CLIP",
        "Lets masks and texts look at each other in one decoder, and pulls every mask towards the text of its class.",
        "2407.21654", see_masks,
    ),
    "cocu": Method(
        "CoCu and GroupViT",
        "Learns to put regions together from captions alone; CoCu adds the concepts that the captions leave out.",
        "2309.13505", see_groups,
    ),
}  # fmt: skip
"""Model type -> the method for people, in the order of the page's tabs."""


def inputs(loaded: LoadedCheckpoint, model, look: Look) -> dict:
    batch = loaded.processor(images=[look.picture], class_names=look.to_encode, return_tensors="pt").to(model.device)
    return {**batch, "pixel_values": batch["pixel_values"].to(model.dtype)}


def name_classes(model, loaded: LoadedCheckpoint, look: Look) -> list[int]:
    """The class of every name, in the order of the model's name embeddings."""
    if look.to_encode is None:
        return list(model.config.baked_class_ids())
    return loaded.processor(class_names=look.to_encode, return_tensors=None)["class_ids"]


def largest(logits: torch.Tensor) -> list[int]:
    """The classes `logits (1, classes, h, w)` give most cells to, largest first."""
    counts = logits[0].argmax(0).flatten().bincount(minlength=logits.shape[1])
    return [index for index in counts.argsort(descending=True)[:CLASSES_SHOWN].tolist() if counts[index]]


def enlarged(maps: torch.Tensor, picture: Image.Image) -> np.ndarray:
    """`(1, channels, h, w)` -> `(channels, height, width)` in the picture's size."""
    size = picture.size[::-1]
    return nn.functional.interpolate(maps.float(), size=size, mode="bilinear", align_corners=False)[0].cpu().numpy()


def heat(picture: Image.Image, values: torch.Tensor) -> Image.Image:
    """`(h, w)` of any range as a glow: the smallest value dark, the largest bright."""
    values = enlarged(values[None, None], picture)[0]
    low, high = values.min(), values.max()
    return heat_map(picture, (values - low) / max(high - low, 1e-6))


def paint(look: Look, label_map: np.ndarray) -> Image.Image:
    return overlay(look.picture, label_map, look.names, OPACITY)


def feature_view(loaded: LoadedCheckpoint, look: Look, check: Callable) -> tuple[Image.Image, str]:
    """Dense features as colours: their three principal directions as red, green and blue."""
    with loaded.running(check=check) as model, torch.no_grad():
        features = model.dense_features(inputs(loaded, model, look)["pixel_values"])
    return feature_colours(features, look.picture), "features: similar patches have similar colours"


def feature_colours(features: torch.Tensor, picture: Image.Image) -> Image.Image:
    """`(1, h, w, dim)` -> the picture's size."""
    flat = features[0].flatten(0, 1).float()
    flat = flat - flat.mean(0)
    axes = torch.linalg.svd(flat, full_matrices=False).Vh[:3]
    colours = (flat @ axes.T).unflatten(0, features.shape[1:3])
    low, high = colours.amin((0, 1)), colours.amax((0, 1))
    colours = (colours - low) / (high - low).clamp(min=1e-6)
    pixels = enlarged(colours.permute(2, 0, 1)[None], picture).transpose(1, 2, 0)
    return Image.fromarray((pixels * 255).round().astype(np.uint8))
