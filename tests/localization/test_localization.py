"""Localisation maps against the papers' formulas computed naively, one image and one class at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from hf_clipseg import MaskClipForSemanticSegmentation
from hf_clipseg.localization.affinity import move_along, spread, strong_boxes
from hf_clipseg.localization.localization import (
    LocalizationSettings,
    class_slots,
    contrast_scores,
    last_features,
    localize,
    patch_attention,
    patch_features,
    run_to_last_block,
    similarity_localization,
    softmax_localization,
    uniform_batches,
)

from ..precision import assert_same, double_precision, doubled
from ..tiny import save_tiny_clip

LABELS = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0]])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return MaskClipForSemanticSegmentation.from_clip(save_tiny_clip(tmp_path_factory.mktemp("clip"))).clip


@pytest.fixture
def in_double(clip):
    """The backbone with 64 bits, for comparisons of two ways to compute the same."""
    with double_precision():
        yield doubled(clip)


@pytest.fixture
def prototypes():
    return F.normalize(torch.randn(5, 24), dim=1)  # 3 classes, 2 background words


def naive_cam(clip, pixel_values, prototypes, labels, target, scale) -> torch.Tensor:
    """CLIP-ES for one image and class: the gradient of the softmax probability in the last block's first layer norm."""
    tokens, grid = clip.embed(pixel_values)
    for block in clip.blocks[:-1]:
        tokens = block(tokens, None)
    block = clip.blocks[-1]
    normed = block.layer_norm1(tokens).detach().requires_grad_()
    hidden = tokens + block.self_attn(normed)[0]
    hidden = hidden + block.mlp(block.layer_norm2(hidden))
    pooled = F.normalize(clip.visual_projection(clip.vision_model.post_layernorm(hidden[0, 1:])).mean(0), dim=0)
    candidates = [*labels.nonzero()[:, 0].tolist(), *range(len(labels), len(prototypes))]
    probabilities = (scale * prototypes[candidates] @ pooled).softmax(0)
    (gradient,) = torch.autograd.grad(probabilities[candidates.index(target)], normed)
    cam = (normed[0, 1:] @ gradient[0, 1:].mean(0)).relu().detach()
    return ((cam - cam.min()) / (cam.max() - cam.min())).view(grid)


def test_batched_maps_equal_the_papers_formula(in_double, prototypes):
    clip, prototypes = in_double, prototypes.double()
    pixel_values = torch.randn(3, 3, 32, 40)
    found = localize(clip, pixel_values, prototypes, LABELS, LocalizationSettings(cam_scale=7.0, affinity_layers=0))
    maps = found.per_class(3)
    for image, row in enumerate(LABELS):
        for target in range(3):
            if row[target]:
                expected = naive_cam(clip, pixel_values[image : image + 1], prototypes, row, target, 7.0)
                assert_same(maps[image, target], expected)
            else:
                assert (maps[image, target] == 0).all()


@pytest.mark.parametrize("variant", ["plain", "value", "naclip"])
def test_a_batch_equals_one_by_one(in_double, prototypes, variant):
    """In single precision the two differ by 3e-4: rounding, magnified where nearly constant maps are stretched to [0, 1]."""
    clip, prototypes = in_double, prototypes.double()
    pixel_values, options = torch.randn(3, 3, 37, 50), LocalizationSettings(variant)
    together = localize(clip, pixel_values, prototypes, LABELS, options).per_class(3)
    assert together.shape == (3, 3, 5, 7)
    for image in range(3):
        alone = localize(clip, pixel_values[[image]], prototypes, LABELS[[image]], options).per_class(3)
        assert_same(together[[image]], alone)


@torch.no_grad()
def test_similarity_maps_are_scaled_cosines(in_double, prototypes):
    clip, prototypes = in_double, prototypes.double()
    options, pixel_values = LocalizationSettings("value", False), torch.randn(3, 3, 32, 40)
    features = patch_features(clip, pixel_values, options)
    assert_same(features, clip.dense_features(pixel_values, "value", False))
    cosines = features @ prototypes[2]
    expected = (cosines[1] - cosines[1].min()) / (cosines[1].max() - cosines[1].min())
    maps = similarity_localization(features, prototypes, LABELS).per_class(3)
    assert_same(maps[1, 2], expected)
    assert (maps[0, 2] == 0).all()


def test_softmax_maps_are_shares_of_the_tagged_classes_and_all_background(in_double, prototypes):
    clip, prototypes = in_double, prototypes.double()
    pixel_values = torch.randn(3, 3, 32, 40)
    options = LocalizationSettings("value", False, affinity_layers=0, read_out="softmax", read_out_temperature=0.5)
    found = localize(clip, pixel_values, prototypes, LABELS, options)
    cosines = clip.dense_features(pixel_values, "value", False) @ prototypes.T
    for image, rows in enumerate(([0, 1, 3, 4], [1, 2, 3, 4], [0, 3, 4])):
        expected = torch.zeros(5, 4, 5, dtype=torch.float64)
        expected[rows] = (cosines[image, :, :, rows] / 0.5).softmax(-1).permute(2, 0, 1)
        assert_same(found.per_class(3)[image], expected[:3])
        assert_same(found.left_over(found.maps)[image, 0], expected[3:].sum(0))


def test_softmax_maps_are_moved_along_the_attention_and_not_stretched(in_double, prototypes):
    clip, prototypes = in_double, prototypes.double()
    pixel_values, options = (
        torch.randn(3, 3, 32, 40),
        LocalizationSettings("value", False, affinity_layers=2, read_out="softmax"),
    )
    tokens, attention, grid = run_to_last_block(clip, pixel_values, 2)
    found = softmax_localization(last_features(clip, tokens, grid, options), prototypes, LABELS, 0.04)
    expected = move_along(found.maps, attention, 0.4)
    maps = localize(clip, pixel_values, prototypes, LABELS, options).maps
    assert_same(maps, expected)
    assert maps.amax((2, 3)).min() < 0.9


def test_no_gradient_reaches_the_weights(clip, prototypes):
    found = localize(clip, torch.randn(1, 3, 32, 32), prototypes, LABELS[:1], LocalizationSettings())
    assert not found.maps.requires_grad and not found.patch_embeds.requires_grad
    assert all(parameter.grad is None for parameter in clip.parameters())


def test_it_works_under_no_grad_and_for_one_class_without_background(clip):
    with torch.no_grad():
        found = localize(clip, torch.randn(1, 3, 32, 32), torch.eye(24)[:1], torch.ones(1, 1), LocalizationSettings())
    assert found.maps.max() == 1


def test_scores_do_not_vanish_where_the_softmax_is_saturated():
    logits = torch.tensor([[200.0, 0.0, -50.0]], requires_grad=True)
    scores = contrast_scores(logits, torch.ones(1, 3, dtype=torch.bool), torch.tensor([[0, 1, 2]]))
    (gradient,) = torch.autograd.grad(scores[0, 0], logits)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, -1.0, 0.0]]))
    assert (torch.autograd.grad(logits.softmax(1)[0, 0], logits)[0] == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=3, max_size=6), st.integers(0, 2))
def test_scores_have_the_direction_of_the_softmax_gradient(values, target):
    logits = torch.tensor([values], dtype=torch.float64, requires_grad=True)
    labels = torch.ones(1, 3, dtype=torch.bool)
    (ours,) = torch.autograd.grad(contrast_scores(logits, labels, torch.tensor([[target]])).sum(), logits)
    (papers,) = torch.autograd.grad(logits.softmax(1)[0, target], logits)
    assert F.cosine_similarity(ours, papers).item() == pytest.approx(1, abs=1e-6)


def test_attention_is_what_eager_attention_returns(clip):
    attention, normed = clip.blocks[1].self_attn, torch.randn(2, 10, 32)
    attention.config._attn_implementation, before = "eager", attention.config._attn_implementation
    try:
        weights = attention(normed)[1]
    finally:
        attention.config._attn_implementation = before
    torch.testing.assert_close(patch_attention(attention, normed), weights.mean(1)[:, 1:, 1:])


def test_affinity_by_hand():
    attention = torch.rand(1, 12, 12, dtype=torch.float64) + 0.1
    maps = torch.rand(1, 2, 3, 4, dtype=torch.float64)
    matrix = attention[0]
    for _ in range(3):
        matrix = matrix / matrix.sum(0, keepdim=True)
        matrix = matrix / matrix.sum(1, keepdim=True)
    matrix = (matrix + matrix.T) / 2
    matrix = matrix @ matrix
    for slot in range(2):
        boxes = boxes_by_flood(maps[0, slot], 0.6).flatten()
        expected = (matrix * boxes[None]) @ maps[0, slot].flatten()
        expected = (expected - expected.min()) / (expected.max() - expected.min())
        assert_same(spread(maps, attention, 0.6)[0, slot].flatten(), expected)


def boxes_by_flood(picture: torch.Tensor, threshold: float) -> torch.Tensor:
    """Bounding boxes of 8-connected regions, by depth-first search."""
    strong = (picture >= threshold * picture.max()) & (picture > 0)
    left, covered = {tuple(cell) for cell in strong.nonzero().tolist()}, torch.zeros_like(strong)
    while left:
        stack, region = [left.pop()], []
        while stack:
            row, column = stack.pop()
            region.append((row, column))
            for cell in [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                if cell in left:
                    left.remove(cell)
                    stack.append(cell)
        rows, columns = zip(*region, strict=True)
        covered[min(rows) : max(rows) + 1, min(columns) : max(columns) + 1] = True
    return covered


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6), st.sampled_from([0.3, 0.6, 0.9]))
def test_boxes_are_those_of_a_search(height, width, seed, threshold):
    maps = torch.rand(2, 2, height, width, generator=torch.Generator().manual_seed(seed)) ** 2
    boxes = strong_boxes(maps, threshold)
    for image in range(2):
        for slot in range(2):
            assert torch.equal(boxes[image, slot], boxes_by_flood(maps[image, slot], threshold))


def test_slots_hold_the_classes_in_order():
    class_ids, used = class_slots(torch.tensor([[0, 1, 0, 1], [1, 0, 0, 0]]))
    assert class_ids[0].tolist() == [1, 3] and class_ids[1, 0] == 0
    assert used.tolist() == [[True, True], [True, False]]


def test_uniform_batches_cover_everything_once():
    images = [Image.new("RGB", size) for size in ((4, 4), (4, 4), (5, 4), (4, 4), (4, 4))]
    labels = torch.tensor([[1, 0], [1, 1], [1, 0], [0, 1], [1, 0]])
    assert uniform_batches(images, labels, 2) == [[0, 3], [4], [2], [1]]


def test_bad_input_is_named(clip, prototypes):
    with pytest.raises(ValueError, match=r"Images \[1\].*no labels"):
        localize(clip, torch.randn(2, 3, 32, 32), prototypes, torch.tensor([[1, 0], [0, 0]]), LocalizationSettings())
    with pytest.raises(ValueError, match="6 classes.*5 prototypes"):
        localize(clip, torch.randn(1, 3, 32, 32), prototypes, torch.ones(1, 6), LocalizationSettings())
    with pytest.raises(ValueError, match="attention_variant"):
        LocalizationSettings("median")
    with pytest.raises(ValueError, match="affinity_threshold"):
        LocalizationSettings(affinity_threshold=1.5)
    with pytest.raises(ValueError, match="read_out must be one of"):
        LocalizationSettings(read_out="softmax", read_out_temperature=0.0)
