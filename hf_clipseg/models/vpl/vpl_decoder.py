"""The trainable part of VPL: fusion of all CLIP blocks and a light transformer decoder.

Paper: WeCLIP, Zhang et al., CVPR 2024, arXiv 2406.11189, whose segmenter VPL's reconstruction uses. Deviation: pre-norm blocks.
"""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


class BlockFusion(nn.Module):
    """Every block's patch features through an MLP of its own, then mixed.

    `(batch, blocks, n, width)` -> `(batch, n, dim)`.
    """

    def __init__(self, num_blocks: int, width: int, dim: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(num_blocks))
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Linear(width, dim), nn.ReLU(), nn.Linear(dim, dim)) for _ in range(num_blocks)
        )
        self.mix = nn.Linear(num_blocks * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, block_states: torch.Tensor) -> torch.Tensor:
        parts = zip(self.norms, self.projections, block_states.unbind(1), strict=True)
        projected = [projection(norm(states)) for norm, projection, states in parts]
        return self.dropout(self.mix(torch.cat(projected, dim=-1)))


class DecoderBlock(GradientCheckpointingLayer):
    """Pre-norm transformer block over patches."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        projected = self.query_key_value(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # each (batch, heads, n, head_dim)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.output(attended.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm2(tokens))


class SegmentationDecoder(nn.Module):
    """Patch features of all blocks -> fused features and decoded features, both `(batch, n, dim)`."""

    def __init__(self, num_blocks: int, width: int, dim: int, layers: int, heads: int, dropout: float):
        super().__init__()
        self.fusion = BlockFusion(num_blocks, width, dim, dropout)
        self.blocks = nn.ModuleList(DecoderBlock(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, block_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fused = tokens = self.fusion(block_states)
        for block in self.blocks:
            tokens = block(tokens)
        return fused, self.norm(tokens)
