"""Where in an image are the classes it is tagged with? Gradient CAM through CLIP's last block, spread by its own attention.

Papers: CLIP-ES, Lin et al., CVPR 2023, arXiv 2212.09506 (softmax gradient CAM, class-aware affinity); VPL, Xu et al., AAAI
2025, arXiv 2412.19650 (the same maps with vision prototypes). Works for any prototype matrix, text or vision.

1. All blocks but the last run without gradients. The score of class c is its cosine with the mean patch token, times a scale,
   after a softmax over the image's classes and all background prototypes.
2. Its gradient with respect to the last block's `layer_norm1` output A, averaged over patches, weighs the channels of A.
3. The map is spread along head-averaged attention, made doubly stochastic, from inside the boxes around its strong responses.

Deviations:
- The gradient of the softmax probability p_c is p_c (1 - p_c) times that of z_c minus the mean of its competitors z_k, weighted
  by their softmax. Maps are scaled to [0, 1], so the factor cancels; we leave it out. The maps are the same, but do not vanish
  when p_c is near 1, in half precision, or where an image has one class and no background.
- `attention_variant` may replace the attention of the last block in step 1 by one that localises (see `clip_backbone`).
- `read_out="softmax"` is no paper's: in place of steps 1 and 2, a softmax over the same rows at every patch. Gradient maps are
  stretched to [0, 1] class by class, which hides how well prototypes tell classes apart; a softmax shows it. Step 3 then moves
  shares, without stretching.
- Images of one batch are treated together: pass j takes the j-th class of every image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import nn
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer

from ..clip.clip_backbone import KEEPS_RESIDUAL, ClipBackbone, attend
from ..processing.image_io import batches_of_one_size
from .affinity import move_along, scale_to_one, spread

PLAIN = "plain"
"""The attention variant of an unchanged last block, beside those of `clip_backbone`."""

READ_OUTS = ("gradient", "softmax")
"""How a prototype becomes a map: see `LocalizationSettings`."""


@dataclass(frozen=True)
class LocalizationSettings:
    """How localisation maps are made.

    Args:
        attention_variant: attention of the last block in scores and features: `"plain"`, or a variant of `clip_backbone`.
        keep_residual: whether a variant keeps the residual and the MLP of the last block; None follows its paper.
        cam_scale: factor of the cosines before the softmax; None takes CLIP's own logit scale (right for text prototypes).
        affinity_layers: how many of the last blocks' attentions are averaged; 0 leaves the affinity step out.
        affinity_threshold: share of a map's maximum that counts as a strong response.
        read_out: `"gradient"`: gradient CAM, every map scaled to [0, 1]; `"softmax"`: the softmax of a patch's cosines with the
            prototypes of the image's classes and all background.
        read_out_temperature: the cosines are divided by it before the softmax of `"softmax"`.
    """

    attention_variant: str = PLAIN
    keep_residual: bool | None = None
    cam_scale: float | None = None
    affinity_layers: int = 8
    affinity_threshold: float = 0.4
    read_out: str = "gradient"
    read_out_temperature: float = 0.04

    def __post_init__(self):
        if self.read_out not in READ_OUTS or self.read_out_temperature <= 0:
            raise ValueError(
                f"read_out must be one of {list(READ_OUTS)} and read_out_temperature positive, got {self.read_out!r} and "
                f"{self.read_out_temperature}."
            )
        if self.attention_variant not in (PLAIN, *KEEPS_RESIDUAL):
            known = [PLAIN, *sorted(KEEPS_RESIDUAL)]
            raise ValueError(f"attention_variant must be one of {known}, got {self.attention_variant!r}.")
        if self.affinity_layers < 0 or not 0 <= self.affinity_threshold <= 1:
            raise ValueError(
                f"affinity_layers must be >= 0 and affinity_threshold in [0, 1], got {self.affinity_layers} and "
                f"{self.affinity_threshold}."
            )


@dataclass(frozen=True)
class Localization:
    """Maps of the classes an image is tagged with, in compact form: slot j of an image is its j-th class.

    Args:
        maps: `(batch, slots, h, w)` in [0, 1]; 0 in unused slots.
        class_ids: `(batch, slots)`, the class of each slot.
        used: `(batch, slots)` bool, False where an image has fewer classes than slots.
        patch_embeds: `(batch, h, w, dim)`, L2-normalised features of the last block in the joint space.
        shares: whether maps are shares of a patch, which sum to at most 1, rather than each scaled to [0, 1] by itself.
    """

    maps: torch.Tensor
    class_ids: torch.Tensor
    used: torch.Tensor
    patch_embeds: torch.Tensor
    shares: bool = False

    def left_over(self, maps: torch.Tensor) -> torch.Tensor:
        """What no class claims of `maps (batch, slots, ...)`, these or the same at another size: `(batch, 1, ...)`."""
        return 1 - (maps.sum(1, keepdim=True).clamp(max=1) if self.shares else maps.amax(1, keepdim=True))

    def per_class(self, num_classes: int) -> torch.Tensor:
        """The maps as `(batch, num_classes, h, w)`, 0 for classes an image is not tagged with."""
        batch, _, height, width = self.maps.shape
        index = self.class_ids[:, :, None, None].expand_as(self.maps)
        return self.maps.new_zeros(batch, num_classes, height, width).scatter_add(1, index, self.maps)


def localize(
    clip: ClipBackbone,
    pixel_values: torch.Tensor,
    prototypes: torch.Tensor,
    image_labels: torch.Tensor,
    settings: LocalizationSettings,
) -> Localization:
    """Localisation maps of a batch.

    Args:
        clip: the backbone; its weights get no gradient.
        pixel_values: `(batch, 3, height, width)`, any size.
        prototypes: `(classes + background words, dim)`, L2-normalised, background last.
        image_labels: `(batch, classes)` bool or 0/1: the classes each image is tagged with.
        settings: see `LocalizationSettings`.

    Raises:
        ValueError: an image without labels, or more classes than prototypes.
    """
    class_slots(image_labels)  # refused before anything is computed
    if image_labels.shape[1] > len(prototypes):
        raise ValueError(f"image_labels has {image_labels.shape[1]} classes, but there are {len(prototypes)} prototypes.")
    tokens, attention, grid = run_to_last_block(clip, pixel_values, settings.affinity_layers)
    return localize_tokens(clip, tokens, attention, grid, prototypes, image_labels.bool(), settings)


def localize_tokens(
    clip: ClipBackbone,
    tokens: torch.Tensor,
    attention: torch.Tensor | None,
    grid: tuple[int, int],
    prototypes: torch.Tensor,
    image_labels: torch.Tensor,
    settings: LocalizationSettings,
) -> Localization:
    """`localize` from what `run_to_last_block` gave."""
    if settings.read_out == "softmax":
        features = last_features(clip, tokens, grid, settings)
        found = softmax_localization(features, prototypes, image_labels, settings.read_out_temperature)
    else:
        class_ids, used = class_slots(image_labels)
        maps, features = gradient_cams(clip, tokens, grid, prototypes, image_labels, class_ids, settings)
        found = Localization(maps * used[:, :, None, None], class_ids, used, features)
    if not settings.affinity_layers:
        return found
    assert attention is not None
    move = move_along if found.shares else spread
    return replace(found, maps=move(found.maps, attention, settings.affinity_threshold))


def uniform_batches(images: Sequence[Image.Image], image_labels: torch.Tensor, batch_size: int) -> list[list[int]]:
    """Indices of `images` in batches of one size and one number of classes, so that nothing is stretched or padded."""
    by_count: dict[int, list[int]] = {}
    for index, count in enumerate(image_labels.sum(1).tolist()):
        by_count.setdefault(count, []).append(index)
    batches = []
    for group in by_count.values():
        parts = batches_of_one_size([images[index] for index in group], batch_size)
        batches += [[group[position] for position in part] for part in parts]
    return batches


def class_slots(image_labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The classes of each image, ascending: ids `(batch, slots)` and which slots are used, `(batch, slots)` bool.

    Raises:
        ValueError: an image without labels.
    """
    counts = image_labels.bool().sum(1)
    if counts.numel() and counts.min() == 0:
        rows = (counts == 0).nonzero()[:, 0].tolist()
        raise ValueError(
            f"Images {rows[:10]} of this batch have no labels, so there is nothing to localise in them. Leave them out, or tag "
            "them with at least one class."
        )
    slots = int(counts.max()) if counts.numel() else 0
    class_ids = (~image_labels.bool()).byte().argsort(dim=1, stable=True)[:, :slots]
    return class_ids, torch.arange(slots, device=counts.device) < counts[:, None]


@torch.no_grad()
def run_to_last_block(
    clip: ClipBackbone, pixel_values: torch.Tensor, affinity_layers: int
) -> tuple[torch.Tensor, torch.Tensor | None, tuple[int, int]]:
    """Input of the last block `(batch, 1 + n, width)`, mean attention of the last blocks `(batch, n, n)`, and the grid."""
    tokens, grid = clip.embed(pixel_values)
    first = max(0, len(clip.blocks) - affinity_layers)
    attentions = []
    for index, block in enumerate(clip.blocks):
        if index >= first:
            attentions.append(patch_attention(block.self_attn, block.layer_norm1(tokens)))
        if index < len(clip.blocks) - 1:
            tokens = block(tokens, None)
    return tokens, torch.stack(attentions).mean(0) if attentions else None, grid


def patch_attention(attention: CLIPAttention, normed: torch.Tensor) -> torch.Tensor:
    """Attention between patches, averaged over heads: `(batch, 1 + n, width)` -> `(batch, n, n)` in fp32.

    The class token takes part in the softmax, then is left out.
    """
    return mean_attention(attention, normed)[:, 1:, 1:]


def mean_attention(attention: CLIPAttention, normed: torch.Tensor) -> torch.Tensor:
    """Attention between tokens `(batch, n, width)`, averaged over heads, `(batch, n, n)` in fp32.

    Computed here because fused attention returns none.
    """
    queries, keys = (
        projection(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj)
    )
    weights = (queries @ keys.transpose(-1, -2)).float().mul_(attention.scale).softmax(-1)
    return weights.mean(1)


def last_block(block: CLIPEncoderLayer, tokens, normed, grid: tuple[int, int], settings: LocalizationSettings) -> torch.Tensor:
    """The last block from its `layer_norm1` output `normed` on, so that gradients can start there."""
    variant, keep_residual = settings.attention_variant, settings.keep_residual
    if variant == PLAIN:
        attended, keep_residual = block.self_attn(normed)[0], True
    else:
        attended = attend(block.self_attn, normed, grid, variant)
    if not (KEEPS_RESIDUAL[variant] if keep_residual is None else keep_residual):
        return attended
    tokens = tokens + attended
    return tokens + block.mlp(block.layer_norm2(tokens))


@torch.enable_grad()
def gradient_cams(
    clip: ClipBackbone,
    tokens: torch.Tensor,
    grid: tuple[int, int],
    prototypes: torch.Tensor,
    image_labels: torch.Tensor,
    class_ids: torch.Tensor,
    settings: LocalizationSettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps `(batch, slots, h, w)` in [0, 1] and patch features `(batch, h, w, dim)`; arguments as in `localize`."""
    block = clip.blocks[-1]
    normed = block.layer_norm1(tokens).detach().requires_grad_()
    patches = last_block(block, tokens, normed, grid, settings)[:, 1:]
    projected = clip.visual_projection(clip.vision_model.post_layernorm(patches))
    pooled = nn.functional.normalize(projected.float().mean(1), dim=-1)
    scale = clip.logit_scale.detach().exp() if settings.cam_scale is None else settings.cam_scale
    logits = scale * pooled @ prototypes.float().T
    scores = contrast_scores(logits, image_labels, class_ids)

    activations = normed.detach()[:, 1:]
    maps = []
    for slot in range(class_ids.shape[1]):
        (gradient,) = torch.autograd.grad(scores[:, slot].sum(), normed, retain_graph=slot < class_ids.shape[1] - 1)
        channel_weights = gradient[:, 1:].mean(1)
        maps.append((activations @ channel_weights[:, :, None])[..., 0].relu().float())
    patch_embeds = nn.functional.normalize(projected.detach(), dim=-1)
    return scale_to_one(torch.stack(maps, dim=1)).unflatten(-1, grid), patch_embeds.unflatten(1, grid)


@torch.no_grad()
def patch_features(clip: ClipBackbone, pixel_values: torch.Tensor, settings: LocalizationSettings) -> torch.Tensor:
    """The `patch_embeds (batch, h, w, dim)` of `localize`, for less: no attention maps, no gradients."""
    tokens, _, grid = run_to_last_block(clip, pixel_values, 0)
    return last_features(clip, tokens, grid, settings)


@torch.no_grad()
def last_features(
    clip: ClipBackbone, tokens: torch.Tensor, grid: tuple[int, int], settings: LocalizationSettings
) -> torch.Tensor:
    """L2-normalised patch features `(batch, h, w, dim)` from the input of the last block."""
    block = clip.blocks[-1]
    return clip.project(last_block(block, tokens, block.layer_norm1(tokens), grid, settings)[:, 1:]).unflatten(1, grid)


@torch.no_grad()
def softmax_localization(
    patch_embeds: torch.Tensor, prototypes: torch.Tensor, image_labels: torch.Tensor, temperature: float
) -> Localization:
    """Shares of every patch: the softmax of its cosines with the image's classes and all background. Shapes: see `localize`."""
    class_ids, used = class_slots(image_labels)
    cosines = patch_embeds.flatten(1, 2).float() @ prototypes.float().T  # (batch, n, classes + background)
    background = torch.ones_like(cosines[:, 0, image_labels.shape[1] :], dtype=torch.bool)
    allowed = torch.cat([image_labels.bool(), background], dim=1)[:, None]
    shares = (cosines / temperature).masked_fill(~allowed, float("-inf")).softmax(-1)
    maps = shares.gather(2, class_ids[:, None].expand(-1, cosines.shape[1], -1)).transpose(1, 2) * used[:, :, None]
    return Localization(maps.unflatten(2, patch_embeds.shape[1:3]), class_ids, used, patch_embeds, shares=True)


def similarity_localization(patch_embeds: torch.Tensor, prototypes: torch.Tensor, image_labels: torch.Tensor) -> Localization:
    """Cosines with the prototypes of the image's classes, each map scaled to [0, 1]; shapes as in `localize`."""
    class_ids, used = class_slots(image_labels)
    cosines = patch_embeds.flatten(1, 2).float() @ prototypes[: image_labels.shape[1]].float().T  # (batch, n, classes)
    maps = cosines.gather(2, class_ids[:, None].expand(-1, cosines.shape[1], -1)).transpose(1, 2)
    maps = scale_to_one(maps) * used[:, :, None]
    return Localization(maps.unflatten(2, patch_embeds.shape[1:3]), class_ids, used, patch_embeds)


def contrast_scores(logits: torch.Tensor, image_labels: torch.Tensor, class_ids: torch.Tensor) -> torch.Tensor:
    """z_c minus the softmax-weighted mean of its competitors, for the class c of every slot.

    Args:
        logits: `(batch, classes + background)`.
        image_labels: `(batch, classes)` bool; competitors are the image's other classes and all background.
        class_ids: `(batch, slots)`.

    Returns:
        `(batch, slots)`, with a gradient parallel to that of the softmax probability.
    """
    background = torch.ones_like(logits[:, image_labels.shape[1] :], dtype=torch.bool)
    allowed = torch.cat([image_labels, background], dim=1)
    itself = nn.functional.one_hot(class_ids, logits.shape[1]).bool()
    competitors = allowed[:, None] & ~itself  # (batch, slots, classes + background)
    weights = logits.detach()[:, None].masked_fill(~competitors, float("-inf")).softmax(-1)
    weights = weights.masked_fill(~competitors, 0)  # also where there is no competitor, and the softmax is NaN
    return logits.gather(1, class_ids) - (weights * logits[:, None]).sum(-1)
