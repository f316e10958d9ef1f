"""Attention of CLIP's last block from the similarities of a vision foundation model.

Paper: "ProxyCLIP: Proxy Attention Improves CLIP for Open-Vocabulary Segmentation", Lan et al., ECCV 2024, arXiv 2408.04883.
With x the unit features of the foundation model's last layer (class and register tokens left out) on its own grid,

    a_ij = gamma (<x_i, x_j> - beta mean_kl <x_k, x_l>),  negative ones masked,  A = softmax_j(a),  beta = 1.2, gamma = 3

every head of CLIP's last block mixes its values, resampled bilinearly to that grid, with A; residual and MLP are dropped.

Deviations: a token always sees itself, also where the mean is above 1 / beta and the formula would leave it nothing; position
embeddings of DINO are resampled to a size by transformers, not by DINO's factor; where the patches do not divide the picture it
is resized for the foundation model (the authors pad to a common multiple).
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from ...clip.clip_backbone import fit_to_patches

PROXY_TYPES = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")
"""Model types whose last hidden states are layer-normed tokens: class token, register tokens, then the patches."""


def proxy_features(proxy: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Unit features `(batch, h, w, dim)` of the foundation model.

    Args:
        proxy: one of `PROXY_TYPES`.
        pixel_values: `(batch, 3, height, width)`, normalised for CLIP; renormalised here with ImageNet's mean and deviation.
    """
    patch = proxy.config.patch_size
    pixels = fit_to_patches(renormalise(pixel_values), patch)
    grid = tuple(side // patch for side in pixels.shape[-2:])
    options = {"interpolate_pos_encoding": True} if proxy.config.model_type == "vit" else {}
    tokens = proxy(pixel_values=pixels, **options).last_hidden_state
    patches = tokens[:, tokens.shape[1] - grid[0] * grid[1] :]
    return nn.functional.normalize(patches, dim=-1).unflatten(1, grid)


def renormalise(pixel_values: torch.Tensor) -> torch.Tensor:
    """From CLIP's mean and deviation to ImageNet's."""
    clip_mean, clip_std, mean, std = (
        pixel_values.new_tensor(values).view(3, 1, 1)
        for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    return (pixel_values * clip_std + clip_mean - mean) / std


def proxy_attention(features: torch.Tensor, beta: float, gamma: float) -> torch.Tensor:
    """`(batch, h, w, dim)` unit features -> `(batch, h * w, h * w)` weights that sum to 1 over the last axis."""
    features = features.flatten(1, 2).float()
    similarity = features @ features.transpose(1, 2)
    scores = gamma * (similarity - beta * similarity.mean(dim=(1, 2), keepdim=True))
    itself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    return scores.masked_fill((scores < 0) & ~itself, float("-inf")).softmax(-1)


def guided_tokens(
    block: CLIPEncoderLayer, tokens: torch.Tensor, grid: tuple[int, int], features: torch.Tensor, beta: float, gamma: float
) -> torch.Tensor:
    """The last block on `tokens (batch, 1 + h * w, width)` with the proxy's attention.

    Returns:
        `(batch, H * W, width)` on the grid `(H, W)` of `features (batch, H, W, dim)`, without a class token.
    """
    attention = block.self_attn
    values = attention.v_proj(block.layer_norm1(tokens))[:, 1:].transpose(1, 2).unflatten(-1, grid)
    values = nn.functional.interpolate(values, size=tuple(features.shape[1:3]), mode="bilinear", align_corners=False)
    weights = proxy_attention(features, beta, gamma).to(values.dtype)  # the same for every head
    return attention.out_proj(weights @ values.flatten(2).transpose(1, 2))
