"""Draws the curves of training runs from their metrics.jsonl.

pip install -r benchmarks/requirements.txt
    python benchmarks/figures/draw_curves.py runs/clip-toyscapes/metrics.jsonl --values contrastive explained \\
        --output curves.png

Runs whose folders differ in a number at the end only, as seeds do, share a colour.
"""

import argparse
import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def read_metrics(path: Path) -> list[dict]:
    """Rows in order of step; where a resumed run wrote a step again, the last row counts."""
    rows: dict[tuple, dict] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        rows[row["step"], tuple(sorted(row))] = row
    return sorted(rows.values(), key=lambda row: row["step"])


def draw(files: list[Path], values: list[str], output: Path) -> None:
    """One panel per value, one line per run, one colour per family of runs."""
    figure, panels = plt.subplots(1, len(values), figsize=(4 * len(values), 3), squeeze=False)
    names = [re.sub(r"-\d+$", "", file.parent.name) for file in files]
    families = list(dict.fromkeys(names))
    for panel, value in zip(panels[0], values, strict=True):
        for file, name in zip(files, names, strict=True):
            points = [(row["step"], row[value]) for row in read_metrics(file) if value in row]
            if not points:
                raise SystemExit(f"{file} has no value {value!r}")
            label = name if name not in panel.get_legend_handles_labels()[1] else None
            panel.plot(*zip(*points, strict=True), label=label, color=f"C{families.index(name)}")
        panel.set(title=value, xlabel="step")
        panel.grid(alpha=0.3)
    if len(families) > 1:
        panels[0][0].legend(fontsize="small")
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--values", nargs="+", default=["loss"])
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    draw(arguments.files, arguments.values, arguments.output)
