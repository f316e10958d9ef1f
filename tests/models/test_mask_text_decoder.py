"""The restated decoder gives what transformers' decoder gives with the same weights."""

import pytest
import torch
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerMaskedAttentionDecoder

from hf_clipseg.clip.feature_pyramid import FeaturePyramid
from hf_clipseg.models.mta_clip.mask_text_decoder import MaskTextDecoder, attention_mask

from ..precision import assert_same

DIM, TOKENS, LAYERS = 32, 11, 4


@pytest.fixture
def config():
    return Mask2FormerConfig(
        hidden_dim=DIM, mask_feature_size=DIM, num_attention_heads=4, dim_feedforward=48, decoder_layers=LAYERS + 1
    )


@pytest.fixture
def decoders(config):
    """transformers' decoder and ours, with the same weights."""
    theirs = Mask2FormerMaskedAttentionDecoder(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.1))
    ours = MaskTextDecoder(config).eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert missing == ["level_embed"] and not unexpected
    torch.nn.init.normal_(ours.level_embed)
    return theirs, ours


@pytest.fixture
def inputs():
    sizes = [(3, 4), (5, 8), (10, 15)]
    tokens, positions = torch.randn(2, TOKENS, DIM), torch.randn(TOKENS, DIM)
    return tokens, positions, [torch.randn(2, DIM, *size) for size in sizes], torch.randn(2, DIM, 20, 30)


def run_transformers(theirs, ours, tokens, positions, feature_maps, pixel_embeds):
    """transformers' decoder on the same inputs, sequence first."""
    embed = ours.position_embedding
    return theirs(
        inputs_embeds=tokens.transpose(0, 1),
        query_position_embeddings=positions[:, None].expand(-1, 2, -1),
        encoder_hidden_states=[
            (feature_map.flatten(2) + ours.level_embed[level][:, None]).permute(2, 0, 1)
            for level, feature_map in enumerate(feature_maps)
        ],
        multi_stage_positional_embeddings=[
            embed(feature_map.shape, feature_map.device, feature_map.dtype).flatten(2).permute(2, 0, 1)
            for feature_map in feature_maps
        ],
        pixel_embeddings=pixel_embeds,
        feature_size_list=[feature_map.shape[-2:] for feature_map in feature_maps],
        return_dict=True,
    )


@pytest.mark.usefixtures("in_double_precision")
@pytest.mark.parametrize("fused", [True, False])
@torch.no_grad()
def test_parity_with_transformers(decoders, inputs, fused):
    theirs, ours = decoders
    expected = run_transformers(theirs, ours, *inputs)
    states = ours(*inputs, fused=fused)
    assert len(states) == LAYERS and len(expected.intermediate_hidden_states) == LAYERS + 1
    for layer, state in enumerate(states, start=1):
        assert_same(state.tokens, expected.intermediate_hidden_states[layer].transpose(0, 1))
        masks = torch.einsum("bqc,bchw->bqhw", state.mask_embeds, inputs[-1])
        assert_same(masks, expected.masks_queries_logits[layer])


@pytest.mark.usefixtures("in_double_precision")
def test_gradients_agree_with_transformers(decoders, inputs):
    theirs, ours = decoders
    run_transformers(theirs, ours, *inputs).intermediate_hidden_states[-1].square().sum().backward()
    ours(*inputs)[-1].tokens.square().sum().backward()
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    for name, parameter in ours.named_parameters():
        if name in expected:
            assert_same(parameter.grad, expected[name], name, scale=max(1.0, expected[name].abs().max().item()))


def test_attention_mask():
    """True means "may attend"; a token whose mask is empty may attend everywhere."""
    pixels = torch.tensor([[[1.0, -1.0, 2.0]]])  # (batch, dim, pixels)
    mask = attention_mask(torch.tensor([[[1.0], [-1.0], [0.0]]]), pixels)
    assert mask.shape == (1, 1, 3, 3)
    assert mask[0, 0].tolist() == [[True, False, True], [False, True, False], [True, True, True]]
    empty = attention_mask(torch.tensor([[[-1.0]]]), pixels.abs())
    assert empty.all()


@pytest.mark.parametrize("finest_scale", [1, 2, 4])
@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (8, 6)])
def test_pyramid_sizes(finest_scale, grid):
    pyramid = FeaturePyramid(8, finest_scale, levels=4)
    scales = [finest_scale / 2**level for level in range(4)]
    expected = [(2, 8, *(max(1, -int(-side * scale // 1)) for side in grid)) for scale in scales]
    assert [tuple(level.shape) for level in pyramid([torch.randn(2, *grid, 8) for _ in range(4)])] == expected


def test_pyramid_keeps_the_places_of_patches():
    """The level at scale 1 is the layer-normalised input."""
    pyramid, block_map = FeaturePyramid(8, 1, levels=1), torch.randn(1, 2, 3, 8)
    torch.testing.assert_close(pyramid([block_map])[0][0, :, 1, 2], torch.nn.functional.layer_norm(block_map[0, 1, 2], (8,)))
