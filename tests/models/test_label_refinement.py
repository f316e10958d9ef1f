"""Labels that move along what the decoder finds alike: computed once more by hand, and what must not change."""

import pytest
import torch

from hf_clipseg import VplForSemanticSegmentation
from hf_clipseg.constants import IGNORE_INDEX
from hf_clipseg.models.vpl.label_refinement import label_shares, refined_labels, relation_of_patches
from hf_clipseg.models.vpl.vpl_losses import patch_affinity

from ..tiny import save_tiny_clip

STRIPES = torch.tensor([[0, 0, 1, 1]] * 4)[None]
"""Two labels on a picture of four by four pixels."""


def test_shares_are_the_parts_of_a_patch():
    labels = torch.tensor([[[0, 0, 1, 1], [0, IGNORE_INDEX, 1, 1]]])
    assert label_shares(labels, 3, (1, 2)).tolist() == [[[[0.75, 0.0]], [[0.0, 1.0]], [[0.0, 0.0]]]]


def test_attentions_that_agree_join_the_affinity():
    """Two of three layers are near; computed by hand, image by image."""
    torch.manual_seed(2)
    affinity = torch.rand(2, 5, 5)
    top = affinity.amax((1, 2), keepdim=True)
    near, far = affinity / top + 0.01 * torch.rand(2, 5, 5), torch.rand(2, 5, 5) + 3
    attentions = torch.stack([near, far, near + 0.02], dim=1)
    expected = affinity / top + (near + near + 0.02) / 2
    torch.testing.assert_close(relation_of_patches(affinity, attentions), expected)
    torch.testing.assert_close(relation_of_patches(affinity, attentions[:, :0]), affinity / top)


def test_patches_that_only_know_themselves_keep_their_labels():
    refined = refined_labels(STRIPES, 3, torch.eye(16)[None], (4, 4), 0.4, 0.9)
    assert torch.equal(refined, STRIPES)


def test_a_hole_is_filled_by_the_patches_that_are_like_it():
    """The pixel (1, 1) is unknown and (2, 2) wrong; both belong with their columns."""
    labels = STRIPES.clone()
    labels[0, 1, 1], labels[0, 2, 2] = IGNORE_INDEX, 0
    side = STRIPES.flatten()
    relation = (side[:, None] == side).float()[None]
    assert torch.equal(refined_labels(labels, 2, relation, (4, 4), 0.4, 0.6), STRIPES)


def test_unsure_pixels_are_ignored_and_absent_classes_stay_away():
    relation = torch.rand(1, 16, 16) + torch.eye(16)
    sure, any_share = (refined_labels(STRIPES, 3, relation, (4, 4), 0.4, confidence) for confidence in (0.8, 0.0))
    assert set(any_share.unique().tolist()) == {0, 1}
    assert torch.equal(sure[sure != IGNORE_INDEX], any_share[sure != IGNORE_INDEX])
    assert (any_share != STRIPES).any() and 0 < (sure == IGNORE_INDEX).sum() < sure.numel()
    nothing = torch.full_like(STRIPES, IGNORE_INDEX)
    assert torch.equal(refined_labels(nothing, 3, relation, (4, 4), 0.4, 0.0), nothing)


@pytest.fixture
def model(tmp_path):
    fields = {"decoder_dim": 16, "decoder_layers": 1, "decoder_heads": 2, "decoder_dropout": 0.0}
    return VplForSemanticSegmentation.from_clip(
        save_tiny_clip(tmp_path), class_names=["sky", "boat"], background_words=["sea"], **fields
    )


def test_the_model_learns_from_refined_labels(model):
    """`forward` refines before the losses; by hand: the fused features, and CLIP's attentions but the first block's."""
    pixels, labels = torch.randn(2, 3, 32, 40), torch.randint(0, 3, (2, 16, 20))
    states = model.encode_blocks(pixels)
    assert states.shape == (2, 3, 4, 5, 32)
    fused, _ = model.decoder(states.flatten(2, 3))
    attentions = []
    for index in (1, 2):
        block, tokens = model.clip.blocks[index], states[:, index - 1].flatten(1, 2)
        query, key = (
            projection(block.layer_norm1(tokens)).unflatten(-1, (2, 16)).transpose(1, 2)
            for projection in (block.self_attn.q_proj, block.self_attn.k_proj)
        )
        attentions.append((query @ key.transpose(2, 3) / 4).softmax(-1).mean(1))
    relation = relation_of_patches(patch_affinity(fused), torch.stack(attentions, 1))
    expected = refined_labels(labels, 3, relation, (4, 5), model.config.affinity_threshold, 0.35)
    assert (expected != labels).any() and (expected != IGNORE_INDEX).any()
    online = model(block_states=states, labels=labels, online_confidence=0.35)
    by_hand, plain = model(block_states=states, labels=expected), model(block_states=states, labels=labels)
    torch.testing.assert_close(online.loss, by_hand.loss)
    assert not torch.isclose(online.loss, plain.loss)
    online.loss.backward()
    assert all(parameter.grad is None for parameter in model.clip.parameters())
