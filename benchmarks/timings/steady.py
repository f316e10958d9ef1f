"""Memory while something goes on: readings at equal distances, and how it still grows once everything is warm."""

import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hf_clipseg.atomic import replace_file

from .pairs import machine

READINGS = 10


@dataclass
class Reading:
    """So long after the start, with so much done, a process held so much."""

    minutes: float
    done: int
    mib: float


def held_mib(process: int | str = "self") -> float:
    """Resident memory of a process now, in MiB (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class Watch:
    """Takes the readings and prints them.

    Args:
        what: what is counted, "requests".
        held: MiB that are held now.
    """

    def __init__(self, what: str, held: Callable[[], float] = held_mib, clock: Callable[[], float] = time.monotonic):
        self.what, self.held, self.clock, self.readings = what, held, clock, [Reading(0.0, 0, held())]
        self.started = clock()
        print(f"before: {self.readings[0].mib:.0f} MiB", flush=True)

    def share(self, minutes: float) -> float:
        """How much of so many minutes is over."""
        return (self.clock() - self.started) / 60 / minutes

    def note(self, share: float, done: int) -> None:
        """Takes the next of `READINGS` readings once this share of everything is over."""
        if len(self.readings) > READINGS or share < len(self.readings) / READINGS:
            return
        self.readings.append(Reading((self.clock() - self.started) / 60, done, self.held()))
        print(f"after {self.readings[-1].minutes:.1f} minutes, {done} {self.what}: {self.readings[-1].mib:.0f} MiB", flush=True)


def growth(readings: Sequence[Reading], axis: str) -> float:
    """MiB per minute or per item (`axis`: "minutes", "done") over the second half, by least squares."""
    half = readings[len(readings) // 2 :]
    return float(np.polyfit([getattr(reading, axis) for reading in half], [reading.mib for reading in half], 1)[0])


def as_table(part: dict) -> str:
    """Readings side by side, and what they come to."""
    readings = [Reading(**row) for row in part["rows"]]
    lines = [
        ["minutes", *(f"{reading.minutes:.1f}" for reading in readings)],
        [part["what"], *(str(reading.done) for reading in readings)],
        ["MiB", *(f"{reading.mib:.0f}" for reading in readings)],
    ]
    table = ["| " + " | ".join(cells) + " |" for cells in lines]
    table.insert(1, "|---" * len(lines[0]) + "|")
    half = [reading.mib for reading in readings[len(readings) // 2 :]]
    table.append(
        f"\nOver the second half between {min(half):.0f} and {max(half):.0f} MiB: **{growth(readings, 'minutes'):+.2f} MiB a "
        f"minute**, {1000 * growth(readings, 'done'):+.2f} MiB per 1,000 {part['what']}."
    )
    return "\n".join([*table, *(f"\n{said}" for said in part["said"])])


def save(file: Path | None, group: str, command: str, watch: Watch, said: Sequence[str] = ()) -> None:
    """Prints the table, and writes what `benchmarks.timings.run_all --take` puts on the page.

    Args:
        group: section of the page.
        said: sentences to stand below the table.
    """
    part = {"group": group, "command": command, "machine": machine(), "date": time.strftime("%Y-%m-%d")}
    part |= {"what": watch.what, "rows": [asdict(reading) for reading in watch.readings], "said": [*said]}
    print(as_table(part))
    if file:
        with replace_file(file) as partial:
            partial.write_text(json.dumps(part, indent=2) + "\n", encoding="utf-8")
