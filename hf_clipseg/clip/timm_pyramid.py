"""The feature pyramid of a convolutional network from timm: OpenAI's CLIP ResNets, which transformers does not have.

Optional: `pip install timm`. DenseCLIP (Rao et al. 2022, arXiv 2112.01518) and MTA-CLIP (arXiv 2407.21654) report on these.
"""

import torch
from torch import nn

from .clip_backbone import fit_to_patches

STRIDES = [4, 8, 16, 32]


class TimmPyramid(nn.Module):
    """`(batch, 3, height, width)`, resized up to multiples of 32 -> four maps at 1/4 to 1/32 of that, finest first.

    Args:
        name: timm's name, such as `resnet50_clip.openai` or `resnet101_clip.openai`. Its weights are random until
            `load_pretrained` or a checkpoint fills them.

    Raises:
        ImportError: timm is not installed.
        ValueError: the network has other strides.
    """

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.network = create_network(name, pretrained=False)
        strides = self.network.feature_info.reduction()
        if strides != STRIDES:
            raise ValueError(
                f"timm_backbone {name!r} has features at strides {strides}, expected {STRIDES}. Choose a network with four "
                "stages, such as 'resnet50_clip.openai'."
            )

    @property
    def channels(self) -> list[int]:
        """Channels of each map, finest first."""
        return self.network.feature_info.channels()

    def load_pretrained(self) -> None:
        """Fill in timm's weights, from the Hub or its local cache."""
        self.network.load_state_dict(create_network(self.name, pretrained=True).state_dict())

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        return self.network(fit_to_patches(pixel_values, STRIDES[-1]))


def create_network(name: str, pretrained: bool) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"timm_backbone {name!r} needs timm: pip install timm. Leave timm_backbone out for CLIP's vision transformer."
        ) from error
    return timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=(1, 2, 3, 4))
