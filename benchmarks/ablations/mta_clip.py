"""Every figure of MTA-CLIP's card that is a mean over seeds, and its learning curves.

    python -m benchmarks.ablations.mta_clip --output_dir runs/mta-clip-ablations           # train and score; skips what is done
    python -m benchmarks.ablations.mta_clip --output_dir runs/mta-clip-ablations --tables  # mean and deviation, as Markdown
    python -m benchmarks.ablations.mta_clip --output_dir runs/mta-clip-curves --variants "MTA-CLIP" "pixel-text baseline" \
        --steps 1000 3000 10000 30000 --rates 1e-3 2e-3 4e-3         # each with the rate that is best for it on other scenes
    python -m benchmarks.ablations.mta_clip --output_dir runs/mta-clip-photographs --clip openai/clip-vit-base-patch16 \
        --dataset_name my-masks --validation_fraction 0.3 --preset cpu

Every run is `training.train_mta_clip` with the options below, for the same number of steps on the same images, scored on the
same images of another split at full resolution. A finished run leaves one JSON file; a run without one is done again, from its
last checkpoint where there is one. Standard deviations are over seeds (n - 1). A rate is chosen with the fewest steps and the
first seed, by the images that Toyscapes has for validation; of another data set by half of those that are scored.
"""

import argparse
import json
import logging
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
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
TEST_SEED = 7  # the scenes of Toyscapes that the other cards are scored on


@dataclass(frozen=True)
class Run:
    """One training run; None: the default of the script."""

    variant: str
    seed: int
    steps: int | None = None
    rate: float | None = None

    def file(self, folder: Path) -> Path:
        name = "".join(letter if letter.isalnum() else "-" for letter in self.variant.lower())
        numbers = "".join(f".{name}{value:g}" for name, value in (("steps", self.steps), ("rate", self.rate)) if value)
        return folder / f"{name}{numbers}.seed{self.seed}.json"

    def options(self) -> list[str]:
        steps = ["--max_train_steps", str(self.steps)] if self.steps else []
        return [*VARIANTS[self.variant], *steps, *(["--learning_rate", str(self.rate)] if self.rate else [])]


class InMemory:
    """Some images of a source, each read once."""

    def __init__(self, source, part: slice = slice(None)):
        self.class_names = source.class_names
        self.samples = [source[index] for index in range(len(source))[part]]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        return self.samples[index]


def open_images(args: argparse.Namespace) -> dict[str, InMemory]:
    """`test` for the scores, `chosen` for the choice of a rate; they share no image."""
    if args.dataset_name == "toyscapes":
        test = load_source("toyscapes", "test", limit=args.test_images, seed=TEST_SEED)
        return {"test": InMemory(test), "chosen": InMemory(load_source("toyscapes", "validation", limit=100))}
    source = load_source(
        args.dataset_name, args.test_split, limit=args.test_images, validation_fraction=args.validation_fraction
    )
    if not args.rates:
        return {"test": InMemory(source)}
    return {"test": InMemory(source, slice(0, None, 2)), "chosen": InMemory(source, slice(1, None, 2))}


def run_one(args: argparse.Namespace, run: Run, images: InMemory, folder: Path, more: Sequence[str]) -> None:
    """Train and score one run; the file is written last."""
    target = run.file(folder)
    run_dir = target.with_suffix("")
    divided = ["--validation_fraction", str(args.validation_fraction)] if args.validation_fraction else []
    options = [
        "--output_dir", str(run_dir), "--model_name_or_path", args.clip, "--dataset_name", args.dataset_name, *divided,
        "--seed", str(run.seed), "--resume_from_checkpoint", "latest", *more, *run.options(),
    ]  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)
    started = time.perf_counter()
    model = train_mta_clip.run(train_mta_clip.parse_arguments(options))
    seconds = time.perf_counter() - started
    processor = SegmentationProcessor.from_pretrained(run_dir / "final")
    scores = score(model, processor, images, None, len(images.class_names), Accelerator())
    figures = scores.figures([str(name) for name in images.class_names])
    write_json(target, {
        "variant": run.variant, "seed": run.seed, "steps": run.steps, "rate": run.rate, **figures,
        "gradient_norms": gradient_norms(run_dir), "training_seconds": seconds, "test_images": len(images),
        "trained_parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        **provenance("training.train_mta_clip", [option.replace(str(args.output_dir), "runs") for option in options]),
    })  # fmt: skip
    for checkpoint in run_dir.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    logger.info("%s: %s, %.0f s", run, {name: round(figures[name], 4) for name in FIGURES}, seconds)


def gradient_norms(run_dir: Path) -> list[float]:
    """Of the first and the last tenth of what was logged, before clipping: the medians."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    norms = [line["gradient_norm"] for line in lines if "gradient_norm" in line]
    part = max(1, len(norms) // 10)
    return [statistics.median(norms[:part]), statistics.median(norms[-part:])] if norms else []


def choose_rate(args: argparse.Namespace, variant: str, images: dict[str, InMemory], more: Sequence[str]) -> float | None:
    """The best of `--rates` for a variant, after the fewest steps; None where there is nothing to choose."""
    if not args.rates:
        return None
    folder, steps = args.output_dir / "rates", min(args.steps) if args.steps else None
    found = {}
    for rate in args.rates:
        run = Run(variant, args.seeds[0], steps, rate)
        if not run.file(folder).is_file():
            run_one(args, run, images["chosen"], folder, more)
        found[rate] = json.loads(run.file(folder).read_text())["mIoU"]
    return max(found, key=found.__getitem__)


def read_results(folder: Path) -> dict[tuple[str, int], list[dict]]:
    """Finished runs by variant, in the order of `VARIANTS`, and by steps."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.seed*.json"))]
    steps = sorted({line.get("steps") or 0 for line in results})
    grouped = {
        (variant, count): [line for line in results if line["variant"] == variant and (line.get("steps") or 0) == count]
        for variant in VARIANTS
        for count in steps
    }
    return {key: found for key, found in grouped.items() if found}


def spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def mean_iou(result: dict, names: Sequence[str]) -> float:
    return statistics.mean(result["per_class_iou"][name] for name in names)


def tables(folder: Path) -> str:
    """Mean ± standard deviation of every figure, as Markdown."""
    results = read_results(folder)
    drawn = all(name in result["per_class_iou"] for found in results.values() for result in found for name in STUFF_NAMES)
    kinds = {"stuff": STUFF_NAMES, "things": THING_NAMES} if drawn else {}
    heads = ["variant", "steps", "rate", "seeds", "mIoU", *kinds, "pixel accuracy", "boundary F", "training"]
    lines = [f"| {' | '.join(heads)} |", f"|{len(heads) * '---|'}"]
    for (variant, steps), found in results.items():
        by_kind = [[mean_iou(result, names) for result in found] for names in kinds.values()]
        first, *others = [[result[name] for result in found] for name in FIGURES]
        rates = {result.get("rate") for result in found}
        cells = [variant, steps or "default", "/".join(f"{rate:g}" for rate in rates if rate) or "default", len(found)]
        cells += [spread(values) for values in (first, *by_kind, *others)]
        minutes = statistics.mean(result["training_seconds"] for result in found) / 60
        lines.append(f"| {' | '.join(map(str, cells))} | {minutes:.1f} min |")
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Any further option goes to every training run.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--clip", default="model_cards/clip-toyscapes", help="any CLIP checkpoint (%(default)s)")
    parser.add_argument("--dataset_name", default="toyscapes", help="'toyscapes', or any data set with masks")
    parser.add_argument("--validation_fraction", type=float, help="of such a data set: what is not trained on")
    parser.add_argument("--test_split", default="validation", help="of such a data set (%(default)s)")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="*", help="a run for each; default: the preset's")
    parser.add_argument("--rates", type=float, nargs="*", help="learning rates to choose from, for each variant")
    parser.add_argument("--test_images", type=int, default=500)
    parser.add_argument("--tables", action="store_true", help="print what is there, and do nothing else")
    return parser.parse_known_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args, more = parse_arguments(arguments)
    if args.tables:
        print(tables(args.output_dir))
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    images = open_images(args)
    rates = {variant: choose_rate(args, variant, images, more) for variant in args.variants}
    runs = [
        Run(variant, seed, steps, rates[variant])
        for steps in sorted(args.steps or [None])
        for seed in args.seeds
        for variant in args.variants
    ]
    missing = [run for run in runs if not run.file(args.output_dir).is_file()]
    print(f"{len(missing)} runs to do: {', '.join(map(str, missing))}", file=sys.stderr)
    for run in missing:
        run_one(args, run, images["test"], args.output_dir, more)


if __name__ == "__main__":
    main()
