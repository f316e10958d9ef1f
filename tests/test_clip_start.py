"""A GroupViT that starts from a CLIP."""

import pytest
import torch
from transformers import CLIPModel

from hf_clipseg import CocuConfig, CocuForSemanticSegmentation
from training.clip_start import start_from_clip

from .tiny import tiny_clip_config
from .tiny_groupvit import tiny_groupvit_config


def pair(**vision):
    torch.manual_seed(0)
    clip = CLIPModel(tiny_clip_config(hidden_act="gelu")).eval()
    text, sizes = clip.config.text_config, clip.config.vision_config
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "image_size", "patch_size")
    stages = {"depths": [1, 0], "num_hidden_layers": 1, "num_group_tokens": [4, 0], "num_output_groups": [4, 4]}
    fields = {name: getattr(sizes, name) for name in names} | stages | vision
    config = tiny_groupvit_config(text.vocab_size, text.max_position_embeddings, **fields)
    config.text_config.hidden_act = text.hidden_act
    return CocuForSemanticSegmentation(CocuConfig(clip_config=config)).eval(), clip


@torch.no_grad()
def test_patches_and_texts_are_clips():
    """Texts exactly; what enters the first block up to each patch's own deviation, of which the norm knows only the mean."""
    model, clip = pair()
    pixel_values = torch.randn(8, 3, *2 * [clip.config.vision_config.image_size])
    start_from_clip(model, clip, pixel_values)
    input_ids = torch.tensor([[1, 5, 6, clip.config.text_config.eos_token_id]])
    expected = clip.text_model(input_ids=input_ids).pooler_output
    torch.testing.assert_close(model.clip.text_model(input_ids=input_ids).pooler_output, expected)
    ours = model.clip.vision_model.embeddings(pixel_values)
    theirs = clip.vision_model.pre_layrnorm(clip.vision_model.embeddings(pixel_values))[:, 1:]
    assert (ours - theirs).pow(2).mean() < 0.05 * theirs.var()
    block = model.clip.vision_model.encoder.stages[0].layers[0].state_dict()
    for name, tensor in clip.vision_model.encoder.layers[0].state_dict().items():
        assert torch.equal(block[name], tensor)


@torch.no_grad()
def test_positions_are_resampled():
    model, clip = pair(image_size=64)
    start_from_clip(model, clip, torch.randn(8, 3, 32, 32))
    assert model.clip.vision_model.embeddings.position_embeddings.shape[1] == (64 // clip.config.vision_config.patch_size) ** 2


def test_other_sizes_are_refused():
    model, clip = pair(hidden_act="relu")
    with pytest.raises(ValueError, match="vision_config.hidden_act is relu"):
        start_from_clip(model, clip, torch.zeros(1, 3, 32, 32))
