"""A GroupViT that starts as a CLIP."""

import pytest
import torch
from scipy.cluster.vq import kmeans2
from torch.nn import functional as F
from transformers import CLIPModel

from hf_clipseg import CocuConfig, CocuForSemanticSegmentation
from training.pretraining.clip_start import start_from_clip

from ...tiny import tiny_clip_config
from ...tiny_groupvit import tiny_groupvit_config


def pair(**vision):
    torch.manual_seed(0)
    clip = CLIPModel(tiny_clip_config(hidden_act="gelu")).eval()
    for parameter in clip.vision_model.parameters():  # features of random weights hardly differ between patches
        parameter.data += 0.1 * torch.randn_like(parameter)
    for block in clip.vision_model.encoder.layers:
        block.layer_norm1.weight.data += torch.randn(block.layer_norm1.weight.shape)
    clip.vision_model.embeddings.position_embedding.weight.data.normal_(std=0.5)
    text, sizes = clip.config.text_config, clip.config.vision_config
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "image_size", "patch_size", "hidden_act")
    stages = {"depths": [2, 0], "num_hidden_layers": 2, "num_group_tokens": [4, 0], "num_output_groups": [4, 4]}
    fields = {name: getattr(sizes, name) for name in names} | stages | vision
    config = tiny_groupvit_config(text.vocab_size, text.max_position_embeddings, **fields)
    config.text_config.hidden_act = text.hidden_act
    return CocuForSemanticSegmentation(CocuConfig(clip_config=config, pooling="after_projection")).eval(), clip


def some_images(clip):
    return torch.randn(16, 3, *2 * [clip.config.vision_config.image_size])


@torch.no_grad()
def test_the_text_encoder_is_clips():
    model, clip = pair()
    start_from_clip(model, clip, some_images(clip))
    input_ids = torch.randint(3, clip.config.text_config.vocab_size, (12, 6)).index_fill(1, torch.tensor([5]), 1)
    expected = clip.text_model(input_ids=input_ids).pooler_output
    torch.testing.assert_close(model.clip.read_texts(input_ids), expected)


@torch.no_grad()
def test_patches_enter_the_first_block_as_in_clip():
    """Up to each patch's own deviation, of which the scaled positions know only the mean."""
    model, clip = pair()
    pixel_values = some_images(clip)
    start_from_clip(model, clip, pixel_values)
    ours = model.clip.vision_model.embeddings(pixel_values)
    theirs = clip.vision_model.pre_layrnorm(clip.vision_model.embeddings(pixel_values))[:, 1:]
    assert (ours - theirs).pow(2).mean() < 0.05 * theirs.var()


@torch.no_grad()
def test_groups_are_means_of_dense_features_by_nearest_centre():
    model, clip = pair()
    pixel_values = some_images(clip)
    start_from_clip(model, clip, pixel_values)
    stage = model.clip.vision_model.encoder.stages[0]
    seen = {}
    stage.downsample.register_forward_pre_hook(lambda _, inputs: seen.update(patches=inputs[0]))
    grouping = model.clip.group(pixel_values)
    attention = clip.vision_model.encoder.layers[2].self_attn
    values = attention.v_proj(clip.vision_model.encoder.layers[2].layer_norm1(seen["patches"]))
    features = attention.out_proj(values)  # (batch, patches, width)

    winners = grouping.assignments.flatten(2).argmax(dim=1)
    assert len(winners.unique()) > 2
    members = F.one_hot(winners, 4).transpose(1, 2).float()
    means = members @ features / members.sum(dim=-1, keepdim=True).clamp_min(1)
    expected = clip.vision_model.post_layernorm(means)
    cosines = F.cosine_similarity(grouping.tokens, expected, dim=-1)
    assert cosines[members.sum(dim=-1) > 0].median() > 0.9
    centred = F.normalize(features - features.flatten(0, 1).mean(dim=0), dim=-1).flatten(0, 1).double()
    centres, _ = kmeans2(centred.numpy(), 4, iter=30, minit="++", seed=0)
    nearest = (centred @ F.normalize(torch.from_numpy(centres), dim=-1).T).argmax(dim=1)
    assert nearest.eq(winners.flatten()).float().mean() > 0.9


@torch.no_grad()
def test_positions_are_resampled():
    model, clip = pair(image_size=64)
    start_from_clip(model, clip, some_images(clip))
    assert model.clip.vision_model.embeddings.position_embeddings.shape[1] == (64 // clip.config.vision_config.patch_size) ** 2


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"hidden_act": "relu"}, "vision_config.hidden_act is relu"),
        ({"depths": [1, 1], "num_group_tokens": [4, 0]}, r"it must be \[2, 0\]"),
    ],
)
def test_other_sizes_are_refused(fields, message):
    model, clip = pair(**fields)
    with pytest.raises(ValueError, match=message):
        start_from_clip(model, clip, some_images(clip))
