"""The feature pyramid of any vision encoder: four levels that halve in size, for Mask2Former's pixel decoder.

Maps that an encoder lacks (a dilated network stops at stride 16) are max-pooled from the one before; the
blocks of a plain transformer are resampled as CLIP's are, see `FeaturePyramid`.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedConfig

from .clip_backbone import fit_to_patches
from .feature_pyramid import FeaturePyramid
from .vision_network import build_network, feature_maps, plan_maps, read_all_stages


class VisionPyramid(nn.Module):
    """`(batch, 3, height, width)` -> four maps, finest first.

    Args:
        config: of the encoder, see `vision_network`; its `out_features` are set to what is read.
        finest_scale: of a plain transformer, see `FeaturePyramid`.
        levels: number of maps.

    Batch norms keep the statistics that they were trained with, as in Mask2Former: the batches of segmentation are small.

    Raises:
        ImportError: a network of timm, without timm.
        ValueError: the encoder gives no maps.
    """

    def __init__(self, config: PreTrainedConfig, finest_scale: int, levels: int):
        super().__init__()
        read_all_stages(config)
        self.plan = plan_maps(config)
        self.network = build_network(config)
        self.resample = None
        self.channels: list[int] = []
        of_stride = dict(zip(self.plan.strides, self.plan.channels, strict=True))
        for level in range(levels):
            found = of_stride.get(self.plan.strides[0] * 2**level)
            self.channels.append(self.channels[-1] if found is None else found)
        if self.plan.is_plain:
            self.resample = FeaturePyramid(self.plan.channels[-1], finest_scale, levels)
            self.channels = [self.plan.channels[-1]] * levels
        self.divisor = max(self.plan.strides)

    def encode(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """The maps of the encoder that are read, finest first; images are stretched to whole cells of the coarsest."""
        maps = feature_maps(self.network, fit_to_patches(pixel_values, self.divisor))
        return [maps[index] for index in self.plan.indices]

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The levels from what `encode` gave."""
        if self.resample is not None:
            return self.resample([feature_map.permute(0, 2, 3, 1) for feature_map in maps])
        first = self.plan.strides[0]
        levels: list[torch.Tensor] = []
        of_stride = dict(zip(self.plan.strides, maps, strict=True))
        for level in range(len(self.channels)):
            found = of_stride.get(first * 2**level)
            levels.append(nn.functional.max_pool2d(levels[-1], 2, ceil_mode=True) if found is None else found)
        return levels

    def freeze_unread(self) -> None:
        """Parameters that no map depends on never learn; distributed training stumbles over them."""
        for name, parameter in self.network.named_parameters():
            if name in self.plan.unused:
                parameter.requires_grad_(False)

    def train(self, mode: bool = True):
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.network.parameters()):
            self.network.eval()  # frozen: neither dropout nor stochastic depth
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self
