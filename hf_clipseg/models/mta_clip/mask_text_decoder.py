"""Mask2Former's transformer decoder over one sequence of mask queries and text tokens.

Paper: "Masked-attention Mask Transformer for Universal Image Segmentation", Cheng et al. 2022, arXiv 2112.01527; MTA-CLIP (Das
et al. 2024, arXiv 2407.21654) appends the text tokens to its queries.

The weights live in transformers' own modules, under the names of `Mask2FormerMaskedAttentionDecoder`, so its state dict fits
and its initialisation applies. The computation is restated for long sequences, with the same result:
- one boolean mask for all heads ("may attend", the opposite of `nn.MultiheadAttention`'s) and fused attention, unless the
  model's attention implementation is "eager";
- attention masks come from down-sampled pixel features: bilinear resizing commutes with the product over channels, so
  full-size masks of text tokens, which nobody reads, are never made.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerMaskedAttentionDecoderLayer,
    Mask2FormerMaskPredictor,
    Mask2FormerSinePositionEmbedding,
)

NUM_FEATURE_LEVELS = 3


class DecoderState(NamedTuple):
    """The sequence after one layer.

    Args:
        tokens: `(batch, tokens, dim)`, layer-normalised.
        mask_embeds: `(batch, tokens, dim)`; their product with the pixel features is the mask.
    """

    tokens: torch.Tensor
    mask_embeds: torch.Tensor


class MaskTextDecoderLayer(Mask2FormerMaskedAttentionDecoderLayer):
    """Masked cross-attention, self-attention over the whole sequence, feed-forward network, each followed by a norm."""

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        may_attend: torch.Tensor,
        fused: bool = True,
    ) -> torch.Tensor:
        """
        Args:
            tokens: `(batch, tokens, dim)`.
            positions: `(tokens, dim)`.
            keys: `(batch, pixels, dim)`, positions included.
            values: `(batch, pixels, dim)`.
            may_attend: `(batch, 1, tokens, pixels)` bool; no row is all False.
            fused: see `attention`.

        Returns:
            `(batch, tokens, dim)`.
        """
        attended = self.cross_attention(tokens + positions, keys, values, may_attend, fused)
        tokens = self.cross_attn_layer_norm(tokens + attended)
        tokens = self.self_attn_layer_norm(tokens + self.self_attention(tokens + positions, tokens, fused))
        return self.final_layer_norm(tokens + self.fc2(self.activation_fn(self.fc1(tokens))))

    def cross_attention(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, may_attend: torch.Tensor, fused: bool
    ) -> torch.Tensor:
        weights, biases = self.cross_attn.in_proj_weight.chunk(3), self.cross_attn.in_proj_bias.chunk(3)
        projected = [
            nn.functional.linear(states, weight, bias)
            for states, weight, bias in zip((queries, keys, values), weights, biases, strict=True)
        ]
        queries, keys, values = projected
        return self.cross_attn.out_proj(attention(queries, keys, values, self.cross_attn.num_heads, may_attend, fused))

    def self_attention(self, queries_and_keys: torch.Tensor, values: torch.Tensor, fused: bool) -> torch.Tensor:
        module = self.self_attn
        queries, keys = module.q_proj(queries_and_keys), module.k_proj(queries_and_keys)
        return module.out_proj(attention(queries, keys, module.v_proj(values), module.num_heads, fused=fused))


class MaskTextDecoder(nn.Module):
    """A stack of `MaskTextDecoderLayer`s that visit the pyramid's levels in turn.

    Args:
        config: `decoder_layers - 1` layers, as transformers counts them.

    The owning model initialises it in its `_init_weights`.
    """

    def __init__(self, config: Mask2FormerConfig):
        super().__init__()
        self.layers = nn.ModuleList(MaskTextDecoderLayer(config) for _ in range(config.decoder_layers - 1))
        self.layernorm = nn.LayerNorm(config.hidden_dim)
        self.mask_predictor = Mask2FormerMaskPredictor(config.hidden_dim, config.num_attention_heads, config.mask_feature_size)
        self.level_embed = nn.Parameter(torch.empty(NUM_FEATURE_LEVELS, config.hidden_dim))
        self.position_embedding = Mask2FormerSinePositionEmbedding(config.hidden_dim // 2, normalize=True)

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        feature_maps: Sequence[torch.Tensor],
        pixel_embeds: torch.Tensor,
        fused: bool = True,
    ) -> list[DecoderState]:
        """
        Args:
            tokens: `(batch, tokens, dim)`, mask queries and text tokens.
            positions: `(tokens, dim)`, learned.
            feature_maps: three `(batch, dim, h, w)`, coarse to fine.
            pixel_embeds: `(batch, dim, height, width)`.
            fused: see `attention`.

        Returns:
            The state after every layer.
        """
        values, keys, small_pixel_embeds = [], [], []
        for level, feature_map in enumerate(feature_maps):
            position = self.position_embedding(feature_map.shape[:2] + feature_map.shape[2:], tokens.device, feature_map.dtype)
            values.append(feature_map.flatten(2).transpose(1, 2) + self.level_embed[level])
            keys.append(values[-1] + position.flatten(2).transpose(1, 2))
            small_pixel_embeds.append(shrink(pixel_embeds, feature_map.shape[-2:]))

        state, states = self.state(tokens), []
        for index, layer in enumerate(self.layers):
            level = index % NUM_FEATURE_LEVELS
            may_attend = attention_mask(state.mask_embeds, small_pixel_embeds[level])
            tokens = layer(tokens, positions, keys[level], values[level], may_attend, fused)
            state = self.state(tokens)
            states.append(state)
        return states

    def state(self, tokens: torch.Tensor) -> DecoderState:
        tokens = self.layernorm(tokens)
        return DecoderState(tokens, self.mask_predictor.mask_embedder(tokens))


def attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    num_heads: int,
    may_attend: torch.Tensor | None = None,
    fused: bool = True,
) -> torch.Tensor:
    """Multi-head attention of projected `(batch, length, dim)` tensors; `may_attend` broadcasts over heads.

    Args:
        fused: less memory, and quicker except in the backward pass on a CPU.
    """
    queries, keys, values = (states.unflatten(-1, (num_heads, -1)).transpose(1, 2) for states in (queries, keys, values))
    if fused:
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=may_attend)
    else:
        scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
        if may_attend is not None:
            scores = scores.masked_fill(~may_attend, float("-inf"))
        mixed = scores.softmax(dim=-1).to(values.dtype) @ values
    return mixed.transpose(1, 2).flatten(2)


@torch.no_grad()
def shrink(pixel_embeds: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`(batch, dim, height, width)` -> `(batch, dim, h * w)`, resized as transformers resizes masks."""
    return nn.functional.interpolate(pixel_embeds, size=tuple(size), mode="bilinear", align_corners=False).flatten(2)


@torch.no_grad()
def attention_mask(mask_embeds: torch.Tensor, small_pixel_embeds: torch.Tensor) -> torch.Tensor:
    """Every token may attend to the pixels of its own mask, or to all of them where its mask is empty.

    Args:
        mask_embeds: `(batch, tokens, dim)`.
        small_pixel_embeds: `(batch, dim, pixels)`.

    Returns:
        `(batch, 1, tokens, pixels)` bool.
    """
    inside = torch.bmm(mask_embeds, small_pixel_embeds) >= 0  # a probability of one half or more
    return (inside | ~inside.any(dim=-1, keepdim=True))[:, None]
