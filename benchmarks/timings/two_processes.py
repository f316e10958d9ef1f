"""Many pictures on the cores of one machine: a process on each core, against one picture at a time with all cores as threads.

    python -m benchmarks.timings.two_processes --processes 2 --pictures 8 --json processes.json

The processes are those that `accelerate launch` starts for `hf-clipseg segment`: each has its share of the pictures and one
thread. They are started, and the model is built, before the clock runs. Model: ViT-B/16 at random. Clock: wall time, so the
machine must have nothing else to do.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch

from hf_clipseg import segment_many
from hf_clipseg.atomic import replace_file
from hf_clipseg.processing.inference import segment

from .many_pictures import ImagesOnly, picture, random_model, row
from .pairs import Pair, as_table, machine, measure

SIZE, SIDE = (640, 480), 224


def many(model, paths: Sequence[Path]) -> list[dict]:
    return [found for _, found in segment_many(model, ImagesOnly(SIDE), zip(paths, paths, strict=True), finish=row)]


def work(connection) -> None:
    """Answers lists of paths with their rows, until there is None."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = random_model()
    while (paths := connection.recv()) is not None:
        connection.send(many(model, paths))


class Workers:
    """Processes that share a list of pictures; a context manager."""

    def __init__(self, count: int):
        context = get_context("spawn")
        self.pipes, ends = zip(*(context.Pipe() for _ in range(count)), strict=True)
        self.processes = [context.Process(target=work, args=(end,), daemon=True) for end in ends]

    def __enter__(self) -> "Workers":
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join()

    def __call__(self, paths: Sequence[Path]) -> list[dict]:
        for index, pipe in enumerate(self.pipes):
            pipe.send(paths[index :: len(self.pipes)])
        return sorted((found for pipe in self.pipes for found in pipe.recv()), key=lambda found: found["key"])


def compare(processes: int, pictures: int, repeats: int) -> tuple[list, bool]:
    """Against one picture at a time, and against `segment_many` in one process; and whether all labels are equal."""
    torch.manual_seed(0)
    model = random_model()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        paths = [folder / f"{index:03}.jpg" for index in range(pictures)]
        for index, path in enumerate(paths):
            path.write_bytes(picture(index, *SIZE))
        workers = stack.enter_context(Workers(processes))

        def one_by_one() -> list[dict]:
            return [row(path, None, segment(model, ImagesOnly(SIDE), [path])[0]) for path in paths]

        name = f"{pictures} pictures of {SIZE[0]} x {SIZE[1]}, ViT-B/16, {processes} processes"
        pairs = [
            Pair(name, one_by_one, lambda: workers(paths), "one picture at a time against a process per core", pictures),
            Pair(
                name, lambda: many(model, paths), lambda: workers(paths), "`segment_many` against a process per core", pictures
            ),
        ]
        timings = [measure(pair, repeats) for pair in pairs]
        return timings, one_by_one() == workers(paths)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rows here, for `benchmarks.timings.run_all --take`")
    args = parser.parse_args(arguments)
    timings, equal = compare(args.processes, args.pictures, args.repeats)
    print(as_table(timings), "same labels" if equal else "OTHER LABELS", sep="\n")
    if args.json:
        command = f"python -m benchmarks.timings.two_processes --processes {args.processes} --pictures {args.pictures}"
        part = {"group": "processes", "command": command, "machine": machine() | {"clock": "wall time"}}
        part |= {"date": time.strftime("%Y-%m-%d"), "rows": [asdict(timing) for timing in timings]}
        with replace_file(args.json) as partial:
            partial.write_text(json.dumps(part, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
