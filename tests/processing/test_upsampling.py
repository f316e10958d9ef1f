"""Labels from the grid are those of up-sampling every class at full size, whichever path makes them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_clipseg.processing import upsampling
from hf_clipseg.processing.upsampling import may_win, upsample, upsample_argmax, winners_of_cells


def scores(logits, size):
    """Every class up-sampled on its own: together, torch rounds the last bit by how many there are."""
    singles = logits.float().split(1)
    options = {"mode": "bilinear", "align_corners": False}
    return torch.cat([torch.nn.functional.interpolate(single[None], size, **options)[0] for single in singles])


def plain(logits, size):
    return scores(logits, size).argmax(dim=0)


def assert_wins(labels, logits, size):
    """No class is above the given one by more than rounding."""
    every = scores(logits, size)
    slack = 4 * torch.finfo(torch.float32).eps * logits.abs().max().float()
    assert labels.shape == size and labels.dtype == torch.int64
    assert (every.gather(0, labels[None])[0] >= every.amax(dim=0) - slack).all()


def smooth_logits(seed, classes, height, width, noise=0.3):
    """A few regions with one strong class each, as trained models give them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 4 * torch.randn(1, classes, 3, 4, generator=generator)
    regions = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return regions + noise * torch.randn(classes, height, width, generator=generator)


@pytest.fixture(params=["one by one", "in chunks", "as shipped"])
def path(request, monkeypatch):
    """Small examples on the way of large ones."""
    if request.param == "one by one":
        monkeypatch.setattr(upsampling, "ONE_BY_ONE_PIXELS", 1)
        monkeypatch.setattr(upsampling, "FEW_ELEMENTS", 1)
    elif request.param == "in chunks":
        monkeypatch.setattr(upsampling, "FEW_ELEMENTS", 3000)
    return request.param


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**16),
    st.sampled_from([1, 2, 7, 40]),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    st.sampled_from(["random", "smooth", "steps", "huge", "constant"]),
    st.booleans(),
)
def test_labels_equal_the_plain_version(seed, classes, grid, size, dtype, kind, one_by_one):
    generator = torch.Generator().manual_seed(seed)
    logits = {
        "random": torch.randn(classes, *grid, generator=generator),
        "smooth": smooth_logits(seed, classes, *grid),
        "steps": torch.randint(0, 3, (classes, *grid), generator=generator).float(),  # ties in whole quads
        "huge": smooth_logits(seed, classes, *grid).where(torch.rand(classes, 1, 1, generator=generator) > 0.5, -1e4),
        "constant": torch.zeros(classes, *grid),
    }[kind].to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upsampling, "FEW_ELEMENTS", 1)
        patch.setattr(upsampling, "ONE_BY_ONE_PIXELS", 1 if one_by_one else 10**9)
        labels = upsample_argmax(logits, size)
    assert_wins(labels, logits, size)
    assert not one_by_one or torch.equal(labels, plain(logits, size))


@pytest.mark.parametrize("classes", [1, 2, 255, 256, 257, 600])
def test_any_number_of_classes(path, classes):
    logits = torch.rand(classes, 8, 9)
    for place, winner in enumerate(range(0, classes, max(1, classes // 60))):  # all through the list, the last one too
        logits[winner, place // 9 % 8, place % 9] = 2.0
    logits[-1, 7, 8] = 3.0
    labels = upsample_argmax(logits, (31, 47))
    assert torch.equal(labels, plain(logits, (31, 47)))
    assert labels.unique().numel() >= min(classes, 40) and labels[-1, -1] == classes - 1


def test_nearly_equal_classes_keep_their_order(path):
    """Differences of one bit, and none, between classes: rounding decides, and classes are not dropped by mistake."""
    base = 1 + torch.rand(1, 8, 8)
    steps = torch.randint(-1, 2, (12, 8, 8))
    logits = torch.where(steps == 0, base, torch.nextafter(base.expand_as(steps), 10.0 * steps))
    labels = upsample_argmax(logits, (101, 77))
    assert_wins(labels, logits, (101, 77))
    assert path != "one by one" or torch.equal(labels, plain(logits, (101, 77)))


def test_classes_that_lose_in_every_quad_are_never_up_sampled(monkeypatch):
    monkeypatch.setattr(upsampling, "FEW_ELEMENTS", 1)
    monkeypatch.setattr(upsampling, "MOST_WINNERS", 1)
    logits = torch.full((5, 6, 6), -1.0)
    logits[1, :, :3], logits[3, :, 3:] = 2.0, 2.0
    logits[4] = 1.5  # below one winner left, below the other right, above both in the seam between
    logits[2] = 0.4  # in the seam above one corner of each winner, but never above class 4
    assert may_win(logits).tolist() == [False, True, False, True, True]
    seen = []
    monkeypatch.setattr(upsampling, "upsample", lambda values, *where: (seen.append(len(values)), upsample(values, *where))[1])
    assert torch.equal(upsample_argmax(logits, (300, 300)), plain(logits, (300, 300)))
    assert sum(seen) == 3


def test_maps_near_the_size_of_the_result_are_not_searched(monkeypatch):
    monkeypatch.setattr(upsampling, "FEW_ELEMENTS", 1)
    monkeypatch.setattr(upsampling, "may_win", None)
    logits = torch.rand(6, 150, 200)
    assert torch.equal(upsample_argmax(logits, (300, 400)), plain(logits, (300, 400)))


def test_scores_of_which_most_classes_win_a_cell_are_not_searched(monkeypatch):
    """Few could be dropped: with looking for them, 400 classes at 120 pixels took 1.7 times as long as up-sampling them all."""
    monkeypatch.setattr(upsampling, "FEW_ELEMENTS", 1)
    searched = []
    monkeypatch.setattr(upsampling, "may_win", lambda logits: (searched.append(len(logits)), may_win(logits))[1])
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(20, 12, 12, generator=generator)
    assert winners_of_cells(random) == 20 and winners_of_cells(random[:, :1, :1]) == 1
    for logits, expected in ((random, []), (smooth_logits(0, 200, 12, 12, noise=0.0), [200])):
        searched.clear()
        assert_wins(upsample_argmax(logits, (120, 120)), logits, (120, 120))
        assert searched == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("max_elements", [1, 2**25])
def test_logits_that_are_not_finite_behave_as_in_the_plain_version(path, monkeypatch, value, max_elements):
    monkeypatch.setattr(upsampling, "MAX_ELEMENTS", max_elements)
    logits = torch.randn(6, 5, 5)
    logits[2, 1, 1] = logits[4, 1, 1] = logits[5, 3, 3] = value
    assert torch.equal(upsample_argmax(logits, (45, 45)), plain(logits, (45, 45)))


def test_the_logits_are_left_as_they_were(path):
    logits = smooth_logits(0, 9, 8, 8)
    before = logits.clone()
    upsample_argmax(logits, (256, 300))
    assert torch.equal(logits, before)


def test_logits_that_carry_gradients_are_welcome(path):
    """Who calls a model without `no_grad`, as the cards do, gets labels all the same."""
    logits = smooth_logits(0, 9, 8, 8)
    assert torch.equal(upsample_argmax(logits.clone().requires_grad_(), (256, 300)), upsample_argmax(logits, (256, 300)))
