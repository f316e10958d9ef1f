"""Withheld ground truth stays withheld."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_clipseg import SegmentationProcessor
from training.data.zero_shot import ZeroShotLabels, check_prompts_fit, choose_split

from ...tiny import save_tiny_clip

NAMES = ["sky", "boat", "grass", "tree", "car"]


def test_hide_by_hand():
    split = ZeroShotLabels(NAMES, [3, 1])
    assert split.seen_names == ["sky", "grass", "car"] and split.unseen_names == ["boat", "tree"]
    mask = torch.tensor([[0, 1, 2], [3, 4, 255]])
    labels, withheld = split.hide(mask)
    assert labels.tolist() == [[0, 255, 2], [255, 4, 255]]
    assert withheld.tolist() == [[False, True, False], [True, False, False]]  # void is not withheld
    assert split.to_seen_numbers(labels).tolist() == [[0, 255, 1], [255, 2, 255]]
    guesses = torch.tensor([[1, 3, 3], [255, 1, 1]])
    assert split.fill_withheld(labels, withheld, guesses).tolist() == [[0, 3, 2], [255, 4, 255]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16), st.sets(st.integers(0, 4), max_size=3))
def test_nothing_of_unseen_classes_survives(seed, unseen):
    """The result does not change when the unseen ground truth is shuffled: no function of it can leak."""
    generator = torch.Generator().manual_seed(seed)
    split = ZeroShotLabels(NAMES, sorted(unseen))
    mask = torch.randint(0, 6, (7, 9), generator=generator)
    mask[mask == 5] = 255
    shuffled = mask.clone()
    places = split.is_unseen[mask]
    if places.any():
        ids = torch.tensor(split.unseen_ids)
        shuffled[places] = ids[torch.randint(0, len(ids), (int(places.sum()),), generator=generator)]
    for hidden, other in zip(split.hide(mask), split.hide(shuffled), strict=True):
        assert torch.equal(hidden, other)
    labels, withheld = split.hide(mask)
    split.assert_hidden(labels)
    assert not set(labels.unique().tolist()) & unseen
    assert torch.equal(labels[~withheld], mask[~withheld])
    back = torch.tensor([*split.seen_ids, 255])[split.to_seen_numbers(labels).clamp(max=len(split.seen_ids))]
    assert torch.equal(back, labels)


def test_a_leak_stops_the_loss():
    split = ZeroShotLabels(NAMES, [1, 3])
    mask = torch.tensor([[0, 1], [2, 3]])
    with pytest.raises(AssertionError, match=r"unseen classes \['boat', 'tree'\] reached the loss"):
        split.assert_hidden(mask)
    labels, withheld = split.hide(mask)
    with pytest.raises(AssertionError, match="reached the loss"):
        split.fill_withheld(mask, withheld, labels)
    with pytest.raises(AssertionError, match="a withheld pixel has a label"):
        split.fill_withheld(torch.zeros_like(labels), withheld, labels)


def test_bad_splits_are_refused():
    with pytest.raises(ValueError, match="1 of 5 classes are seen"):
        ZeroShotLabels(NAMES, [0, 1, 2, 3])
    with pytest.raises(ValueError, match="0 to 4, got"):
        ZeroShotLabels(NAMES, [5])
    with pytest.raises(ValueError, match=r"\['kite'\] is no class of the data set"):
        choose_split(NAMES, "kite,boat")
    with pytest.raises(ValueError, match="split of 20 classes, the data set has 5"):
        choose_split(NAMES, "voc_15_5")
    with pytest.raises(ValueError, match="names no classes"):
        choose_split(None, None)
    assert choose_split(NAMES, None).seen_names == NAMES


def test_names_that_do_not_fit_behind_the_prompt(tmp_path):
    processor = SegmentationProcessor.from_clip(save_tiny_clip(tmp_path))
    name = " ".join(["red"] * 8)  # 10 tokens with start and end
    check_prompts_fit(processor, ["sky", name], "name", num_prompt_tokens=6, limit=16)
    with pytest.raises(ValueError, match="'red red.*' has 10 tokens .* 7 learnable .* more than the 16"):
        check_prompts_fit(processor, ["sky", ["boat", name]], "name", num_prompt_tokens=7, limit=16)
