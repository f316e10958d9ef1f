"""CLIP as a dense feature extractor.

`ClipBackbone` has the child names of transformers' `CLIPModel`, so state dicts of one load into the other. It runs the vision
blocks one by one through their submodules: the blocks before the last as they are, the last with one of the attentions that
training-free segmentation has found to localise.

| `attention_variant` | attention of the last block | residual and MLP | source |
|---|---|---|---|
| `value` | none: every token keeps its own value | kept | MaskCLIP, Zhou et al. 2022, arXiv 2112.01071 |
| `sclip` | query-query + key-key | kept | SCLIP, Wang et al. 2023, arXiv 2312.01597 |
| `clearclip` | query-query | dropped | ClearCLIP, Lan et al. 2024, arXiv 2407.12442 |
| `naclip` | key-key with a Gaussian neighbourhood | dropped | NACLIP, Hajimiri et al. 2024, arXiv 2404.08181 |
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import CLIPConfig, CLIPTextModel, CLIPVisionModel
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer

KEEPS_RESIDUAL = {"value": True, "sclip": True, "clearclip": False, "naclip": False}
"""Attention variants, and whether their paper keeps the residual connection and the MLP of the last block."""

POSITION_INTERPOLATIONS = ("size", "scale_factor")
"""How the position embedding reaches another grid: to its size, as transformers does; or by the factor (cells + 0.1) / native
cells, as DINO's code did first, and SCLIP, ClearCLIP, NACLIP and ProxyCLIP after it. The latter's samples are off by a fraction
of a cell."""

NACLIP_STANDARD_DEVIATION = 5.0
TEXT_BATCH = 256


class DenseFeatures(NamedTuple):
    """What `ClipBackbone.encode` makes of a batch of images.

    Args:
        patch_embeds: `(batch, h, w, dim)`, L2-normalised, in the joint image-text space.
        hidden_states: input of the first block and output of every block, the last with the attention of the variant, each
            `(batch, 1 + h * w, width)`; None where not asked for.
    """

    patch_embeds: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None


class ClipBackbone(nn.Module):
    """The two CLIP encoders with their projections.

    Args:
        config: configuration of the CLIP checkpoint.
        with_text_encoder: `False` builds the vision half only, for deployment with baked class embeddings.
    """

    def __init__(self, config: CLIPConfig, with_text_encoder: bool = True):
        super().__init__()
        self.config = config
        self.vision_model = CLIPVisionModel._from_config(config.vision_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.text_model: Any = None
        self.text_projection: Any = None
        if with_text_encoder:
            self.text_model = CLIPTextModel._from_config(config.text_config)
            self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)

    @property
    def patch_size(self) -> int:
        return self.vision_model.embeddings.patch_size

    def dense_features(
        self,
        pixel_values: torch.Tensor,
        attention_variant: str = "value",
        keep_residual: bool | None = None,
        position_interpolation: str = "size",
    ) -> torch.Tensor:
        """Dense features in the joint image-text space: `encode` without hidden states.

        Args:
            pixel_values: `(batch, 3, height, width)`, any size.
            attention_variant: see the table at the top of this module.
            keep_residual: overrides whether the last block's residual and MLP are kept.
            position_interpolation: one of `POSITION_INTERPOLATIONS`.

        Returns:
            `(batch, ceil(height / patch), ceil(width / patch), dim)`, L2-normalised.
        """
        return self.encode(pixel_values, attention_variant, keep_residual, position_interpolation).patch_embeds

    def encode(
        self,
        pixel_values: torch.Tensor,
        attention_variant: str = "value",
        keep_residual: bool | None = None,
        position_interpolation: str = "size",
        output_hidden_states: bool = False,
    ) -> DenseFeatures:
        """One run through the encoder; arguments as in `dense_features`. Hidden states are kept where asked for."""
        tokens, grid = self.embed(pixel_values, position_interpolation)
        states = [tokens]
        for block in self.blocks[:-1]:
            tokens = block(tokens, None)
            if output_hidden_states:
                states.append(tokens)
        tokens = last_block_tokens(self.blocks[-1], tokens, grid, attention_variant, keep_residual)
        patch_embeds = self.project(tokens[:, 1:]).unflatten(1, grid)
        return DenseFeatures(patch_embeds, (*states, tokens) if output_hidden_states else None)

    @property
    def blocks(self) -> nn.ModuleList:
        """The vision transformer's blocks, first to last."""
        return self.vision_model.encoder.layers

    def embed(self, pixel_values: torch.Tensor, position_interpolation: str = "size") -> tuple[torch.Tensor, tuple[int, int]]:
        """Input of the first block `(batch, 1 + h * w, width)`, class token first, and the grid `(h, w)`."""
        pixel_values = fit_to_patches(pixel_values, self.patch_size)
        grid = (pixel_values.shape[-2] // self.patch_size, pixel_values.shape[-1] // self.patch_size)
        embeddings = self.vision_model.embeddings
        if position_interpolation == "size":
            tokens = embeddings(pixel_values, interpolate_pos_encoding=True)
        else:
            patches = embeddings.patch_embedding(pixel_values.to(embeddings.patch_embedding.weight.dtype))
            class_token = embeddings.class_embedding.expand(len(patches), 1, -1)
            tokens = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1)
            tokens = tokens + positions_by_factor(embeddings.position_embedding.weight, grid)
        return self.vision_model.pre_layrnorm(tokens), grid

    def hidden_states(self, pixel_values: torch.Tensor, position_interpolation: str = "size") -> tuple[torch.Tensor, ...]:
        """Input of the first block and the plain output of every block, each `(batch, 1 + h * w, width)`."""
        states = [self.embed(pixel_values, position_interpolation)[0]]
        for block in self.blocks:
            states.append(block(states[-1], None))
        return tuple(states)

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens of the last block -> joint space: layer norm, projection, unit length."""
        return nn.functional.normalize(self.visual_projection(self.vision_model.post_layernorm(tokens)), dim=-1)

    def encode_text(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Sentence embeddings `(prompts, dim)`, L2-normalised, of `input_ids (prompts, length)`, in bounded memory.

        No attention mask is needed: the text encoder is causal and reads at the end-of-text token.
        """
        if self.text_model is None:
            raise ValueError(
                "This checkpoint was saved without its text encoder, so class names cannot be encoded. Use the classes "
                "that are baked into it (leave out class_names), or load the full checkpoint."
            )
        pooled = [self.text_model(input_ids=chunk).pooler_output for chunk in input_ids.split(TEXT_BATCH)]
        return nn.functional.normalize(self.text_projection(torch.cat(pooled)), dim=-1)

    def text_weights(self) -> list[torch.Tensor]:
        """The weights that text embeddings depend on."""
        return [*self.text_model.parameters(), *self.text_projection.parameters()] if self.text_model is not None else []


def fit_to_patches(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Resize sides that are no multiple of the patch up to the next one, so that the grid covers the whole image."""
    height, width = (-(-side // patch_size) * patch_size for side in pixel_values.shape[-2:])
    if (height, width) == tuple(pixel_values.shape[-2:]):
        return pixel_values
    return nn.functional.interpolate(pixel_values, size=(height, width), mode="bilinear", align_corners=False)


def positions_by_factor(table: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """`(1 + n * n, width)` position embedding -> `(1 + h * w, width)`: bicubic by the factor (cells + 0.1) / n."""
    side = round((len(table) - 1) ** 0.5)
    if side * side == grid[0] * grid[1]:  # as the authors' code: other shapes of the native number of tokens are not resampled
        return table
    native = table[1:].T.reshape(1, -1, side, side)
    factors = tuple((cells + 0.1) / side for cells in grid)
    patches = nn.functional.interpolate(native.float(), scale_factor=factors, mode="bicubic").to(table.dtype)
    return torch.cat([table[:1], patches[0].flatten(1).T])


def last_block_tokens(
    block: CLIPEncoderLayer,
    tokens: torch.Tensor,
    grid: tuple[int, int],
    attention_variant: str,
    keep_residual: bool | None = None,
) -> torch.Tensor:
    """Run the last block on `tokens (batch, 1 + h * w, width)` with the attention of a variant; same shape back."""
    if attention_variant not in KEEPS_RESIDUAL:
        raise ValueError(f"attention_variant must be one of {sorted(KEEPS_RESIDUAL)}, got {attention_variant!r}.")
    if keep_residual is None:
        keep_residual = KEEPS_RESIDUAL[attention_variant]
    attended = attend(block.self_attn, block.layer_norm1(tokens), grid, attention_variant)
    if not keep_residual:
        return attended
    tokens = tokens + attended
    return tokens + block.mlp(block.layer_norm2(tokens))


def attend(attention: CLIPAttention, tokens: torch.Tensor, grid: tuple[int, int], attention_variant: str) -> torch.Tensor:
    """The attention of a variant, with the projections of `attention`; `(batch, tokens, width)` in and out."""
    values = attention.v_proj(tokens)
    if attention_variant == "value":
        return attention.out_proj(values)

    def heads(states: torch.Tensor) -> torch.Tensor:  # (batch, heads, tokens, head_dim)
        return states.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

    def self_similar(states: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        states = heads(states)
        return nn.functional.scaled_dot_product_attention(states, states, heads(values), bias, scale=attention.scale)

    if attention_variant == "sclip":
        mixed = self_similar(attention.q_proj(tokens)) + self_similar(attention.k_proj(tokens))
    elif attention_variant == "clearclip":
        mixed = self_similar(attention.q_proj(tokens))
    else:
        mixed = self_similar(attention.k_proj(tokens), gaussian_neighbourhood(grid, tokens))
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))


def gaussian_neighbourhood(grid: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """NACLIP's additive attention bias `(1 + h * w, 1 + h * w)`: a Gaussian around each patch, zero for the class token."""

    def axis(size: int) -> torch.Tensor:  # the Gaussian is separable
        positions = torch.arange(size, device=like.device, dtype=torch.float32)
        return torch.exp(-((positions[:, None] - positions) ** 2) / (2 * NACLIP_STANDARD_DEVIATION**2))

    # The Kronecker product of the two, written as a broadcast: `torch.kron` would fix the grid of an exported graph.
    patches = (axis(grid[0])[:, None, :, None] * axis(grid[1])[None, :, None, :]).flatten(2).flatten(0, 1)
    return nn.functional.pad(patches, (1, 0, 1, 0)).to(like.dtype)
