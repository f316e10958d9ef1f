"""Every figure of the cards of CoCu and its GroupViT baseline that is a mean over seeds.

    python -m benchmarks.ablations.cocu curation --output_dir runs/cocu-ablations   # curate, compare with ground truth
    python -m benchmarks.ablations.cocu training --output_dir runs/cocu-ablations   # train and score; goes on where it was
    python -m benchmarks.ablations.cocu training --output_dir runs/cocu-ablations --start clip
    python -m benchmarks.ablations.cocu groups --output_dir runs/cocu-ablations     # what finished models know, and where
    python -m benchmarks.ablations.cocu tables --output_dir runs/cocu-ablations     # mean and deviation, as Markdown

A seed decides the scenes, their captions, the curation and the weights. Every variant of a seed sees the same images in the
same order, in batches of the same size, for the same number of steps. A finished run leaves one JSON file; a run without one is
resumed from its last checkpoint. Standard deviations are over seeds (n - 1).
"""

import argparse
import json
import logging
import statistics
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from hf_clipseg import CocuForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.constants import IGNORE_INDEX
from hf_clipseg.evaluation.metrics import summarise
from hf_clipseg.toyscapes import CAPTION_NOUNS, CLASS_NAMES, SYNONYMS, ToyscapesDataset
from training import curate_concepts, train_cocu
from training.curation.concept_table import ConceptTable
from training.curation.concepts import random_for
from training.curation.tokenization import NounVocabulary
from training.data.sources import load_source
from training.engine.provenance import provenance, write_json
from training.evaluation.scoring import score

logger = logging.getLogger(__name__)

TEST_IMAGES = 500
TEST_SEED = 7  # the scenes that the other cards are scored on
GROUP_IMAGES = 100  # validation scenes
DRAWS = 20  # clustered samples per image that precision is averaged over

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

CLASS_OF = NounVocabulary.from_mapping(CAPTION_NOUNS)
CLASS_OF_CONCEPT = [CAPTION_NOUNS[words[0]] for words in CLASS_OF.concepts]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("curation", "training", "groups", "tables"))
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument(
        "--clip", default="model_cards/clip-toyscapes", help="what curates, and what training starts from (%(default)s)"
    )
    parser.add_argument("--images", type=int, default=10_000, help="training images (%(default)s)")
    parser.add_argument("--omission_rate", type=float, default=0.5, help="of captions; a folder for each (%(default)s)")
    parser.add_argument("--start", choices=STARTS, default="noise", help="groups learned from noise, or CLIP's (%(default)s)")
    parser.add_argument("--training_options", nargs="*", default=[], help="further options of train_cocu, as one string each")
    return parser.parse_args(arguments)


# -- curation against ground truth


def scenes(args: argparse.Namespace, seed: int, omission_rate: float) -> ToyscapesDataset:
    return ToyscapesDataset("train", (128, 128), args.images, seed, omission_rate, 0.0)


def classes_of(concepts: Collection[str]) -> list[str | None]:
    """The class that each concept means; None for one that is no class ("night")."""
    found = [CLASS_OF.find(concept) for concept in concepts]
    return [CLASS_OF_CONCEPT[min(ids)] if ids else None for ids in found]


def concept_folder(args: argparse.Namespace, kind: str, seed: int) -> Path:
    return Path(args.output_dir) / "concepts" / f"{kind.replace(' ', '-')}-{seed}"


def curate(args: argparse.Namespace, kind: str, seed: int) -> ConceptTable:
    """Concepts of one seed: `mined` or `closed` vocabulary by curation, `oracle` and `oracle captions` from ground truth."""
    folder = concept_folder(args, kind, seed)
    if kind.startswith("oracle"):
        if not (folder / "concepts.parquet").is_file():
            write_oracle(folder, scenes(args, seed, args.omission_rate if kind == "oracle" else 0.0))
        return ConceptTable(folder)
    options = ["--output_dir", str(folder), "--model_name_or_path", args.clip, "--limit", str(args.images)]
    options += ["--data_seed", str(seed), "--seed", str(seed), "--omission_rate", str(args.omission_rate)]
    if kind == "closed":
        words = Path(args.output_dir) / "toyscapes-classes.txt"
        words.parent.mkdir(parents=True, exist_ok=True)
        words.write_text("".join(f"{', '.join(nouns)}\n" for nouns in CLASS_OF.concepts))
        options += ["--vocabulary", str(words)]
    curate_concepts.main(options)
    return ConceptTable(folder)


def write_oracle(folder: Path, dataset: ToyscapesDataset) -> None:
    """Sidecars in which every visible class is a concept of equal score, and a cluster of its own."""
    rows = []
    for key, visible, named in ground_truth(dataset):
        rows.append((key, sorted(named), sorted(visible), [1.0] * len(visible), list(range(len(visible)))))
    names, texts = ("key", "caption_concepts", "concepts", "scores", "clusters"), pa.list_(pa.string())
    types = (pa.string(), texts, texts, pa.list_(pa.float32()), pa.list_(pa.int16()))
    columns = {name: pa.array(column, kind) for name, kind, column in zip(names, types, zip(*rows, strict=True), strict=True)}
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".concepts.partial"
    parquet.write_table(pa.table(columns), partial)
    partial.replace(folder / "concepts.parquet")


def precision(chosen: Collection[str], visible: set[str]) -> float | None:
    """Share of the concepts that are a visible class; None where nothing was chosen."""
    return float(np.mean([name in visible for name in classes_of(chosen)])) if chosen else None


def choosers(table: ConceptTable) -> dict[str, Callable[[str, dict, np.random.Generator], list[str]]]:
    """The ways to choose three concepts for an image, stage by stage."""
    names = table.names()
    return {
        "3 random concepts": lambda key, row, random: random.choice(names, 3).tolist(),
        "3 of the archive, unranked": lambda key, row, random: random.permutation(row["concepts"])[:3].tolist(),
        "top 3, ranked": lambda key, row, random: table.sample(key, "top", 3, 1.0, random),
        "clustered sample": lambda key, row, random: table.sample(key, "clustered", 3, 0.1, random),
    }


def ground_truth(dataset: ToyscapesDataset) -> list[tuple[str, set[str], set[str]]]:
    """Key, visible classes and classes that the caption names, of every scene."""
    rows = []
    for scene in dataset:
        named = {CLASS_OF_CONCEPT[concept] for concept in CLASS_OF.find(scene.caption)}
        rows.append((scene.key, {CLASS_NAMES[label] for label in scene.image_labels}, named))
    return rows


def curation_figures(table: ConceptTable, truth: list[tuple[str, set[str], set[str]]]) -> dict[str, float]:
    """Recall and precision of curation, in images and concepts that a person would call visible.

    `recall of missing` counts visible classes that the caption leaves out (micro average); precisions are means over images,
    and a concept that is no class counts as wrong.
    """
    missing = found = found_in_three = visible_count = named_count = 0
    precisions: dict[str, list[float]] = {}
    for key, visible, named in truth:
        row = table.rows.slice(table.row_of[key], 1).to_pylist()[0]
        left_out = visible - named
        missing, visible_count, named_count = missing + len(left_out), visible_count + len(visible), named_count + len(named)
        found += len(left_out & set(classes_of(row["concepts"])))
        random = random_for(key, 0)
        found_in_three += len(left_out & set(classes_of(table.sample(key, "top", 3, 1.0, random))))
        values = {"whole archive": precision(row["concepts"], visible), "caption": precision(row["caption_concepts"], visible)}
        for name, choose in choosers(table).items():
            draws = [precision(choose(key, row, random), visible) for _ in range(DRAWS if "top" not in name else 1)]
            values[name] = None if None in draws else float(np.mean(draws))
        for name, value in values.items():
            if value is not None:
                precisions.setdefault(f"precision: {name}", []).append(value)
    return {
        "visible classes named by the caption": named_count / visible_count,
        "recall of missing: archive": found / missing,
        "recall of missing: top 3": found_in_three / missing,
        **{name: float(np.mean(values)) for name, values in precisions.items()},
        "concepts per archive": float(np.mean([len(names) for names in table.rows["concepts"].to_pylist()])),
    }


def run_curation(args: argparse.Namespace) -> None:
    for kind in ("mined", "closed"):
        for seed in args.seeds:
            path = Path(args.output_dir) / "curation" / f"{kind}-{seed}.json"
            if not path.is_file():
                figures = curation_figures(curate(args, kind, seed), ground_truth(scenes(args, seed, args.omission_rate)))
                write_json(path, {"figures": figures, **provenance("benchmarks.ablations.cocu", sys.argv[1:])})
                logger.info("%s, seed %d: %s", kind, seed, json.dumps(figures, indent=2))


# -- training


def run_path(args: argparse.Namespace, variant: str, seed: int) -> Path:
    return Path(args.output_dir) / "training" / args.start / f"{variant.replace(', ', '-').replace(' ', '-')}-{seed}"


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
        "--output_dir", str(folder), "--cache_dir", str(Path(args.output_dir) / "cache"), "--seed", str(seed),
        "--data_seed", str(seed), "--limit", str(args.images),
        "--resume_from_checkpoint", "latest",
        *(word for option in args.training_options for word in option.split()),
    ]  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)
    train_cocu.main(options)
    write_json(folder / "scores.json", {"figures": test_scores(folder / "final"), "options": options})


def test_scores(folder: Path) -> dict[str, float]:
    """mIoU on the test scenes over all classes: display names, and all names of a class."""
    model = CocuForSemanticSegmentation.from_pretrained(folder)
    processor = SegmentationProcessor.from_pretrained(folder)
    source, accelerator = load_source("toyscapes", "test", limit=TEST_IMAGES, seed=TEST_SEED), Accelerator()
    figures = {}
    for name, classes in (("mIoU", list(CLASS_NAMES)), ("mIoU, synonyms", [[name, *SYNONYMS[name]] for name in CLASS_NAMES])):
        scores = score(model, processor, source, classes, len(CLASS_NAMES), accelerator)
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
def group_figures(folder: Path) -> dict[str, float]:
    """On validation scenes: whether the image embedding knows the visible classes, and whether groups differ.

    `image recall` is the share of the k visible classes among the k that suit the image best, `cosine between groups` the mean
    over pairs of groups of an image: near 1 where every group stands for the whole image.
    """
    model = CocuForSemanticSegmentation.from_pretrained(folder)
    processor = SegmentationProcessor.from_pretrained(folder)
    source = load_source("toyscapes", "validation", limit=GROUP_IMAGES)
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
            write_json(path / "groups.json", {"figures": group_figures(path / "final")})


# -- tables


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


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse_arguments(arguments)
    parts = {"curation": run_curation, "training": run_training, "groups": run_groups, "tables": print_tables}
    parts[args.part](args)


if __name__ == "__main__":
    main()
