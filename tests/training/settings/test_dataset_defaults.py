"""What Toyscapes' name implies made the shipped checkpoints; nothing of it reaches other data."""

import importlib
import logging

import pytest

from training.settings.dataset_defaults import CLIP, defaults_for, nouns_for, warn_of_drawn_clip

SHIPPED = {
    "train_clip": {
        "limit": 40_000, "omission_rate": 0.1, "closeup_rate": 0.5, "validation_split": "validation", "validation_limit": 256,
        "validation_steps": 350, "present_weight": 10.0, "explained_weight": 1.0, "assigned_weight": 0.0,
        "negative_weight": 1.0, "unmentioned": 0.1, "image_sizes": [64, 64, 128], "learning_rate": 1e-3, "weight_decay": 0.1,
        "warmup_steps": 150, "max_train_steps": 2800, "train_batch_size": 64, "max_grad_norm": 1.0, "seed": 0,
    },
    "train_cocu": {
        "omission_rate": 0.5, "closeup_rate": 0.0, "image_size": 128, "data_seed": 0, "sampling": "none", "num_concepts": 3,
        "temperature": 0.1, "contrast_archive": False, "model_config": "small", "max_text_length": 32,
        "pooling": "after_projection", "top_classes": 8, "background_threshold": None, "duplicates_are_negatives": False,
        "learning_rate": 1e-3, "weight_decay": 0.05, "warmup_steps": 30, "max_train_steps": 240, "train_batch_size": 64,
        "max_grad_norm": 5.0, "validation_dataset_name": "toyscapes", "validation_split": "validation",
        "validation_limit": 100, "validation_steps": 60,
    },
    "train_mta_clip": {
        "crop_size": [128, 128], "short_side": 128, "scale": [1.0, 1.5], "limit": 3000, "backbone_factor": 0.0,
        "crops_per_image": 2, "hidden_dim": 64, "num_attention_heads": 4, "finest_scale": 2, "pixel_decoder_layers": 2,
        "pixel_decoder_feedforward_dim": 128, "num_prompts": 3, "num_prompt_tokens": 4, "num_queries": 24,
        "decoder_layers": 3, "feedforward_dim": 128, "num_points": 512, "contrastive_form": "mix",
        "contrastive_temperature": 0.07, "contrastive_weight": 1.0, "no_object_weight": 0.1, "learning_rate": 2e-3,
        "weight_decay": 0.02, "layer_decay": 1.0, "warmup_steps": 50, "max_train_steps": 3000, "max_grad_norm": 1.0,
        "train_batch_size": 8, "checkpointing_steps": 500, "reduce_labels": False, "model_name_or_path": CLIP,
    },
    "train_mvp_seg": {
        "limit": 1200, "unseen": "toyscapes", "image_size": 128, "crops_per_image": 1, "label_cells": 2,
        "attention_variant": "value", "keep_residual": False, "num_views": 3, "num_prompt_tokens": 16, "fusion": "sum",
        "orthogonality": "text", "global_refinement": "threshold", "presence_loss": "multilabel", "presence_weight": 1.0,
        "orthogonality_weight": 0.1, "anchor_weight": 0.5, "spread_weight": 0.0, "learning_rate": 5e-3, "weight_decay": 0.0,
        "warmup_steps": 20, "max_train_steps": 600, "train_batch_size": 16, "max_grad_norm": 1.0, "mixed_precision": "no",
    },
    "train_mvp_seg_plus": {
        "teacher": "model_cards/mvp-seg-toyscapes", "limit": 1200, "unseen": "toyscapes", "image_size": 128,
        "learning_rate": 3e-4, "weight_decay": 0.01, "warmup_steps": 30, "teacher_steps": None, "min_confidence": 0.0,
        "max_train_steps": 200, "train_batch_size": 16, "max_grad_norm": 1.0,
    },
    "train_vpl": {
        "image_size": 128, "label_size": 64, "templates": "ensemble", "attention_variant": "value", "keep_residual": False,
        "cam_scale": 1.0, "affinity_layers": 0, "affinity_threshold": 0.4, "rule": "step", "centred": False,
        "region_maps": "refined", "targets": "own", "rounds": 1, "refinement": "crf", "localization_batch_size": 16,
        "confidence": 0.95, "decoder_dim": 96, "decoder_layers": 2, "decoder_heads": 8, "crops_per_image": 1,
        "affinity_loss_weight": 0.1, "contrast_loss_weight": 0.1, "contrast_warmup_steps": 100, "learning_rate": 1e-3,
        "weight_decay": 0.01, "warmup_steps": 50, "max_train_steps": 400, "train_batch_size": 8, "mixed_precision": "no",
    },
    "curate_concepts": {
        "omission_rate": 0.5, "closeup_rate": 0.0, "image_size": 128, "data_seed": 0, "min_count": 20, "max_concepts": 2000,
        "num_neighbours": 8, "index": "flat", "num_probes": 32, "over_fetch": 4, "train_size": 500_000, "shard_size": 10_000,
        "batch_size": 64,
    },
}  # fmt: skip
"""The options behind the checkpoints in `model_cards`, as the scripts had them when they were trained."""


def parse(command: str, *more: str):
    required = ["--output_dir", "x", *(["--sampling", "none"] if command == "train_cocu" else [])]
    return importlib.import_module(f"training.{command}").parse_arguments([*required, *more])


@pytest.mark.parametrize("command", SHIPPED)
def test_the_defaults_are_those_of_the_shipped_checkpoints(command):
    args = vars(parse(command))
    assert {name: args[name] for name in SHIPPED[command]} == SHIPPED[command]


@pytest.mark.parametrize("command", SHIPPED)
def test_nothing_of_toyscapes_is_a_default_for_other_data(command):
    args = vars(parse(command, "--dataset_name", "my-folder"))
    held = {name for name, value in args.items() if "toyscapes" in str(value)}
    assert held <= {"model_name_or_path"}
    for name in ("limit", "unseen", "teacher", "validation_dataset_name", "validation_split"):
        assert args.get(name) is None, name
    assert args.get("preset") in (None, "cpu")
    assert not args.get("omission_rate") and not args.get("closeup_rate")
    assert defaults_for(command, "my-folder") == {} and nouns_for("my-folder") is None


def test_what_is_given_counts_for_toyscapes_too():
    args = parse("train_mta_clip", "--limit", "5", "--hidden_dim", "128", "--preset", "ade20k")
    assert (args.limit, args.hidden_dim, args.short_side, args.reduce_labels) == (5, 128, 512, True)


@pytest.mark.parametrize(("more", "said"), [(["--dataset_name", "photos"], 1), ([], 0), (["--model_name_or_path", "other"], 0)])
def test_a_clip_that_knows_drawings_only_is_said(more, said, caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_drawn_clip(parse("train_vpl", *more))
    assert len(caplog.records) == said
    assert all("seen drawn scenes only" in record.getMessage() for record in caplog.records)
