"""What a command leaves open, by the data set that it is run on; those for Toyscapes made the shipped checkpoints.

Only what a data set decides is here: sizes, scene options, held-out classes, and what methods have changed since the shipped
checkpoints were made. What a method decides is the default of its options, so that nothing of Toyscapes reaches other data.
"""

import argparse
import logging
from collections.abc import Mapping
from typing import Any

from hf_clipseg.toyscapes import CAPTION_NOUNS

from .photo_presets import PHOTOS

logger = logging.getLogger(__name__)

CLIP = "model_cards/clip-toyscapes"

TOYSCAPES: dict[str, dict[str, Any]] = {
    "train_clip": {
        "limit": 40_000, "omission_rate": 0.1, "closeup_rate": 0.5, "validation_split": "validation",
    },
    "curate_concepts": {"omission_rate": 0.5},
    "train_cocu": {
        "omission_rate": 0.5, "validation_dataset_name": "toyscapes", "validation_split": "validation", "top_classes": 8,
    },
    "train_vpl": {
        "image_size": 128, "label_size": 64, "attention_variant": "value", "keep_residual": False, "cam_scale": 1.0,
        "affinity_layers": 0, "decoder_dim": 96, "decoder_layers": 2, "rule": "step",
    },
    "train_mvp_seg": {
        "limit": 1200, "unseen": "toyscapes", "image_size": 128, "keep_residual": False, "orthogonality": "text",
        "spread_weight": 0.0,
    },
    "train_mvp_seg_plus": {
        "limit": 1200, "unseen": "toyscapes", "image_size": 128, "teacher": "model_cards/mvp-seg-toyscapes",
    },
    "train_mta_clip": {"preset": "toyscapes", "keep_images": True},
}  # fmt: skip

MTA_CLIP_PRESETS: dict[str, dict[str, Any]] = {
    "toyscapes": {
        "crop_size": [128, 128], "short_side": 128, "scale": [1.0, 1.5], "limit": 3000,
        "backbone_factor": 0.0, "crops_per_image": 2,
        "hidden_dim": 64, "num_attention_heads": 4, "finest_scale": 2, "pixel_decoder_layers": 2,
        "pixel_decoder_feedforward_dim": 128, "num_prompt_tokens": 4, "num_queries": 24, "decoder_layers": 3,
        "feedforward_dim": 128, "num_points": 512, "contrastive_temperature": 0.07,
        "learning_rate": 2e-3, "warmup_steps": 50, "max_train_steps": 3000, "max_grad_norm": 1.0,
        "train_batch_size": 8, "checkpointing_steps": 500,
    },
    "ade20k": {
        "crop_size": [512, 512], "short_side": 512, "reduce_labels": True, "max_train_steps": 160_000,
    },
    "cityscapes": {
        "crop_size": [512, 1024], "short_side": 1024, "max_train_steps": 90_000,
    },
    "photos": PHOTOS["train_mta_clip"],
    "cpu": {
        "crop_size": [256, 256], "short_side": 384, "scale": [0.75, 1.5], "balanced_share": 0.5, "ema_decay": 0.99,
        "label_stride": 2,
        "hidden_dim": 64, "num_attention_heads": 4, "pixel_decoder_layers": 1, "pixel_decoder_feedforward_dim": 128,
        "num_prompt_tokens": 4, "num_queries": 32, "decoder_layers": 3, "feedforward_dim": 128, "num_points": 1024,
        "contrastive_temperature": 0.07, "learning_rate": 2e-3, "warmup_steps": 30, "max_grad_norm": 1.0,
        "train_batch_size": 4, "max_train_steps": 750, "checkpointing_steps": 250, "validation_steps": 750,
        "logging_steps": 10, "rehearsal_steps": 2,
    },
    "paper": {},
}  # fmt: skip
"""What differs from the defaults of `training.train_mta_clip`, which are the paper's."""

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    **{command: {"photos": options} for command, options in PHOTOS.items()}, "train_mta_clip": MTA_CLIP_PRESETS,
}  # fmt: skip
"""Of every command, by name: defaults of its other options."""


FROZEN_ON_CPU = {
    "method": "pixel_text", "backbone_factor": 0.0, "direct_features": True, "crop_size": [384, 384], "short_side": 384,
    "scale": [1.0, 1.5], "crops_per_image": 2, "balanced_share": 0.0, "colour_jitter": 0.0, "max_train_steps": 600,
    "checkpointing_steps": 300, "validation_steps": 600,
}  # fmt: skip
"""What the cpu preset adds where `--vision_backbone` names an encoder: it has seen photographs, and to run it costs most, so
that its features are computed once. In the steps that a processor has time for, pixels learn from it and mask queries do not
yet; its resolution and a linear path from its last map count most: see `docs/photographs.md`."""

CLIP_ON_CPU = {
    "method": "pixel_text", "backbone_factor": 0.0, "direct_features": True, "crop_size": [256, 256], "short_side": 256,
    "scale": [1.0, 2.0], "crops_per_image": 4, "balanced_share": 0.0, "colour_jitter": 0.0, "train_batch_size": 8,
    "max_train_steps": 300, "checkpointing_steps": 300, "validation_steps": 300,
}  # fmt: skip
"""What it adds where CLIP reads the images: a plain transformer costs most of all, so its features are computed once."""

DRAWN_CLIP_ON_CPU = {**CLIP_ON_CPU, "finest_scale": 2}
"""The shipped CLIP has patches of 8 pixels: at the default scale of 4 its pyramid would be as fine as 2 pixels."""


def defaults_for(command: str, dataset_name: str) -> Mapping[str, Any]:
    """Defaults of `python -m training.<command>` on a data set; empty for all but Toyscapes."""
    return TOYSCAPES.get(command, {}) if dataset_name == "toyscapes" else {}


def nouns_for(dataset_name: str) -> Mapping[str, str] | None:
    """Phrase -> concept of a data set whose captions are written by rules; None where concepts have to be mined."""
    return CAPTION_NOUNS if dataset_name == "toyscapes" else None


def warn_of_drawn_clip(args: argparse.Namespace) -> None:
    """Says that the default CLIP has never seen a photograph, where the data set is not Toyscapes."""
    if args.dataset_name != "toyscapes" and args.model_name_or_path == CLIP:
        logger.warning(
            "--model_name_or_path is %s, a small CLIP that has seen drawn scenes only: for photographs pass another, such as "
            "--model_name_or_path openai/clip-vit-base-patch16.", CLIP,
        )  # fmt: skip
