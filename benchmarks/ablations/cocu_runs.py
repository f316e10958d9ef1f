"""What CoCu's driver trains, and where it keeps it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

# Options of training.train_cocu that differ from its defaults; {mined}, ... are folders of concepts, {clip} is --clip.
CURATED = ["--concepts", "{mined}", "--sampling", "clustered"]
VARIANTS: dict[str, list[str]] = {
    "GroupViT": ["--concepts", "{mined}", "--sampling", "none"],
    "CoCu": CURATED,
    "oracle concepts": ["--concepts", "{oracle}", "--sampling", "clustered"],
    "CoCu, top 3": ["--concepts", "{mined}", "--sampling", "top"],
    "CoCu, closed vocabulary": ["--concepts", "{closed}", "--sampling", "clustered"],
    "GroupViT, oracle captions": ["--concepts", "{oracle captions}", "--sampling", "none", "--omission_rate", "0"],
    "CoCu, archive contrasted": [*CURATED, "--contrast_archive"],
    "CoCu, pooled before projection": [*CURATED, "--pooling", "before_projection"],
}
STARTS = {
    "noise": ["--model_config", "tiny", "--max_train_steps", "2000", "--warmup_steps", "200", "--validation_steps", "250"],
    "clip": ["--start_from_clip", "{clip}", "--freeze_vision"],
}
MAIN_VARIANTS = ("GroupViT", "CoCu", "oracle concepts")


def run_path(args: argparse.Namespace, variant: str, seed: int) -> Path:
    return Path(args.output_dir) / "training" / args.start / f"{variant.replace(', ', '-').replace(' ', '-')}-{seed}"


def words(options: Sequence[str]) -> list[str]:
    """`["--limit 10", ...]` -> `["--limit", "10", ...]`."""
    return [word for option in options for word in option.split()]
