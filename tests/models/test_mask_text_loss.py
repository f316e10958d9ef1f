"""Matching and losses against values worked out by other means."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from hf_clipseg.models.mta_clip.mask_text_loss import DivergedError, MaskTargets, MaskTextLoss, contrastive_loss

CLASSES, QUERIES, SIZE = 4, 6, 16


def config(**fields) -> Mask2FormerConfig:
    return Mask2FormerConfig(num_labels=CLASSES, **({"train_num_points": 4000} | fields))


@pytest.fixture
def labels():
    """Two images of blocks; classes 0, 1 and 1, 2, 3."""
    labels = torch.zeros(2, SIZE, SIZE, dtype=torch.int64)
    labels[0, :8] = 1
    labels[1, :8] = 2
    labels[1, 8:, :8], labels[1, 8:, 8:] = 1, 3
    return labels


def predictions(labels, queries=(4, 0, 2), confidence=6.0):
    """Masks and classes that are right at `queries`, one per class in the order of class ids, and empty elsewhere."""
    mask_logits = torch.full((len(labels), QUERIES, SIZE, SIZE), -confidence)
    class_logits = torch.zeros(len(labels), QUERIES, CLASSES + 1)
    class_logits[..., -1] = confidence
    for row, label_map in enumerate(labels):
        for query, class_id in zip(queries, label_map.unique().tolist(), strict=False):
            if class_id == 255:
                continue
            mask_logits[row, query] = torch.where(label_map == class_id, confidence, -confidence)
            class_logits[row, query] = 0
            class_logits[row, query, class_id] = confidence
    return mask_logits, class_logits


def run(labels, mask_logits, class_logits, similarities=None, seed=3, **fields):
    return MaskTextLoss(config(**fields))(mask_logits, class_logits, similarities, MaskTargets(labels), seed)


def test_one_mask_per_class_present(labels):
    labels[0, 0, :3] = 255
    targets = MaskTargets(labels)
    assert [classes.tolist() for classes in targets.classes] == [[0, 1], [1, 2, 3]] and len(targets) == 5
    assert torch.equal(targets.masks[0][1], (labels[0] == 1).float())
    assert targets.labelled[0].sum() == SIZE**2 - 3


def test_matching_finds_the_right_queries(labels):
    criterion = MaskTextLoss(config())
    matching = criterion.match(*predictions(labels), MaskTargets(labels), seed=0)
    pairs = [sorted(zip(queries.tolist(), masks.tolist(), strict=True)) for queries, masks in matching]
    assert pairs == [[(0, 1), (4, 0)], [(0, 1), (2, 2), (4, 0)]]


def test_right_predictions_cost_far_less_than_swapped_ones(labels):
    """Some cost stays at the borders, where targets are interpolated between 0 and 1."""
    right = run(labels, *predictions(labels), importance_sample_ratio=0.0)
    swapped = run(1 - labels.clamp(max=1), *predictions(labels), importance_sample_ratio=0.0)
    assert right["mask"] < 0.15 and right["dice"] < 0.1 and right["cross_entropy"] < 0.02
    assert swapped["cross_entropy"] > 2 and swapped["mask"] > right["mask"]


def test_agrees_with_transformers_where_that_is_right(labels):
    """Without ignored pixels, in one process, with the same points everywhere, the losses are transformers' own."""
    torch.manual_seed(5)
    mask_logits = torch.randn(2, QUERIES, 1, 1).expand(-1, -1, SIZE, SIZE) + 0.0  # constant: points do not matter to it
    class_logits = torch.randn(2, QUERIES, CLASSES + 1)
    ours = run(labels, mask_logits, class_logits, train_num_points=20_000)
    targets = MaskTargets(labels)
    theirs = Mask2FormerLoss(config(train_num_points=20_000), {})(mask_logits, class_logits, targets.masks, targets.classes)
    torch.testing.assert_close(ours["cross_entropy"], theirs["loss_cross_entropy"])
    torch.testing.assert_close(ours["mask"], theirs["loss_mask"], rtol=0.02, atol=0)
    torch.testing.assert_close(ours["dice"], theirs["loss_dice"], rtol=0.02, atol=0)


def test_mask_losses_are_divided_by_the_number_of_masks(labels):
    """Empty masks everywhere: the cross-entropy per mask is the share of its pixels times `confidence`, here 5 masks."""
    mask_logits = torch.full((2, QUERIES, SIZE, SIZE), -6.0)
    class_logits = predictions(labels)[1]
    mask = run(labels, mask_logits, class_logits, importance_sample_ratio=0.0)["mask"]
    softplus = math.log1p(math.exp(-6.0))
    expected = sum(share * 6.0 + softplus for share in (0.5, 0.5, 0.25, 0.5, 0.25)) / 5
    # transformers' point sampling fades masks out within half a pixel of the image's border, 5 % of these small ones
    assert mask.item() == pytest.approx(expected, rel=0.06)


def test_ignored_pixels_take_no_part(labels):
    labels[:, 4:9, 2:12] = 255
    mask_logits, class_logits = (tensor.requires_grad_() for tensor in predictions(labels))
    losses = run(labels, mask_logits, class_logits)
    (losses["mask"] + losses["dice"]).backward()
    inside = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    inside[:, 5:8, 3:11] = True  # one cell off the border, where bilinear sampling mixes
    assert mask_logits.grad.abs().sum() > 0
    assert mask_logits.grad.masked_select(inside[:, None]).abs().max() == 0


def test_ignored_pixels_take_no_part_where_too_few_others_are_left(labels):
    """One labelled row gives a sixteenth of the points: the others fall on ignored pixels, and must count for nothing."""
    labels[:, 1:] = 255
    mask_logits, class_logits = predictions(labels)
    losses = run(labels, mask_logits.requires_grad_(), class_logits)
    (losses["mask"] + losses["dice"]).backward()
    assert mask_logits.grad[:, :, 0].abs().sum() > 0
    assert mask_logits.grad[:, :, 2:].abs().max() == 0
    changed = mask_logits.detach().clone()
    changed[:, :, 2:] = torch.randn(2, QUERIES, SIZE - 2, SIZE)
    for name, value in run(labels, changed, class_logits).items():
        torch.testing.assert_close(value, losses[name].detach())


def test_images_without_labels_take_no_part(labels):
    mask_logits, class_logits = predictions(labels, confidence=1.0)
    similarities = torch.randn(2, QUERIES, CLASSES + 1, 2)
    alone = run(labels[:1], mask_logits[:1], class_logits[:1], similarities[:1])
    labels[1] = 255
    both = run(labels, mask_logits, class_logits, similarities)
    for name in alone:
        torch.testing.assert_close(both[name], alone[name])


def test_no_label_at_all_is_zero_with_a_gradient(labels):
    mask_logits, class_logits = (tensor.requires_grad_() for tensor in predictions(labels))
    similarities = torch.randn(2, QUERIES, CLASSES + 1, 2, requires_grad=True)
    losses = run(torch.full_like(labels, 255), mask_logits, class_logits, similarities)
    assert all(value == 0 for value in losses.values())
    sum(losses.values()).backward()
    for tensor in (mask_logits, class_logits, similarities):
        assert tensor.grad is not None and tensor.grad.abs().sum() == 0


def test_losses_of_halves_average_to_those_of_the_whole(labels):
    """What two processes compute with the counts shared; here the counts are shared by hand."""
    torch.manual_seed(7)
    mask_logits, class_logits = torch.randn(2, QUERIES, SIZE, SIZE), torch.randn(2, QUERIES, CLASSES + 1)
    similarities = torch.rand(2, QUERIES, CLASSES + 1, 2)
    whole = run(labels, mask_logits, class_logits, similarities)
    masks = [2, 3]
    weights = [1.0 * count + 0.1 * (QUERIES - count) for count in masks]
    halves = [
        run(labels[row : row + 1], mask_logits[row : row + 1], class_logits[row : row + 1], similarities[row : row + 1])
        for row in range(2)
    ]
    for name, counts in {"mask": masks, "dice": masks, "cross_entropy": weights, "contrastive": weights}.items():
        total = sum(half[name] * count for half, count in zip(halves, counts, strict=True)) / sum(counts)
        torch.testing.assert_close(total, whole[name])


def test_the_global_random_state_is_left_alone(labels):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    run(labels, *predictions(labels))
    assert torch.equal(torch.rand(3), expected)


def test_seeding_points_leaves_nothing_behind(labels):
    """`torch.manual_seed` notes a call with a stack trace for each accelerator that is not in use yet."""
    before = torch.cuda._lazy_seed_tracker.get_calls()
    run(labels, *predictions(labels))
    assert torch.cuda._lazy_seed_tracker.get_calls() == before


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverged(labels, which, value):
    tensors = predictions(labels)
    tensors[which][0, 0] = value
    with pytest.raises(DivergedError, match="learning rate"):
        run(labels, *tensors)


def brute_force(scores: torch.Tensor, target: int, form: str) -> float:
    """The definition, candidate by candidate, for one query; scores (classes, prompts)."""
    if form == "all":
        total = math.log(sum(math.exp(score) for score in scores.flatten().tolist()))
        return sum(total - score for score in scores[target].tolist()) / scores.shape[1]
    winner = int(scores[target].argmax())
    candidates = []
    for class_id in range(scores.shape[0]):
        for prompt in range(scores.shape[1]):
            lost = class_id == target and prompt != winner
            if form == "mix" or not lost:
                candidates.append(math.exp(scores[class_id, prompt].item()))
    return -math.log(math.exp(scores[target, winner].item()) / sum(candidates))


@settings(max_examples=25, deadline=None)
@given(
    classes=st.integers(1, 5), prompts=st.integers(1, 4), form=st.sampled_from(["mix", "separate", "all"]),
    temperature=st.sampled_from([1.0, 0.07]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_contrastive_loss_by_definition(classes, prompts, form, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    similarities = torch.rand(2, 3, classes, prompts, generator=generator, dtype=torch.float64) * 2 - 1
    targets = torch.randint(classes, (2, 3), generator=generator)
    losses = contrastive_loss(similarities, targets, form, temperature)
    for row in range(2):
        for query in range(3):
            expected = brute_force(similarities[row, query] / temperature, int(targets[row, query]), form)
            assert losses[row, query].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("form", ["mix", "separate"])
def test_only_the_winning_prompt_is_pulled(form):
    similarities = torch.tensor([[[[0.1, 0.5], [0.2, 0.3]]]], requires_grad=True)
    contrastive_loss(similarities, torch.tensor([[0]]), form).sum().backward()
    gradient = similarities.grad[0, 0]
    assert gradient[0, 1] < 0 and (gradient[1] > 0).all()
    assert gradient[0, 0] > 0 if form == "mix" else gradient[0, 0] == 0


def test_forms_agree_with_one_prompt():
    similarities, targets = torch.rand(1, 5, 4, 1), torch.tensor([[0, 1, 2, 3, 0]])
    losses = [contrastive_loss(similarities, targets, form) for form in ("mix", "separate", "all")]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])


def test_floor_at_temperature_one():
    """ADE20K has 151 x 3 = 453 candidates: orthogonal to all others and at 1 with its own, the loss is still 5.12."""
    similarities = torch.zeros(1, 1, 151, 3)
    similarities[0, 0, 7, 1] = 1
    target = torch.tensor([[7]])
    assert contrastive_loss(similarities, target).item() == pytest.approx(5.12, abs=0.005)
    assert contrastive_loss(similarities, target, temperature=0.07).item() < 0.001
