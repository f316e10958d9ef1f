"""Every figure of the cards of CoCu and its GroupViT baseline that is a mean over seeds.

    python -m benchmarks.ablations.cocu curation --output_dir runs/cocu-ablations   # curate, compare with ground truth
    python -m benchmarks.ablations.cocu training --output_dir runs/cocu-ablations   # train and score; goes on where it was
    python -m benchmarks.ablations.cocu training --output_dir runs/cocu-ablations --start clip
    python -m benchmarks.ablations.cocu groups --output_dir runs/cocu-ablations     # what finished models know, and where
    python -m benchmarks.ablations.cocu tables --output_dir runs/cocu-ablations     # mean and deviation, as Markdown
    python -m benchmarks.ablations.cocu training --output_dir runs/cocu-photographs --clip openai/clip-vit-base-patch16 \
        --dataset_name my-captions --test_dataset_name my-masks --only GroupViT CoCu "CoCu, archive contrasted"

A seed decides the images, their captions, the curation and the weights. Every variant of a seed sees the same images in the
same order, in batches of the same size, for the same number of steps. A finished run leaves one JSON file; a run without one is
resumed from its last checkpoint. Standard deviations are over seeds (n - 1). What compares with the ground truth of captioned
images (`curation`, and the variants with "oracle" or "closed" in their names) is for Toyscapes alone.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from hf_clipseg import CocuForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.constants import IGNORE_INDEX
from hf_clipseg.evaluation.metrics import summarise
from hf_clipseg.toyscapes import CLASS_NAMES, SYNONYMS
from training import train_cocu
from training.data.sources import load_source
from training.engine.provenance import write_json
from training.evaluation.scoring import score
from training.settings.arguments import run_command

from .cocu_curation import curate, run_curation
from .cocu_runs import MAIN_VARIANTS, STARTS, VARIANTS, run_path, words
from .cocu_tables import print_tables

TEST_IMAGES = 500
TEST_SEED = 7  # the scenes of Toyscapes that the other cards are scored on
GROUP_IMAGES = 100  # validation images


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("curation", "training", "groups", "tables"))
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument(
        "--clip", default="model_cards/clip-toyscapes", help="what curates, and what training starts from (%(default)s)"
    )
    parser.add_argument("--dataset_name", default="toyscapes", help="'toyscapes', or any data set with captions")
    parser.add_argument("--data_options", nargs="*", default=[], help="how both scripts read it, as one string each")
    parser.add_argument("--curation_options", nargs="*", default=[], help="further ones of curate_concepts, as one string each")
    parser.add_argument("--test_dataset_name", default="toyscapes", help="'toyscapes', or any data set with masks")
    parser.add_argument("--test_split", default="validation", help="of such a data set (%(default)s)")
    parser.add_argument("--images", type=int, default=10_000, help="training images (%(default)s)")
    parser.add_argument("--omission_rate", type=float, default=0.5, help="of captions; a folder for each (%(default)s)")
    parser.add_argument("--start", choices=STARTS, default="noise", help="groups learned from noise, or CLIP's (%(default)s)")
    parser.add_argument("--training_options", nargs="*", default=[], help="further options of train_cocu, as one string each")
    return parser.parse_args(arguments)


def train_variant(args: argparse.Namespace, variant: str, seed: int) -> None:
    """One run, from its last checkpoint where there is one; leaves `scores.json`."""
    folder = run_path(args, variant, seed)
    kinds = {f"{{{kind}}}": kind for kind in ("mined", "closed", "oracle", "oracle captions")}
    options = []
    for option in [*STARTS[args.start], *VARIANTS[variant]]:
        options.append(str(curate(args, kinds[option], seed).folder) if option in kinds else option.format(clip=args.clip))
    if "--omission_rate" not in options:
        options += ["--omission_rate", str(args.omission_rate)]
    options += [
        "--dataset_name", args.dataset_name, "--output_dir", str(folder), "--cache_dir", str(Path(args.output_dir) / "cache"),
        "--seed", str(seed), "--data_seed", str(seed), "--limit", str(args.images), "--resume_from_checkpoint", "latest",
        *words(args.data_options), *words(args.training_options),
    ]  # fmt: skip
    if args.dataset_name != "toyscapes":
        options += ["--validation_dataset_name", args.test_dataset_name, "--validation_split", args.test_split]
    AcceleratorState._reset_state(reset_partial_state=True)
    train_cocu.main(options)
    write_json(folder / "scores.json", {"figures": test_scores(args, folder / "final"), "options": options})


def open_test(args: argparse.Namespace, split: str, limit: int, **scenes: int):
    """Images with masks; `split` and `scenes` are those of Toyscapes."""
    if args.test_dataset_name == "toyscapes":
        return load_source("toyscapes", split, limit=limit, **scenes)
    return load_source(args.test_dataset_name, args.test_split, limit=limit)


def test_scores(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """mIoU over all classes: of Toyscapes by display names, and by all names of a class."""
    model = CocuForSemanticSegmentation.from_pretrained(folder)
    processor = SegmentationProcessor.from_pretrained(folder)
    source, accelerator = open_test(args, "test", TEST_IMAGES, seed=TEST_SEED), Accelerator()
    lists = {"mIoU": source.class_names}
    if args.test_dataset_name == "toyscapes":
        lists = {"mIoU": list(CLASS_NAMES), "mIoU, synonyms": [[name, *SYNONYMS[name]] for name in CLASS_NAMES]}
    figures = {}
    for name, classes in lists.items():
        scores = score(model, processor, source, classes, len(classes), accelerator)
        figures[name] = summarise(scores.confusions["mIoU"])["mIoU"]
    return figures


def run_training(args: argparse.Namespace) -> None:
    """Main variants of all seeds first: what a broken-off evening leaves should be comparable."""
    order = [name for name in MAIN_VARIANTS if name in args.only] + [name for name in args.only if name not in MAIN_VARIANTS]
    for variants in (order[: len(MAIN_VARIANTS)], order[len(MAIN_VARIANTS) :]):
        for seed in args.seeds:
            for variant in variants:
                if not (run_path(args, variant, seed) / "scores.json").is_file():
                    train_variant(args, variant, seed)


@torch.no_grad()
def group_figures(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """On validation scenes: whether the image embedding knows the visible classes, and whether groups differ.

    `image recall` is the share of the k visible classes among the k that suit the image best, `cosine between groups` the mean
    over pairs of groups of an image: near 1 where every group stands for the whole image.
    """
    model = CocuForSemanticSegmentation.from_pretrained(folder)
    processor = SegmentationProcessor.from_pretrained(folder)
    source = open_test(args, "validation", GROUP_IMAGES)
    recalls, cosines = [], []
    for index in range(len(source)):
        sample = source[index]
        grouping = model.clip.group(processor(images=sample["image"], return_tensors="pt")["pixel_values"])
        visible = np.setdiff1d(sample["mask"], IGNORE_INDEX)
        best = (model.embed_images(grouping) @ model.resolve_classes(None, None, None)[0].T)[0].topk(len(visible)).indices
        recalls.append(np.isin(best, visible).mean())
        groups = model.clip.embed_groups(grouping.tokens)[0]
        cosines.append((groups @ groups.T)[~torch.eye(len(groups), dtype=torch.bool)].mean().item())
    return {"image recall": float(np.mean(recalls)), "cosine between groups": float(np.mean(cosines))}


def run_groups(args: argparse.Namespace) -> None:
    for path in (run_path(args, variant, seed) for variant in args.only for seed in args.seeds):
        if (path / "scores.json").is_file() and not (path / "groups.json").is_file():
            write_json(path / "groups.json", {"figures": group_figures(args, path / "final")})


def run(args: argparse.Namespace) -> None:
    if args.part == "curation" and args.dataset_name != "toyscapes":
        raise ValueError(
            f"curation is compared with ground truth, which {args.dataset_name} has not; `training` curates as well"
        )
    parts = {"curation": run_curation, "training": run_training, "groups": run_groups, "tables": print_tables}
    parts[args.part](args)


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_command(run, parse_arguments, arguments)


if __name__ == "__main__":
    main()
