"""Every timing of docs/benchmarks.md, in groups that can be run one at a time; the page is made of what they left.

    OMP_NUM_THREADS=1 python -m benchmarks.timings.run_all                        # all groups: about 15 minutes
    OMP_NUM_THREADS=1 python -m benchmarks.timings.run_all --group precision      # one of them, and the page anew

Models have random weights where only time matters; trained ones are used where the content does. `--only` picks rows by a part
of their name for a look, and then nothing is written; `--repeats 3` is enough for one. What other modules measured and wrote as
`--json` (`exported`, `segment_load`, `demo`, `many_pictures --memory`) is taken in with `--take FILE ...`. Words of people on
figures are in `notes.md`, a heading per group; `--take` without files makes the page anew with them.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from hf_clipseg.atomic import replace_file

from . import rows_around, rows_methods, steady
from .exported import as_table as table_of_graphs
from .pairs import Pair, Timing, as_table, machine, measure

DOCS = Path(__file__).parents[2] / "docs"
NOTES = Path(__file__).with_name("notes.md")
PAGE, FIGURES = "benchmarks.md", "benchmarks.json"
PATIENCE = 12.0
"""Seconds of a row after which its repeats end early, but for the fewest that a spread needs."""

GROUPS: dict[str, Callable[[], Iterator[Pair]]] = {
    "backbones": rows_methods.backbones,
    "others": rows_methods.others,
    "precision": rows_methods.precision,
    "growth": rows_methods.growth,
    "training": rows_methods.training,
    "post-processing": rows_around.post_processing,
    "refinement": rows_around.refinement,
    "scores": rows_around.scores,
    "texts": rows_around.texts,
    "throughput": rows_around.throughput,
}
TITLES = {
    "backbones": "Methods beside their backbone (ViT-B/16)",
    "others": "Methods beside what else one could take",
    "precision": "Ways to run one model",
    "growth": "How time grows",
    "training": "Training steps of the shipped checkpoints",
    "post-processing": "From logits to labels",
    "refinement": "Refinement",
    "scores": "Scores",
    "texts": "Class texts",
    "throughput": "Many pictures",
    "processes": "Many pictures, a process on each core",
    "many-pictures-memory": "Memory over many pictures",
    "segment-load": "`segment` under load",
    "demo-load": "The demo under load and attack",
    "exported": "Exported graphs (ONNX) beside their models",
}
STEADY = ("many-pictures-memory", "segment-load", "demo-load")
HEAD = """# Benchmarks

Written by `python -m benchmarks.timings.run_all`; do not edit by hand. Both columns of a row were run in turn, and the ratio is
the median of the ratios of neighbours in time, with the lowest and the highest beside it: single times belong to a machine and
a day, ratios travel better. Below 1, ours is quicker. With one thread the clock is CPU time, which other programs disturb less;
where a part says wall time, they ran beside it. `docs/benchmarks.json` has the same figures, `--group` measures a part anew,
and `OMP_NUM_THREADS` is the number of threads. The words are those of `benchmarks/timings/notes.md`.
"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", nargs="*", choices=[*GROUPS], default=[*GROUPS], help="these groups of rows only")
    parser.add_argument("--only", default="", help="rows with this in their name, on the screen only")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--take", type=Path, nargs="*", metavar="FILE", help="only take in what other modules wrote as --json")
    parser.add_argument("--docs", type=Path, default=DOCS, help=f"where {PAGE} and {FIGURES} are")
    return parser.parse_args(arguments)


def read_figures(folder: Path) -> dict:
    file = folder / FIGURES
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def write(figures: dict, folder: Path) -> None:
    """The figures, then the page that is made of them."""
    for name, text in ((FIGURES, json.dumps(figures, indent=1) + "\n"), (PAGE, page(figures))):
        with replace_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


def page(figures: dict) -> str:
    notes = read_notes()
    sections = [HEAD, f"## Goals\n\n{notes['goals']}\n"]
    for name, title in TITLES.items():
        if name not in figures:
            continue
        part = figures[name]
        place = ", ".join(f"{key} {value}" for key, value in part["machine"].items())
        note = f"{notes[name]}\n\n" if name in notes else ""
        sections.append(f"## {title}\n\n{note}    {part['command']}\n\n{place}; {part['date']}.\n\n{table(name, part)}\n")
    return "\n".join(sections)


def table(name: str, part: dict) -> str:
    if name in STEADY:
        return steady.as_table(part)
    return table_of_graphs(part["rows"]) if name == "exported" else as_table([Timing(**row) for row in part["rows"]])


def read_notes() -> dict[str, str]:
    """What people wrote, by group."""
    parts = NOTES.read_text(encoding="utf-8").split("\n## ")[1:]
    return {name.strip(): text.strip() for name, text in (part.split("\n", 1) for part in parts)}


def command_of(module: str, *words: str) -> str:
    threads = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} " if "OMP_NUM_THREADS" in os.environ else ""
    return f"{threads}python -m benchmarks.timings.{module} {shlex.join(words)}".strip()


def measure_group(name: str, only: str, repeats: int) -> Iterator[dict]:
    """The part of the figures after every row, so that a run that is broken off leaves what it has."""
    command = command_of("run_all", "--group", name, "--repeats", str(repeats))
    clock, meaning = (time.process_time, "CPU time") if torch.get_num_threads() == 1 else (time.perf_counter, "wall time")
    about = {"command": command, "machine": machine() | {"clock": meaning}, "date": time.strftime("%Y-%m-%d")}
    timings = []
    for pair in GROUPS[name]():
        if only in pair.name:
            timings.append(measure(pair, repeats, clock, PATIENCE))
            print(as_table(timings[-1:]).splitlines()[-1], flush=True)
            yield about | {"rows": [asdict(row) for row in timings]}


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    if args.take is not None:
        parts = [json.loads(file.read_text(encoding="utf-8")) for file in args.take]
        write(read_figures(args.docs) | {part["group"]: part for part in parts}, args.docs)
        return
    measured = False
    for name in args.group:
        torch.manual_seed(0)
        for part in measure_group(name, args.only, args.repeats):
            measured = True
            if not args.only:
                write(read_figures(args.docs) | {name: part}, args.docs)
    if not measured:
        sys.exit(f"error: no row has {args.only!r} in its name")


if __name__ == "__main__":
    main()
