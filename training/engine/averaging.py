"""A moving average of the weights, which is what is scored and saved where a run keeps one."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def make_ema(accelerator: Accelerator, model: torch.nn.Module, decay: float) -> AveragedModel | None:
    """The moving average of the weights, part of every checkpoint; None where `decay` is 0."""
    if not decay:
        return None
    return AveragedModel(accelerator.unwrap_model(model), multi_avg_fn=warmed_up(decay), use_buffers=True)


def decay_after(updates: int, decay: float) -> float:
    """The decay of a young average is lower, or a short run would keep its random start: (1 + n) / (10 + n), as TensorFlow's
    `ExponentialMovingAverage` has it with `num_updates`, until `decay` is reached."""
    return min(decay, (1 + updates) / (10 + updates))


def warmed_up(decay: float) -> Callable:
    def update(averaged: list, current: list, updates) -> None:
        get_ema_multi_avg_fn(decay_after(int(updates), decay))(averaged, current, updates)

    return update
