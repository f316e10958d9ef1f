"""Every timing of docs/benchmarks.md, in groups that can be run one at a time; the page is made of what they left.

    OMP_NUM_THREADS=1 python -m benchmarks.timings.run_all                        # all groups: about 15 minutes
    OMP_NUM_THREADS=1 python -m benchmarks.timings.run_all --group precision      # one of them, and the page anew

Models have random weights where only time matters; trained ones are used where the content does. `--only` picks rows by a part
of their name for a look, and then nothing is written; `--repeats 3` is enough for one.
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

from . import rows_around, rows_methods
from .exported import as_table as table_of_graphs
from .pairs import Pair, Timing, as_table, machine, measure

DOCS = Path(__file__).parents[2] / "docs"
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
    "exported": "Exported graphs (ONNX) beside their models",
}
NOTES = {
    "others": "CLIPSeg sees an image once per class, so with one class and patches of 32, its default, it is quicker than "
    "MaskCLIP with patches of 16; what it finds there has a quarter of the tokens.",
    "exported": "Both scored by `training.evaluate` on the same 100 scenes of the test split.",
    "precision": "bf16 has a row only where the processor computes in it: elsewhere it is emulated, and slow.",
    "throughput": "With one thread a stream has nothing to do beside the model; run this with as many as there are cores.",
    "growth": "The baseline is the smaller of the two, so a ratio of 4 for 4 times the pixels would be linear growth.",
    "training": "The ratio says how many forward passes a step costs. Memory is what it adds to weights and optimiser.",
}
HEAD = """# Benchmarks

Written by `python -m benchmarks.timings.run_all`; do not edit by hand. Both columns of a row were run in turn, and the ratio is
the median of the ratios of neighbours in time, with the lowest and the highest beside it: single times belong to a machine and
a day, ratios travel better. Below 1, ours is quicker. With one thread the clock is CPU time, which other programs disturb less;
where a part says wall time, they ran beside it. `docs/benchmarks.json` has the same figures, `--group` measures a part anew,
and `OMP_NUM_THREADS` is the number of threads.
"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", nargs="*", choices=[*GROUPS], default=[*GROUPS], help="these groups of rows only")
    parser.add_argument("--only", default="", help="rows with this in their name, on the screen only")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--exported", type=Path, help="also take in what benchmarks.timings.exported wrote as --json")
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
    sections = [HEAD]
    for name, title in TITLES.items():
        if name not in figures:
            continue
        part = figures[name]
        place = ", ".join(f"{key} {value}" for key, value in part["machine"].items())
        table = table_of_graphs(part["rows"]) if name == "exported" else as_table([Timing(**row) for row in part["rows"]])
        note = f"{NOTES[name]}\n\n" if name in NOTES else ""
        sections.append(f"## {title}\n\n{note}    {part['command']}\n\n{place}; {part['date']}.\n\n{table}\n")
    return "\n".join(sections)


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
    measured = False
    for name in args.group:
        torch.manual_seed(0)
        for part in measure_group(name, args.only, args.repeats):
            measured = True
            if not args.only:
                write(read_figures(args.docs) | {name: part}, args.docs)
    if args.exported:
        figures = json.loads(args.exported.read_text(encoding="utf-8"))
        write(read_figures(args.docs) | {"exported": figures}, args.docs)
    elif not measured:
        sys.exit(f"error: no row has {args.only!r} in its name")


if __name__ == "__main__":
    main()
