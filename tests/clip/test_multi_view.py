"""Fusion of views against loops over views, names and patches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from hf_clipseg.clip.multi_view import (
    FUSIONS,
    LINEAR_FUSIONS,
    centre_classes,
    class_spread,
    fused_embeds,
    fused_logits,
    pairwise_overlap,
    view_maps,
)
from hf_clipseg.clip.similarity import cosine_maps


def random_views(views=3, names=4):
    return normalize(torch.randn(2, 5, 6, 16), dim=-1), normalize(torch.randn(views, names, 16), dim=-1)


def by_loops(patches, views, scale, fusion):
    """One score at a time, straight from the definitions."""
    scores = torch.empty(len(patches), views.shape[1], *patches.shape[1:3])
    for image, name, y, x in torch.cartesian_prod(*map(torch.arange, scores.shape)).tolist():
        cosines = [float(patches[image, y, x] @ view[name]) for view in views]
        total = sum(cosines)
        scores[image, name, y, x] = {
            "sum": scale * total / len(views),
            "renormalised_sum": scale * total / float(views[:, name].sum(0).norm()),
            "max": scale * max(cosines),
            "logsumexp": math.log(sum(math.exp(scale * cosine) for cosine in cosines) / len(views)),
        }[fusion]
    return scores


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusions_equal_loops(fusion):
    patches, views = random_views()
    torch.testing.assert_close(fused_logits(patches, views, 7.0, fusion), by_loops(patches, views, 7.0, fusion))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_one_view_is_the_plain_cosine(fusion):
    patches, views = random_views(views=1)
    torch.testing.assert_close(fused_logits(patches, views, 7.0, fusion), 7 * cosine_maps(patches, views[0]))


@pytest.mark.parametrize("fusion", LINEAR_FUSIONS)
def test_linear_fusions_collapse_to_one_embedding_and_others_do_not(fusion):
    patches, views = random_views()
    one = fused_embeds(views, fusion)[None]
    torch.testing.assert_close(fused_logits(patches, one, 7.0, "sum"), fused_logits(patches, views, 7.0, fusion))
    assert (fused_logits(patches, views, 7.0, "max") - fused_logits(patches, one, 7.0, "sum")).abs().max() > 0.1


def test_view_maps_are_the_maps_of_each_view():
    patches, views = random_views()
    maps = view_maps(patches, views)
    assert maps.shape == (2, 3, 4, 5, 6)
    for index, view in enumerate(views):
        torch.testing.assert_close(maps[:, index], cosine_maps(patches, view))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 5))
def test_fusions_are_ordered_and_ignore_the_order_of_views(seed, count):
    torch.manual_seed(seed)
    patches, views = random_views(count)
    mean, soft, best = (fused_logits(patches, views, 7.0, fusion) for fusion in ("sum", "logsumexp", "max"))
    assert (mean <= soft + 1e-5).all() and (soft <= best + 1e-5).all()
    for fusion in FUSIONS:
        shuffled = fused_logits(patches, views[torch.randperm(count)], 7.0, fusion)
        torch.testing.assert_close(shuffled, fused_logits(patches, views, 7.0, fusion), atol=1e-5, rtol=1e-5)


def test_overlap():
    vectors = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 1.0]])
    assert pairwise_overlap(vectors).item() == pytest.approx(2 * 0.5**0.5)  # 0 + 1/sqrt(2) + |-1/sqrt(2)|
    assert pairwise_overlap(vectors[:1]).item() == 0
    assert pairwise_overlap(torch.eye(4)).item() == 0
    twice = torch.stack([vectors, vectors], dim=1)  # (views, names, dim): a mean over names
    assert pairwise_overlap(twice).item() == pytest.approx(2 * 0.5**0.5)
    half = torch.stack([vectors, torch.eye(3, 2) * 0 + torch.tensor([1.0, 0.0])], dim=1)  # the second name's views agree
    assert pairwise_overlap(half).item() == pytest.approx((2 * 0.5**0.5 + 3) / 2)


def test_class_spread_equals_loops():
    views = torch.randn(2, 4, 16, dtype=torch.float64)
    for view, spread in zip(views, class_spread(views), strict=True):
        pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
        cosines = [float(view[a] @ view[b] / view[a].norm() / view[b].norm()) for a, b in pairs]
        assert float(spread) == pytest.approx(sum(cosines) / len(pairs), abs=1e-6)
    assert class_spread(views[:, :1]).tolist() == pytest.approx([0, 0], abs=1e-6)  # a single name has nothing to differ from
    assert float(class_spread(torch.ones(3, 5))) == pytest.approx(1)


def test_a_constant_moves_views_apart_and_centred_ones_not():
    """What the overlap of texts can be satisfied by, and the overlap of centred ones cannot."""
    _, views = random_views(2, 6)
    views[1] = views[0]
    moved = torch.stack([views[0], views[1] + 20 * normalize(torch.randn(16), dim=0)])
    assert pairwise_overlap(views).item() == pytest.approx(1, abs=1e-5)
    assert pairwise_overlap(moved) < 0.7 and class_spread(moved)[1] > 0.95
    assert pairwise_overlap(centre_classes(moved)).item() == pytest.approx(1, abs=1e-4)


def test_unknown_fusion():
    with pytest.raises(ValueError, match="logsumexp.*got 'mean'"):
        fused_logits(*random_views(), 1.0, "mean")
