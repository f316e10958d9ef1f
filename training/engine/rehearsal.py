"""What a run will take, measured before its first step: some steps are computed and thrown away.

Forward and backward passes of the first batches are timed; no weight, buffer, random state or place in the data is different
afterwards, so that a rehearsed run is the run without it.
"""

import logging
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from accelerate import Accelerator

from ..settings.training_settings import TrainingSettings

logger = logging.getLogger(__name__)

GIB = 2**30


class Estimate(NamedTuple):
    """Seconds per step; bytes at most in use by one process, and bytes that its device has; how many steps were measured."""

    step_seconds: float
    memory: int
    available: int
    steps: int


def rehearse(
    accelerator: Accelerator,
    settings: TrainingSettings,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[], Iterator],
    accumulate: Callable[[Iterator], Any],
    steps_left: int,
) -> Estimate:
    """Runs `settings.rehearsal_steps` steps without taking them, or those that are left.

    Args:
        batches: opens the batches of the run.
        accumulate: computes the gradients of one step from them.

    Raises:
        ValueError: a step does not fit into memory.
    """
    count, seconds = min(settings.rehearsal_steps, steps_left), []
    try:
        with unchanged(model):
            stream = batches()
            for _ in range(count):
                started = time.perf_counter()
                accumulate(stream)
                optimizer.zero_grad()
                seconds.append(time.perf_counter() - started)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"a step of {settings.train_batch_size} images does not fit into memory: lower --train_batch_size and raise "
            "--gradient_accumulation_steps, pass --gradient_checkpointing where there is that flag, or use smaller crops"
        ) from error
    memory, available = memory_in_use(accelerator.device)
    trained = sum(each.numel() * each.element_size() for each in model.parameters() if each.requires_grad)
    return Estimate(
        statistics.median(seconds[1:] or seconds), memory + 2 * trained * (not optimizer.state), available, count
    )  # two moments of AdamW


@contextmanager
def unchanged(model: torch.nn.Module) -> Iterator[None]:
    """Restores what a forward pass in training mode changes: buffers, such as those of batch norms, and random states."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    was_training = model.training
    model.train()
    try:
        yield
    finally:
        model.train(was_training)
        for buffer, before in buffers:
            buffer.copy_(before)
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)


def memory_in_use(device: torch.device) -> tuple[int, int]:
    """Bytes that this process has had in use at most, and bytes that the device has."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device), torch.cuda.get_device_properties(device).total_memory
    return peak_of_process(), psutil.virtual_memory().total


def peak_of_process() -> int:
    """Bytes in memory at most so far where Linux says so, or those of now. `getrusage` would count what a parent held."""
    status = Path("/proc/self/status")
    if status.is_file():
        peak = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        if peak is not None:
            return int(peak.split()[1]) * 1024
    return psutil.Process().memory_info().rss


def announce_estimate(estimate: Estimate, settings: TrainingSettings, first_step: int, validation: tuple[int, float]) -> None:
    """One sentence on time, one on memory; a warning where it will not fit.

    Args:
        validation: how many are to come, and seconds of one.
    """
    steps, (count, seconds) = settings.max_train_steps - first_step, validation
    parts = [f"{steps} steps of {estimate.step_seconds:.2f} s"] + [f"{count} validations of {seconds:.0f} s"] * (count > 0)
    total = steps * estimate.step_seconds + count * seconds
    logger.info(
        "this will take about %s: %s (measured on %d steps that were thrown away); memory about %.1f of %.1f GB",
        duration(total), ", ".join(parts), estimate.steps, estimate.memory / GIB, estimate.available / GIB,
    )  # fmt: skip
    if estimate.memory > 0.9 * estimate.available:
        logger.warning("memory will be short: lower --train_batch_size and raise --gradient_accumulation_steps")


def duration(seconds: float) -> str:
    """`75 s`, `12 min`, `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
