"""What `benchmarks.ablations.mvp_seg` found: its finished runs as tables and as a picture."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

VOCABULARIES = ("names", "synonyms", "other template")
DROPPED = "names, Global Prompt Refining dropped at inference"

COLUMNS = ("mIoU", "mIoU_seen", "mIoU_unseen", "hIoU")


def cell(values: list[float]) -> str:
    """Mean and deviation in points."""
    mean = 100 * statistics.mean(values)
    return f"{mean:.1f}" if len(values) < 2 else f"{mean:.1f} ± {100 * statistics.stdev(values):.1f}"


def tables(folder: Path, names: Sequence[str]) -> str:
    """The finished runs of these names as Markdown, and the baselines."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    lines = []
    for vocabulary in (*VOCABULARIES, DROPPED):
        lines += [f"\n### {vocabulary}\n", f"| run | n | {' | '.join(COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
        for result in results:
            if result["name"] == "baselines":
                rows = {
                    key: value
                    for key, value in result["figures"].items()
                    if key.endswith(f", {vocabulary}") or key.startswith("oracle")
                }
                for key, figures in rows.items():
                    label = key if key.startswith("oracle") else f"MaskCLIP {key}"
                    lines.append(f"| {label} | 1 | {' | '.join(cell([figures[column]]) for column in COLUMNS)} |")
        for name in names:
            figures = [
                result["figures"][vocabulary]
                for result in results
                if result["name"] == name and vocabulary in result["figures"]
            ]
            if figures:
                cells = " | ".join(cell([figure[column] for figure in figures]) for column in COLUMNS)
                lines.append(f"| {name} | {len(figures)} | {cells} |")
    return "\n".join([*lines, *spread_table(results)])


def spread_table(results: Sequence[dict]) -> list[str]:
    """Every run with prompts: class spread of its views, from the one that depends on the class most, and beside them."""
    lines = ["\n### class spread\n", "| run | seed | views | global | by hand | overlap | centred |", "|---" * 7 + "|"]
    for result in results:
        spreads = dict(result["figures"].get("class_spread", {}))
        if not spreads:
            continue
        by_hand, whole = spreads.pop("by hand"), spreads.pop("global", None)
        overlaps = " | ".join(f"{result['figures'][name]:.2f}" for name in ("text_overlap", "centred_overlap"))
        views = ", ".join(f"{value:.2f}" for value in sorted(spreads.values()))
        shown = "" if whole is None else f"{whole:.2f}"
        lines.append(f"| {result['name']} | {result['seed']} | {views} | {shown} | {by_hand:.2f} | {overlaps} |")
    return lines


def draw(folder: Path, runs: Sequence[str], picture: Path) -> None:
    """Seen and unseen mIoU of every variant with its deviation; lines mark MaskCLIP's best templates and the oracle."""
    import matplotlib.pyplot as plt  # for this figure only, so no requirement of the project

    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    names = [name for name in runs if any(result["name"] == name for result in results)]
    baselines = next(result["figures"] for result in results if result["name"] == "baselines")
    best = max((key for key in baselines if key.endswith(", names")), key=lambda key: baselines[key]["hIoU"])
    plot, axes = plt.subplots(1, 2, figsize=(10, 0.32 * len(names) + 1.2), sharey=True, layout="constrained")
    for axis, column in zip(axes, ("mIoU_seen", "mIoU_unseen"), strict=True):
        for row, name in enumerate(names):
            values = [100 * result["figures"]["names"][column] for result in results if result["name"] == name]
            deviation = statistics.stdev(values) if len(values) > 1 else 0
            axis.errorbar(statistics.mean(values), row, xerr=deviation, fmt="o", color="C0", capsize=3)
        axis.axvline(100 * baselines[best][column], color="C1", linestyle="--", label=f"MaskCLIP, {best.split(',')[0]}")
        axis.axvline(100 * baselines["oracle"][column], color="C2", linestyle="--", label="oracle probe")
        axis.set(title=column.replace("_", ", ") + " (points)", yticks=range(len(names)), yticklabels=names)
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    axes[1].legend(loc="best", fontsize=8)
    plot.savefig(picture, dpi=90)
