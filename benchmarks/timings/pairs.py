"""Pairs of things that do the same job, timed in turn in one run: what is reported are the ratio of the medians and its spread.

A single time says something about one machine on one day; a ratio of two things that were run alternately says something
about the two. The table also names the machine, the versions and the command.
"""

import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch

PACKAGES = ("torch", "transformers", "numpy")


@dataclass
class Pair:
    """Args:
    name: what is measured, with its sizes.
    baseline, candidate: functions without arguments; each is called once before the clock runs.
    words: what the two are, "baseline against candidate".
    """

    name: str
    baseline: Callable[[], object]
    candidate: Callable[[], object]
    words: str


@dataclass
class Timing:
    """Medians in seconds, and the ratio candidate / baseline: its median over the repeats, smallest and largest."""

    name: str
    words: str
    baseline: float
    candidate: float
    ratio: float
    lowest_ratio: float
    highest_ratio: float


def measure(pair: Pair, repeats: int, clock: Callable[[], float] = time.perf_counter) -> Timing:
    """Runs both alternately; neighbours in time are compared with each other, so that a busy moment hits both."""
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; at least one is needed.")
    pair.baseline(), pair.candidate()
    rows = []
    for _ in range(repeats):
        start = clock()
        pair.baseline()
        middle = clock()
        pair.candidate()
        rows.append((middle - start, clock() - middle))
    ratios = sorted(candidate / baseline for baseline, candidate in rows)
    baseline, candidate = (statistics.median(column) for column in zip(*rows, strict=True))
    return Timing(pair.name, pair.words, baseline, candidate, statistics.median(ratios), ratios[0], ratios[-1])


def machine() -> dict[str, str | int]:
    """What the figures depend on."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory() -> float:
    """MiB that this process has held at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def as_table(timings: Sequence[Timing]) -> str:
    """A Markdown table, one row per pair."""
    lines = [
        "| what | baseline against ours | baseline, s | ours, s | ratio | lowest to highest |",
        "|---|---|---|---|---|---|",
    ]
    for row in timings:
        spread = f"{row.lowest_ratio:.3f} to {row.highest_ratio:.3f}"
        lines.append(
            f"| {row.name} | {row.words} | {row.baseline:.4f} | {row.candidate:.4f} | **{row.ratio:.3f}** | {spread} |"
        )
    return "\n".join(lines)
