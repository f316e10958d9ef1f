"""What MTA-CLIP and the pixel-text baseline are trained on: new random crops at every step, or the features of fixed ones.

A frozen encoder costs more than a small decoder, and its features need computing once; a run that would not read them all, or
an encoder that learns, takes random crops.
"""

import argparse
import logging

import torch

from hf_clipseg.clip.text_bank import weights_fingerprint

from ..settings.dataset_defaults import CLIP_ON_CPU, FROZEN_ON_CPU
from .feature_cache import CropSettings, cached_maps
from .masked_crops import MaskedCrops, RandomCropSettings

logger = logging.getLogger(__name__)


def make_dataset(args: argparse.Namespace, source, model, encoder: torch.nn.Module, processor) -> torch.utils.data.Dataset:
    """Random crops of images, or the features of fixed ones.

    Args:
        args: of `training.train_mta_clip`.
        encoder: the part of `model` that reads images.

    Raises:
        ValueError: `--crops_per_image` with an encoder that learns, or other crops than squares of `--short_side`.
    """
    if not args.crops_per_image or cache_is_waste(args, len(source)):
        crops = RandomCropSettings(
            args.crop_size[0],
            args.crop_size[1],
            short_side=args.short_side,
            scale=tuple(args.scale),
            max_class_share=args.max_class_share,
            balanced_share=args.balanced_share,
            colour_jitter=args.colour_jitter,
            hue_jitter=args.hue_jitter,
            label_stride=args.label_stride,
            image_mean=tuple(processor.image_processor.image_mean),
            image_std=tuple(processor.image_processor.image_std),
        )
        return MaskedCrops(source, crops, seed=args.seed, keep=args.keep_images)
    if not features_are_fixed(args):
        raise ValueError(
            f"--crops_per_image needs a frozen encoder, --backbone_factor 0 (got {args.backbone_factor}) without --lora_rank, "
            f"and square crops of the size of --short_side (got {args.crop_size} and {args.short_side})."
        )
    if unused := [name for name in ("balanced_share", "colour_jitter", "hue_jitter") if getattr(args, name)]:
        logger.info("the crops of --crops_per_image are fixed, so that these are not used: %s", ", ".join(unused))
    label_size = None if args.label_stride == 1 else args.short_side // args.label_stride
    crops = CropSettings(args.short_side, args.crops_per_image, max_scale=args.scale[1], label_size=label_size)
    config = model.config
    read = sorted(set(config.feature_layers)) if config.vision_backbone is None else config.vision_backbone.to_dict()
    identity = {"weights": weights_fingerprint(encoder), "blocks": read}
    encoder.eval()

    def encode(pixels: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        return model.encode_blocks(pixels.to(model.device))[0]

    return cached_maps(source, processor, crops, encode, identity, args.cache_dir)


def features_are_fixed(args: argparse.Namespace) -> bool:
    """Whether the encoder stays as it is, and the crops are those that a cache has."""
    return not (args.backbone_factor or args.lora_rank or args.crop_size != [args.short_side] * 2)


def cache_is_waste(args: argparse.Namespace, images: int) -> bool:
    """Whether the number of crops that the cpu preset has is of no use, or more than the run will read; says so. Any other
    number was asked for."""
    read = args.max_train_steps * args.train_batch_size * args.gradient_accumulation_steps
    default = (CLIP_ON_CPU if args.vision_backbone is None else FROZEN_ON_CPU)["crops_per_image"]
    chosen = args.preset != "cpu" or args.cache_dir or args.crops_per_image != default
    if chosen or (features_are_fixed(args) and images * args.crops_per_image <= read):
        return False
    if not features_are_fixed(args):
        logger.info("the encoder learns, or crops are not squares of --short_side: no features are computed beforehand")
        return True
    logger.info(
        "%d fixed crops of each of %d images are more than the %d that this run reads: it takes random crops, without a cache. "
        "--cache_dir keeps the features for further runs.", args.crops_per_image, images, read,
    )  # fmt: skip
    return True
