"""Schedules against transformers': the same after warm-up; a warm-up of ours has no step at rate 0."""

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_polynomial_decay_schedule_with_warmup

from training.engine.optim import make_schedule, schedule_factor

WARMUP, TOTAL = 4, 20


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def factors(scheduler) -> list[float]:
    return [scheduler.lr_lambdas[0](step) for step in range(TOTAL + 1)]


def test_cosine_is_transformers_after_warm_up():
    ours = factors(make_schedule(optimizer(), "cosine", WARMUP, TOTAL))
    theirs = factors(get_cosine_schedule_with_warmup(optimizer(), WARMUP, TOTAL))
    assert ours[WARMUP:] == pytest.approx(theirs[WARMUP:], abs=1e-12)
    assert ours[:WARMUP] == [0.25, 0.5, 0.75, 1.0] and theirs[:WARMUP] == [0.0, 0.25, 0.5, 0.75]


def test_poly_is_transformers_but_for_their_final_rate():
    ours = factors(make_schedule(optimizer(), "poly", WARMUP, TOTAL))
    theirs = factors(get_polynomial_decay_schedule_with_warmup(optimizer(), WARMUP, TOTAL, lr_end=1e-9, power=0.9))
    assert ours[WARMUP:] == pytest.approx(theirs[WARMUP:], abs=1e-8)
    assert ours[:WARMUP] != theirs[:WARMUP] and ours[-1] == 0.0


def test_constant_and_what_cannot_be():
    assert [schedule_factor("constant", 2, 5)(step) for step in range(5)] == [0.5, 1.0, 1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="between 0 and total_steps"):
        schedule_factor("poly", 6, 5)
    with pytest.raises(ValueError, match="must be one of"):
        schedule_factor("linear", 0, 5)
