"""A pyramid of feature maps from a plain vision transformer, whose blocks all work at one resolution.

Source: BEiT's segmentation head, Bao et al. 2021, arXiv 2106.08254: four blocks, resampled by 4, 2, 1 and 1/2 with transposed
convolutions and max pooling. Deviations: each block's output is layer-normalised first, because the residual stream of CLIP
has a few channels far larger than the rest; the finest scale may be 2 or 1, for backbones with small patches.
"""

from collections.abc import Sequence

import torch
from torch import nn


class FeaturePyramid(nn.Module):
    """Outputs of several blocks -> maps that halve in size from level to level.

    Args:
        width: channels, of what goes in and of what comes out.
        finest_scale: size of the first map relative to the token grid, 1, 2 or 4.
        levels: number of maps.
    """

    def __init__(self, width: int, finest_scale: int, levels: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(levels))
        self.resamplers = nn.ModuleList(resampler(width, finest_scale / 2**level) for level in range(levels))

    def forward(self, block_maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """
        Args:
            block_maps: one `(batch, h, w, width)` per level, all of one size.

        Returns:
            One `(batch, width, h * scale, w * scale)` per level, finest first; odd sizes are rounded up.
        """
        return [
            resample(norm(block_map).permute(0, 3, 1, 2))
            for block_map, norm, resample in zip(block_maps, self.norms, self.resamplers, strict=True)
        ]


class DirectFeatures(nn.Linear):
    """A linear layer on the deepest map of an encoder, each of whose cells is normalised first, as in the pyramid."""

    def forward(self, feature_map: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """`(batch, channels, h, w)` -> `(batch, dim, *size)`, resized bilinearly."""
        cells = feature_map.permute(0, 2, 3, 1).to(self.weight.dtype)
        projected = super().forward(nn.functional.layer_norm(cells, cells.shape[-1:])).permute(0, 3, 1, 2)
        return nn.functional.interpolate(projected, size=tuple(size), mode="bilinear", align_corners=False)


def resampler(width: int, scale: float) -> nn.Module:
    """`(batch, width, h, w)` -> `(batch, width, h * scale, w * scale)`."""
    if scale == 4:
        first, second = (nn.ConvTranspose2d(width, width, kernel_size=2, stride=2) for _ in range(2))
        return nn.Sequential(first, nn.GroupNorm(1, width), nn.GELU(), second)
    if scale == 2:
        return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
    if scale == 1:
        return nn.Identity()
    stride = round(1 / scale)
    return nn.MaxPool2d(kernel_size=stride, stride=stride, ceil_mode=True)  # a 1 x 1 grid stays one cell
