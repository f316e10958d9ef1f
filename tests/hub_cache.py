"""A Hub cache on disk with small random stand-ins for the models that README and the demo name."""

from pathlib import Path

import torch
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from .tiny import save_tiny_clip, tiny_tokenizer
from .tiny_groupvit import save_tiny_groupvit

COMMIT = "0" * 40


def save_groupvit(folder: Path) -> None:
    save_tiny_groupvit(folder)
    tiny_tokenizer().save_pretrained(folder)


def save_clipseg(folder: Path) -> None:
    text = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "max_position_embeddings": 16, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 2}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32,
              "patch_size": 8}  # fmt: skip
    config = CLIPSegConfig(
        text_config=text, vision_config=vision, projection_dim=16, extract_layers=[0, 1, 2], reduce_dim=8,
        decoder_num_attention_heads=2, decoder_intermediate_size=16, conditional_layer=0,
    )  # fmt: skip
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def save_mask2former(folder: Path) -> None:
    swin = SwinConfig(image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, out_features=[
        "stage1", "stage2", "stage3", "stage4"])  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=swin, hidden_dim=32, feature_size=32, mask_feature_size=32, num_queries=5, encoder_layers=1,
        decoder_layers=2, num_attention_heads=2, dim_feedforward=16, encoder_feedforward_dim=16,
        id2label={0: "sky", 1: "sea", 2: "boat"},
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 96}).save_pretrained(folder)


def save_dino(folder: Path) -> None:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ViTModel(ViTConfig(**small, image_size=32, patch_size=4)).save_pretrained(folder)


MODELS = {
    "openai/clip-vit-base-patch16": save_tiny_clip,
    "nvidia/groupvit-gcc-yfcc": save_groupvit,
    "CIDAS/clipseg-rd64-refined": save_clipseg,
    "facebook/mask2former-swin-tiny-ade-semantic": save_mask2former,
    "facebook/dino-vitb8": save_dino,
}


def save_hub_cache(folder: Path, names=tuple(MODELS)) -> Path:
    """`folder` as `HF_HUB_CACHE`: as the Hub's client leaves it after downloads."""
    for name in names:
        torch.manual_seed(0)
        repository = folder / f"models--{name.replace('/', '--')}"
        MODELS[name](repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
    return folder
