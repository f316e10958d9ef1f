"""The tables of CoCu's driver."""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from .cocu_runs import MAIN_VARIANTS, VARIANTS, run_path


def cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else " (1 seed)"
    return f"{statistics.mean(values):.3f}{spread}"


def read_figures(paths: Sequence[Path]) -> dict[str, list[float]]:
    """Values of each figure over the files that exist."""
    values: dict[str, list[float]] = {}
    for path in paths:
        if path.is_file():
            for name, value in json.loads(path.read_text())["figures"].items():
                values.setdefault(name, []).append(value)
    return values


def closed_gap(args: argparse.Namespace) -> list[float]:
    """Share of the distance from GroupViT to the oracle that CoCu closes, for each seed with all three runs."""
    shares = []
    for seed in args.seeds:
        low, own, high = (read_figures([run_path(args, name, seed) / "scores.json"]).get("mIoU") for name in MAIN_VARIANTS)
        if low and own and high:
            shares.append((own[0] - low[0]) / (high[0] - low[0]))
    return shares


def curve(args: argparse.Namespace, variant: str) -> dict[int, list[float]]:
    """Step -> validation mIoU of each seed."""
    points: dict[int, list[float]] = {}
    for seed in args.seeds:
        path = run_path(args, variant, seed) / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        for step, value in {line["step"]: line["mIoU"] for line in lines if "mIoU" in line}.items():
            points.setdefault(step, []).append(value)
    return points


def print_tables(args: argparse.Namespace) -> None:
    kinds = ("mined", "closed")
    curated = [read_figures([Path(args.output_dir) / "curation" / f"{k}-{seed}.json" for seed in args.seeds]) for k in kinds]
    print("| curation | mined vocabulary | closed vocabulary |\n|---|---|---|")
    for name in {**curated[0], **curated[1]}:
        print(f"| {name} | {' | '.join(cell(figures.get(name, [])) for figures in curated)} |")
    names = ("mIoU", "mIoU, synonyms", "image recall", "cosine between groups")
    print(f"\n| training | {' | '.join(names)} | seeds |\n|---|{'---|' * len(names)}---|")
    for variant in VARIANTS:
        paths = [run_path(args, variant, seed) / file for seed in args.seeds for file in ("scores.json", "groups.json")]
        columns = [read_figures(paths).get(name, []) for name in names]
        print(f"| {variant} | {' | '.join(map(cell, columns))} | {len(columns[0])} |")
    print(f"\nShare of the distance to the oracle that CoCu closes: {cell(closed_gap(args))}\n")
    curves = {variant: curve(args, variant) for variant in MAIN_VARIANTS}
    print(f"| step | {' | '.join(curves)} |\n|---|{'---|' * len(curves)}")
    for step in sorted(set().union(*curves.values())):
        print(f"| {step} | {' | '.join(cell(points.get(step, [])) for points in curves.values())} |")
