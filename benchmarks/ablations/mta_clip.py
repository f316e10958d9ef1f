"""Every figure of MTA-CLIP's card that is a mean over seeds.

    python -m benchmarks.ablations.mta_clip --output_dir runs/mta-clip-ablations           # train and score; skips what is done
    python -m benchmarks.ablations.mta_clip --output_dir runs/mta-clip-ablations --tables  # mean and deviation, as Markdown

Every run is `training.train_mta_clip` with the options below, for the same number of steps on the same scenes, scored on the
same Toyscapes test scenes at full resolution. A finished run leaves one JSON file; a run without one is done again, from its
last checkpoint where there is one. Standard deviations are over seeds (n - 1).
"""

import argparse
import json
import logging
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState

from hf_clipseg import SegmentationProcessor
from hf_clipseg.toyscapes import STUFF_NAMES, THING_NAMES
from training import train_mta_clip
from training.data.sources import load_source
from training.engine.provenance import provenance, write_json
from training.evaluation.scoring import score

logger = logging.getLogger(__name__)

# Options that differ from the defaults of training.train_mta_clip, the most important comparison first.
VARIANTS: dict[str, list[str]] = {
    "MTA-CLIP": [],
    "text-free (Mask2Former on CLIP)": ["--num_prompts", "0"],
    "pixel-text baseline": ["--method", "pixel_text"],
    "temperature 1.0 (paper)": ["--contrastive_temperature", "1.0"],
    "no contrastive loss": ["--contrastive_weight", "0"],
    "loss separate": ["--contrastive_form", "separate"],
    "loss all": ["--contrastive_form", "all"],
    "1 prompt": ["--num_prompts", "1"],
    "5 prompts": ["--num_prompts", "5"],
}
FIGURES = ("mIoU", "pixel_accuracy", "boundary_f")
TEST_SEED = 7  # the scenes that the other cards are scored on


class InMemory:
    """A source that draws every scene once."""

    def __init__(self, source):
        self.class_names = source.class_names
        self.samples = [source[index] for index in range(len(source))]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        return self.samples[index]


def result_file(folder: Path, variant: str, seed: int) -> Path:
    name = "".join(letter if letter.isalnum() else "-" for letter in variant.lower())
    return folder / f"{name}.seed{seed}.json"


def run_one(args: argparse.Namespace, variant: str, seed: int, test: InMemory, more: Sequence[str]) -> None:
    """Train and score one variant with one seed; the file is written last."""
    target = result_file(args.output_dir, variant, seed)
    run_dir = target.with_suffix("")
    options = [
        "--output_dir", str(run_dir), "--model_name_or_path", args.clip, "--seed", str(seed),
        "--resume_from_checkpoint", "latest", *more, *VARIANTS[variant],
    ]  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)
    started = time.perf_counter()
    model = train_mta_clip.run(train_mta_clip.parse_arguments(options))
    seconds = time.perf_counter() - started
    processor = SegmentationProcessor.from_pretrained(run_dir / "final")
    scores = score(model, processor, test, None, len(test.class_names), Accelerator())
    figures = scores.figures(list(test.class_names))
    write_json(target, {
        "variant": variant, "seed": seed, **figures, "training_seconds": seconds, "test_images": len(test),
        "trained_parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        **provenance("training.train_mta_clip", [option.replace(str(args.output_dir), "runs") for option in options]),
    })  # fmt: skip
    for checkpoint in run_dir.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    logger.info("%s, seed %d: %s, %.0f s", variant, seed, {name: round(figures[name], 4) for name in FIGURES}, seconds)


def read_results(folder: Path) -> dict[str, list[dict]]:
    """Finished runs by variant, in the order of `VARIANTS`."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.seed*.json"))]
    return {variant: found for variant in VARIANTS if (found := [line for line in results if line["variant"] == variant])}


def spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def mean_iou(result: dict, names: Sequence[str]) -> float:
    return statistics.mean(result["per_class_iou"][name] for name in names)


def tables(folder: Path) -> str:
    """Mean ± standard deviation of every figure, as Markdown."""
    lines = ["| variant | seeds | mIoU | stuff | things | pixel accuracy | boundary F | training |", f"|{8 * '---|'}"]
    for variant, results in read_results(folder).items():
        kinds = [[mean_iou(result, names) for result in results] for names in (STUFF_NAMES, THING_NAMES)]
        first, *others = [[result[name] for result in results] for name in FIGURES]
        cells = [spread(values) for values in (first, *kinds, *others)]
        minutes = statistics.mean(result["training_seconds"] for result in results) / 60
        lines.append(f"| {variant} | {len(results)} | {' | '.join(cells)} | {minutes:.1f} min |")
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Any further option goes to every training run.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--clip", default="model_cards/clip-toyscapes")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--test_images", type=int, default=500)
    parser.add_argument("--tables", action="store_true", help="print what is there, and do nothing else")
    return parser.parse_known_args(arguments)


def main() -> None:
    args, more = parse_arguments()
    if args.tables:
        print(tables(args.output_dir))
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    missing = [
        (variant, seed)
        for seed in args.seeds
        for variant in args.variants
        if not result_file(args.output_dir, variant, seed).is_file()
    ]
    print(f"{len(missing)} runs to do: {missing}", file=sys.stderr)
    test = InMemory(load_source("toyscapes", "test", limit=args.test_images, seed=TEST_SEED)) if missing else None
    for variant, seed in missing:
        run_one(args, variant, seed, test, more)


if __name__ == "__main__":
    main()
