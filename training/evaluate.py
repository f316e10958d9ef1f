"""Scores any checkpoint of this package on any data set with masks.

    python -m training.evaluate model_cards/mask-clip-toyscapes --split test --limit 500 --output scores.json
    accelerate launch -m training.evaluate my-model --dataset my-folder --split validation --unseen "boat,kite" --oracle

MODEL is a folder or Hub id: a method of this package, or a plain CLIP, which is run as MaskCLIP. Under `accelerate launch`
the images are divided over the processes; counts are summed, so the figures do not depend on how many there are. (On CPUs
`accelerate launch` starts one process whatever it is told; `torchrun --standalone --nproc_per_node 2 -m training.evaluate`
starts two.) Scores are taken at the size of the masks. What each figure means stands in `hf_clipseg.evaluation.metrics` and
`training.evaluation.oracle`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from hf_clipseg.checkpoints import load_checkpoint
from hf_clipseg.clip.class_files import class_names_of_argument
from hf_clipseg.clip.clip_backbone import KEEPS_RESIDUAL
from hf_clipseg.clip.text_bank import normalise_class_names
from hf_clipseg.drawing.overlay import contact_sheet, overlay
from hf_clipseg.processing.image_processing_segmentation import REFINEMENTS

from .data.sources import load_source
from .data.splits import SPLITS, unseen_class_ids
from .engine.provenance import provenance, write_json
from .evaluation.oracle import PatchClassifier, collect_patches, fit_linear_probe, fit_prototypes
from .evaluation.scoring import score

AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description="Scores a segmentation checkpoint.")
    parser.add_argument("model", help="folder or Hub id")
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", default="toyscapes", help="toyscapes, a Hub id or preset, or a folder (%(default)s)")
    data.add_argument("--config_name", help="configuration of a Hub data set")
    data.add_argument("--split", default="test", help="(%(default)s)")
    data.add_argument("--seed", type=int, default=0, help="which scenes of Toyscapes, which rows under --limit (%(default)s)")
    data.add_argument("--limit", type=int, help="score so many images only")
    data.add_argument("--streaming", action="store_true", help="read the first --limit rows of a Hub data set only")
    data.add_argument("--scene_size", type=int, nargs=2, default=[128, 128], help="height and width of Toyscapes (%(default)s)")
    data.add_argument("--image_column", help="where it cannot be guessed")
    data.add_argument("--mask_column", help="where it cannot be guessed")
    data.add_argument("--reduce_labels", action="store_true", help="masks count from 1, and 0 is unlabelled")
    data.add_argument("--ignore_label", type=int, help="mask value that is unlabelled, beside 255")
    data.add_argument(
        "--classes",
        help="class names in the order of the mask ids: parted by commas, synonyms by '|'; or a file with one class per line "
        "(default: the data set's)",
    )
    data.add_argument("--unseen", help=f"unseen classes for hIoU: names parted by commas, or one of {', '.join(SPLITS)}")
    model = parser.add_argument_group("model")
    model.add_argument("--templates", help="a preset or one template with '{}' (default: the processor's)")
    model.add_argument("--attention_variant", choices=sorted(KEEPS_RESIDUAL), help="override the checkpoint's")
    model.add_argument("--keep_residual", choices=("yes", "no"), help="override the residual and MLP of the last block")
    model.add_argument("--image_size", type=int, help="short side of the model's input (default: the processor's)")
    model.add_argument("--window", type=int, help="side of sliding windows, in pixels of the model's input")
    model.add_argument("--stride", type=int, help="distance of the windows (default: half a window)")
    model.add_argument("--scales", type=float, nargs="+", default=[1.0], help="average over these scales")
    model.add_argument("--flip", action="store_true", help="average over the mirror image")
    model.add_argument("--refinement", choices=sorted(REFINEMENTS), help="refine boundaries with the image")
    model.add_argument("--batch_size", type=int, default=8, help="(%(default)s)")
    model.add_argument("--mixed_precision", choices=sorted(AUTOCAST), help="(default: accelerate's)")
    oracle = parser.add_argument_group("oracle")
    oracle.add_argument("--oracle", action="store_true", help="also fit a probe on the same features with ground truth")
    oracle.add_argument("--oracle_split", default="train", help="(%(default)s)")
    oracle.add_argument("--oracle_images", type=int, default=300, help="images it is fitted on (%(default)s)")
    output = parser.add_argument_group("output")
    output.add_argument("--output", help="JSON file for figures and provenance")
    output.add_argument("--pictures", type=int, default=0, help="draw so many images next to the JSON file")
    return parser


def open_source(arguments: argparse.Namespace, split: str, limit: int | None):
    """The images and masks of one split."""
    try:
        return load_source(
            arguments.dataset,
            split,
            config_name=arguments.config_name,
            image_column=arguments.image_column,
            mask_column=arguments.mask_column,
            reduce_labels=arguments.reduce_labels,
            ignore_label=arguments.ignore_label,
            streaming=arguments.streaming,
            limit=limit,
            seed=arguments.seed,
            size=tuple(arguments.scene_size),
        )
    except OSError as error:  # not on the Hub, or no Hub
        raise ValueError(
            f"--dataset {arguments.dataset} cannot be opened ({error}). Give toyscapes, a folder on this machine, or the id of "
            "a data set that the Hub can deliver now."
        ) from error


def override_settings(model, processor, arguments: argparse.Namespace) -> None:
    """Applies the options that replace a setting of the checkpoint."""
    changes = {"attention_variant": arguments.attention_variant}
    if arguments.keep_residual is not None:
        changes["keep_residual"] = arguments.keep_residual == "yes"
    for name, value in changes.items():
        if value is None:
            continue
        if not hasattr(model.config, name):
            raise ValueError(f"--{name} does not apply: {type(model.config).__name__} has no such setting; leave it out.")
        setattr(model.config, name, value)
    if arguments.image_size is not None:
        if arguments.image_size < 1:
            raise ValueError(f"--image_size is {arguments.image_size}; it is a number of pixels.")
        processor.image_processor.size = {"shortest_edge": arguments.image_size, "longest_edge": 4 * arguments.image_size}


def choose_classes(argument: str | None, data_names: Sequence[Sequence[str]] | None) -> list[list[str]]:
    """Names of every class id, each with its synonyms: from `--classes`, else the data set's."""
    if argument is None:
        if data_names is None:
            raise ValueError("The data set names no classes; pass --classes with the names in the order of the mask ids.")
        return normalise_class_names(list(data_names))
    classes = class_names_of_argument(argument)
    if data_names is not None and len(classes) != len(data_names):
        raise ValueError(
            f"--classes names {len(classes)} classes, but the data set has {len(data_names)}: "
            f"{[names[0] for names in data_names]}. Give one class per id, in the order of the ids."
        )
    return classes


def names_for_model(classes: list[list[str]], model, arguments: argparse.Namespace) -> list[list[str]] | None:
    """None where the classes are baked into the checkpoint in this very order, so that closed methods can be scored too."""
    baked = getattr(model.config, "class_names", None)
    asked_for = arguments.classes is not None or arguments.templates is not None
    same = baked is not None and [names[0] for names in baked] == [names[0] for names in classes]
    return None if same and not asked_for else classes


def fit_oracles(
    arguments: argparse.Namespace, model, processor, num_classes: int, show_progress: bool
) -> dict[str, PatchClassifier]:
    """Both oracles, fitted on the train split. Every process fits its own, from the same images."""
    source = open_source(arguments, arguments.oracle_split, arguments.oracle_images)
    count = min(len(source), arguments.oracle_images)
    samples = (source[index] for index in tqdm(range(count), desc="oracle", mininterval=2, disable=not show_progress))
    features, shares = collect_patches(samples, model, processor, count, num_classes)
    return {
        "oracle_mIoU": fit_linear_probe(features, shares),
        "oracle_prototypes_mIoU": fit_prototypes(features, shares),
    }


def inference_options(arguments: argparse.Namespace, accelerator: Accelerator) -> dict:
    """The options that go to `hf_clipseg.processing.inference.segment` as they are."""
    names = ("window", "stride", "scales", "flip", "refinement", "batch_size", "templates")
    options = {name: getattr(arguments, name) for name in names}
    return options | {"autocast_dtype": AUTOCAST[accelerator.mixed_precision]}


def report(figures: dict) -> str:
    """The figures as a table for people."""
    rows = [(name, value) for name, value in figures.items() if not isinstance(value, dict) and value is not None]
    rows += [("", None), *figures["per_class_iou"].items()]
    width = max(len(name) for name, _ in rows)
    lines = (f"{name:<{width}}  {'-' if value is None else f'{value:.4f}'}" if name else "" for name, value in rows)
    return "\n".join(lines)


class ContactSheet:
    """Collects image, ground truth and prediction of the first images and draws them in rows."""

    def __init__(self, num_images: int, class_names: Sequence[str]):
        self.num_images, self.class_names, self.pictures = num_images, class_names, []

    def add(self, sample: dict, prediction: np.ndarray) -> None:
        if len(self.pictures) < 3 * self.num_images:
            maps = sample["mask"], prediction
            overlays = [overlay(sample["image"], labels, self.class_names, opacity=0.65) for labels in maps]
            self.pictures += [sample["image"], *overlays]

    def save(self, path: Path) -> None:
        captions = ["image", "ground truth", "prediction"] * (len(self.pictures) // 3)
        partial = path.with_name(f".{path.name}.partial")
        contact_sheet(self.pictures, captions, columns=3).save(partial, format="PNG")
        os.replace(partial, path)


def announce(arguments: argparse.Namespace, accelerator: Accelerator, model, num_images: int, classes: str) -> None:
    """Says what is about to happen, before it happens."""
    accelerator.print(
        f"{type(model).__name__} {arguments.model} on {num_images} images of {arguments.dataset} ({arguments.split}), "
        f"{classes}; {accelerator.num_processes} process(es) on {accelerator.device.type}, precision "
        f"{accelerator.mixed_precision}; results go to {arguments.output or 'the screen only'}"
    )


def evaluate(arguments: argparse.Namespace, command_line: Sequence[str]) -> dict:
    """One evaluation, from loading to the files; returns what the JSON file holds, in every process."""
    if arguments.pictures and not arguments.output:
        raise ValueError("--pictures are drawn next to the JSON file; pass --output too.")
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision)
    checkpoint = load_checkpoint(arguments.model, accelerator.device)
    model, processor = checkpoint.model, checkpoint.processor
    override_settings(model, processor, arguments)

    source = open_source(arguments, arguments.split, arguments.limit)
    classes = choose_classes(arguments.classes, source.class_synonyms)
    names = [synonyms[0] for synonyms in classes]
    unseen = unseen_class_ids(arguments.unseen, names)
    prompts = names_for_model(classes, model, arguments)
    origin = "baked into the checkpoint" if prompts is None else "as prompts"
    announce(arguments, accelerator, model, len(source), f"{len(names)} classes {origin}, {len(unseen)} unseen")

    classifiers = {}
    if arguments.oracle:
        classifiers = fit_oracles(arguments, model, processor, len(names), accelerator.is_main_process)
    sheet, options = ContactSheet(arguments.pictures, names), inference_options(arguments, accelerator)
    scores = score(model, processor, source, prompts, len(names), accelerator, options, classifiers, sheet.add)

    figures = scores.figures(names, unseen)
    results = figures | {
        "num_images": scores.num_images,
        "class_names": names,
        "unseen_classes": [names[index] for index in unseen],
        "num_processes": accelerator.num_processes,
        "device": accelerator.device.type,
        **vars(arguments),
        **provenance("training.evaluate", command_line),
    }
    if accelerator.is_main_process:
        print(report(figures))
        if arguments.output:
            write_json(arguments.output, results)
        if sheet.pictures:
            sheet.save(Path(arguments.output).with_suffix(".png"))
    return results


def main(argv: Sequence[str] | None = None) -> None:
    command_line = sys.argv[1:] if argv is None else list(argv)
    try:
        evaluate(build_parser().parse_args(command_line), command_line)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
