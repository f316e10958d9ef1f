"""Resizing, colours and normalisation of whole batches of images, for the scripts that train on captions."""

import torch
from torch.nn import functional as F
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3, size, size): the mean of what a pixel covers when shrinking, bilinear when growing."""
    if images.shape[-1] == size:
        return images
    if images.shape[-1] > size:
        return F.interpolate(images, size=(size, size), mode="area")
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def colour_jitter(images: torch.Tensor, jitter: torch.Tensor) -> torch.Tensor:
    """Changes brightness, contrast and saturation of (B, 3, H, W) by the relative amounts in `jitter` (B, 3); hue is kept."""
    brightness, contrast, saturation = (1 + jitter)[:, :, None, None, None].unbind(1)
    images = images * brightness
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + (images - mean) * contrast
    grey = images.mean(dim=1, keepdim=True)
    return (grey + (images - grey) * saturation).clamp(0, 1)


def normalise(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (images - mean) / std
