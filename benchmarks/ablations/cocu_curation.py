"""CoCu's curation against the ground truth of Toyscapes, whose scenes say what is visible; and concepts of that truth."""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from hf_clipseg.toyscapes import CAPTION_NOUNS, CLASS_NAMES, ToyscapesDataset
from training import curate_concepts
from training.curation.concept_table import ConceptTable
from training.curation.concepts import random_for
from training.curation.tokenization import NounVocabulary
from training.engine.provenance import provenance, write_json

from .cocu_runs import words

logger = logging.getLogger(__name__)

DRAWS = 20  # clustered samples per image that precision is averaged over

CLASS_OF = NounVocabulary.from_mapping(CAPTION_NOUNS)
CLASS_OF_CONCEPT = [CAPTION_NOUNS[words[0]] for words in CLASS_OF.concepts]


def scenes(args: argparse.Namespace, seed: int, omission_rate: float) -> ToyscapesDataset:
    return ToyscapesDataset("train", (128, 128), args.images, seed, omission_rate, 0.0)


def classes_of(concepts: Collection[str]) -> list[str | None]:
    """The class that each concept means; None for one that is no class ("night")."""
    found = [CLASS_OF.find(concept) for concept in concepts]
    return [CLASS_OF_CONCEPT[min(ids)] if ids else None for ids in found]


def concept_folder(args: argparse.Namespace, kind: str, seed: int) -> Path:
    return Path(args.output_dir) / "concepts" / f"{kind.replace(' ', '-')}-{seed}"


def curate(args: argparse.Namespace, kind: str, seed: int) -> ConceptTable:
    """Concepts of one seed: `mined` or `closed` vocabulary by curation, `oracle` and `oracle captions` from ground truth.

    Raises:
        ValueError: what only Toyscapes knows is asked of another data set.
    """
    folder = concept_folder(args, kind, seed)
    if kind != "mined" and args.dataset_name != "toyscapes":
        raise ValueError(f"the {kind} concepts are of Toyscapes: pass --only with variants that need none, such as CoCu")
    if kind.startswith("oracle"):
        if not (folder / "concepts.parquet").is_file():
            write_oracle(folder, scenes(args, seed, args.omission_rate if kind == "oracle" else 0.0))
        return ConceptTable(folder)
    options = ["--output_dir", str(folder), "--model_name_or_path", args.clip, "--limit", str(args.images)]
    options += ["--dataset_name", args.dataset_name, "--data_seed", str(seed), "--seed", str(seed)]
    options += ["--omission_rate", str(args.omission_rate), *words(args.data_options), *words(args.curation_options)]
    if kind == "closed":
        names = Path(args.output_dir) / "toyscapes-classes.txt"
        names.parent.mkdir(parents=True, exist_ok=True)
        names.write_text("".join(f"{', '.join(nouns)}\n" for nouns in CLASS_OF.concepts))
        options += ["--vocabulary", str(names)]
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
