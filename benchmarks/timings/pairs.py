"""Pairs of things that do the same job, timed in turn in one run: what is reported are the ratio of the medians and its spread.

A single time says something about one machine on one day; a ratio of two things that were run alternately says something
about the two. The table also names the machine, the versions and the command.
"""

import ctypes
import gc
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "numpy")
FEWEST_REPEATS = 3


@dataclass
class Pair:
    """Args:
    name: what is measured, with its sizes.
    baseline, candidate: functions without arguments; each is called once before the clock runs.
    words: what the two are, "baseline against candidate".
    images: how many images a call handles; in place of seconds, images per second are of interest.
    memory: also measure what a call adds to this process's memory at its peak.
    """

    name: str
    baseline: Callable[[], object]
    candidate: Callable[[], object]
    words: str
    images: int | None = None
    memory: bool = False


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
    repeats: int
    images: int | None = None
    baseline_mib: float | None = None
    candidate_mib: float | None = None


def measure(pair: Pair, repeats: int, clock: Callable[[], float] = time.perf_counter, patience: float = float("inf")) -> Timing:
    """Runs both alternately; neighbours in time are compared with each other, so that a busy moment hits both.

    Args:
        repeats: how often; at least `FEWEST_REPEATS`, or fewer where so few are asked for, even out of patience.
        patience: seconds after which no further repeat is started.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; at least one is needed.")
    started = clock()
    pair.baseline(), pair.candidate()
    rows: list[tuple[float, float]] = []
    while len(rows) < repeats and (len(rows) < FEWEST_REPEATS or clock() - started < patience):
        start = clock()
        pair.baseline()
        middle = clock()
        pair.candidate()
        rows.append((middle - start, clock() - middle))
    ratios = sorted(candidate / baseline for baseline, candidate in rows)
    baseline, candidate = (statistics.median(column) for column in zip(*rows, strict=True))
    added = [added_memory(way) for way in (pair.baseline, pair.candidate)] if pair.memory else [None, None]
    spread = statistics.median(ratios), ratios[0], ratios[-1]
    return Timing(pair.name, pair.words, baseline, candidate, *spread, len(rows), pair.images, *added)


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


def added_memory(function: Callable[[], object]) -> float | None:
    """MiB that a call holds at its peak beyond what it held before; None without Linux and glibc."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # otherwise what was freed and kept would be used again unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except (OSError, AttributeError):
        return None
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def as_table(timings: Sequence[Timing]) -> str:
    """A Markdown table, one row per pair; images per second and memory where they were measured."""
    with_images, with_memory = any(row.images for row in timings), any(row.baseline_mib is not None for row in timings)
    heads = ["what", "baseline against ours", "baseline, s", "ours, s", "ratio", "lowest to highest"]
    heads += ["ours, images/s"] * with_images + ["memory: baseline, MiB", "ours, MiB"] * with_memory
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in timings:
        cells = [row.name, row.words, f"{row.baseline:.4f}", f"{row.candidate:.4f}", f"**{row.ratio:.3f}**"]
        cells.append(f"{row.lowest_ratio:.3f} to {row.highest_ratio:.3f}")
        cells += [f"{row.images / row.candidate:.1f}" if row.images else ""] * with_images
        if with_memory:
            cells += ["" if mib is None else f"{mib:.0f}" for mib in (row.baseline_mib, row.candidate_mib)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
