"""A tiny randomly initialised GroupViT that reads the words of `tiny.tiny_tokenizer`."""

from pathlib import Path

import torch
from transformers import GroupViTConfig, GroupViTModel

from .tiny import tiny_clip_config


def tiny_groupvit_config(vocab_size: int | None = None, max_length: int | None = None, **vision) -> GroupViTConfig:
    text = tiny_clip_config().text_config.to_dict()
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "bos_token_id", "eos_token_id")
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "depths": [2, 1, 1],
        "num_hidden_layers": 4,
        "num_group_tokens": [8, 4, 0],
        "num_output_groups": [8, 4, 4],
        "image_size": 32,
        "patch_size": 8,
        **vision,
    }
    return GroupViTConfig(
        text_config={
            **{name: text[name] for name in (*names, "pad_token_id")},
            "vocab_size": vocab_size or text["vocab_size"],
            "max_position_embeddings": max_length or text["max_position_embeddings"],
        },
        vision_config=vision,
        projection_dim=24,
        projection_intermediate_dim=48,
    )


def save_tiny_groupvit(folder: Path) -> Path:
    """As transformers saves it; group tokens and positions, which transformers leaves at zero, are noise."""
    torch.manual_seed(0)
    model = GroupViTModel(tiny_groupvit_config()).eval()
    for name, parameter in model.named_parameters():
        if "group_token" in name or "position_embeddings" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return folder
