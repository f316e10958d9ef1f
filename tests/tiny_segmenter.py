"""A tiny random MaskCLIP model with its processor, for tests of what stands on top of a method."""

import torch

from hf_clipseg import MaskClipConfig, MaskClipForSemanticSegmentation, SegmentationImageProcessor, SegmentationProcessor

from .tiny import tiny_clip_config, tiny_tokenizer

CLASS_NAMES = ["sky", "sea", "boat"]
PATCH_SIZE = 4


def tiny_segmenter(**config_fields):
    """`(model, processor)`; images enter the model with a short side of 32 pixels."""
    torch.manual_seed(0)
    clip_config = tiny_clip_config(patch_size=PATCH_SIZE).to_dict()
    model = MaskClipForSemanticSegmentation(MaskClipConfig(clip_config=clip_config, **config_fields)).eval()
    image_processor = SegmentationImageProcessor(size={"shortest_edge": 32, "longest_edge": 128}, size_divisor=PATCH_SIZE)
    return model, SegmentationProcessor(image_processor, tiny_tokenizer())
