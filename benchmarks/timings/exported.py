"""What an exported graph scores beside the model that it was made from: every shipped checkpoint, eager and in onnxruntime.

    OMP_NUM_THREADS=1 python -m benchmarks.timings.exported --limit 100 --json exported.json

Both are scored by `training.evaluate` on the same scenes of Toyscapes. `--graphs FOLDER` keeps the graphs, and takes those that
are there already.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from hf_clipseg.atomic import replace_file
from hf_clipseg.checkpoints import find_checkpoints
from training import evaluate
from training.export import export_as_graph

from .pairs import machine

CARDS = Path(__file__).parents[2] / "model_cards"


def rows(names: Sequence[str], folder: Path, limit: int) -> Iterator[dict]:
    for name in names:
        started = time.perf_counter()
        if not (folder / name).is_dir():
            export_as_graph(CARDS / name, folder / name, "onnx")
        seconds = time.perf_counter() - started
        model, graph = (miou(source, limit) for source in (CARDS / name, folder / name))
        yield {
            "name": name,
            "model_mIoU": model,
            "graph_mIoU": graph,
            "export_seconds": seconds,
            "graph_mib": (folder / name / "model.onnx").stat().st_size / 2**20,
        }


def miou(source: Path, limit: int) -> float:
    return evaluate.evaluate(evaluate.parse_arguments([str(source), "--limit", str(limit)]))["mIoU"]


def as_table(found: Sequence[dict]) -> str:
    lines = [
        "| checkpoint | mIoU of the model | of its graph | difference | graph, MiB | export, s |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        lines.append(
            f"| {row['name']} | {row['model_mIoU']:.5f} | {row['graph_mIoU']:.5f} | "
            f"**{abs(row['graph_mIoU'] - row['model_mIoU']):.5f}** | {row['graph_mib']:.1f} | {row['export_seconds']:.0f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=100, help="scenes of Toyscapes' test split")
    parser.add_argument("--only", default="", help="checkpoints with this in their name")
    parser.add_argument("--graphs", type=Path, help="where the graphs are kept; default: a temporary folder")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args(arguments)
    names = [checkpoint.name for checkpoint in find_checkpoints(CARDS) if args.only in checkpoint.name]
    with tempfile.TemporaryDirectory() as temporary:
        found = list(rows(names, args.graphs or Path(temporary), args.limit))
    print(as_table(found))
    if args.json:
        command = f"OMP_NUM_THREADS={torch.get_num_threads()} python -m benchmarks.timings.exported --limit {args.limit}"
        figures = {
            "group": "exported",
            "command": command,
            "machine": machine(),
            "date": time.strftime("%Y-%m-%d"),
            "rows": found,
        }
        with replace_file(args.json) as partial:
            partial.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
