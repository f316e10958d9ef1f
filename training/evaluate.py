"""Scores any checkpoint of this package on any data set with masks.

    python -m training.evaluate model_cards/mask-clip-toyscapes --split test --limit 500 --output scores.json
    accelerate launch -m training.evaluate my-model --dataset_name my-folder --split validation --unseen "boat,kite" --oracle

MODEL is a folder or Hub id: a method of this package, a plain CLIP, which is run as MaskCLIP, or a graph that `training.export
--format onnx` has written. Under `accelerate launch` the images are divided over the processes; counts are summed, so the
figures do not depend on how many there are. (On CPUs `accelerate launch` starts one process whatever it is told; `torchrun
--standalone --nproc_per_node 2 -m training.evaluate` starts two.) Scores are taken at the size of the masks. What each figure
means stands in `hf_clipseg.evaluation.metrics` and `training.evaluation.oracle`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers.hf_argparser import HfArg

from hf_clipseg.atomic import replace_file
from hf_clipseg.checkpoints import load_checkpoint
from hf_clipseg.clip.class_files import class_names_of_argument
from hf_clipseg.clip.clip_backbone import KEEPS_RESIDUAL
from hf_clipseg.clip.text_bank import normalise_class_names, templates_of_argument
from hf_clipseg.drawing.overlay import contact_sheet, overlay
from hf_clipseg.refinement.refinements import REFINEMENTS

from .data.openers import open_masks
from .data.splits import SPLITS, unseen_class_ids
from .engine.provenance import provenance, write_json
from .evaluation.graph_model import is_graph, load_graph
from .evaluation.oracle import PatchClassifier, collect_patches, fit_linear_probe, fit_prototypes
from .evaluation.protocols import ProtocolArguments, compare, describe, follow_protocol, label_options, open_original
from .evaluation.scoring import score
from .settings.arguments import (
    ClassArguments,
    CommandParser,
    DataArguments,
    MaskArguments,
    run_command,
)

AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class EvaluationArguments:
    """Which images, and what else is computed on them."""

    _argument_group_name = "evaluation"

    seed: int = HfArg(default=0, help="which scenes of Toyscapes, which rows under --limit")
    scene_size: list[int] = HfArg(default_factory=lambda: [128, 128], help="height and width of Toyscapes scenes")
    validation_fraction: float | None = HfArg(
        default=None, help="as in training: --split validation is this share of the training images, train the others"
    )
    unseen: str | None = HfArg(
        default=None, help=f"unseen classes for hIoU: names parted by commas, or one of {', '.join(SPLITS)}"
    )
    oracle: bool = HfArg(default=False, help="also fit a probe on the same features with ground truth")
    oracle_split: str = HfArg(default="train", help="what it is fitted on")
    oracle_images: int = HfArg(default=300, help="images it is fitted on")
    output: str | None = HfArg(default=None, help="JSON file for figures and provenance")
    pictures: int = HfArg(default=0, help="draw so many images next to the JSON file")


@dataclass
class InferenceArguments:
    """How the model is run; what is left out is as the checkpoint has it."""

    _argument_group_name = "model"

    templates: str | None = HfArg(
        default=None, help="a preset, one template with '{}', or a file with one a line; default: the processor's"
    )
    attention_variant: str | None = HfArg(
        default=None, metadata={"choices": sorted(KEEPS_RESIDUAL)}, help="override the checkpoint's"
    )
    keep_residual: bool | None = HfArg(default=None, help="override the residual and MLP of the last block")
    image_size: int | None = HfArg(default=None, help="short side of the model's input; default: the processor's")
    window: int | None = HfArg(default=None, help="side of sliding windows, in pixels of the model's input")
    stride: int | None = HfArg(default=None, help="distance of the windows; default: half a window")
    scales: list[float] = HfArg(default_factory=lambda: [1.0], help="average over these scales")
    flip: bool = HfArg(default=False, help="average over the mirror image")
    refinement: str | None = HfArg(
        default=None, metadata={"choices": sorted(REFINEMENTS)}, help="refine boundaries with the image"
    )
    batch_size: int = HfArg(default=8, help="images per forward pass")
    mixed_precision: str | None = HfArg(
        default=None, metadata={"choices": sorted(AUTOCAST)}, help="default: what accelerate is configured to"
    )


GROUPS = (
    DataArguments, ClassArguments, MaskArguments, EvaluationArguments, InferenceArguments,
    ProtocolArguments,
)  # fmt: skip


def build_parser() -> CommandParser:
    parser = CommandParser(GROUPS, __doc__, prog="python -m training.evaluate")
    parser.add_argument("model", help="folder or Hub id")
    parser.set_defaults(split="test")
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(arguments)
    if len(args.scene_size) != 2:
        parser.error(f"--scene_size takes height and width, got {args.scene_size}")
    return args


def open_source(arguments: argparse.Namespace, split: str, limit: int | None):
    """The images and masks of one split."""
    original = open_original(arguments, split, limit)
    if original is not None:
        return original
    return open_masks(arguments, split, limit, seed=arguments.seed, size=tuple(arguments.scene_size))


def override_settings(model, processor, arguments: argparse.Namespace) -> None:
    """Applies the options that replace a setting of the checkpoint."""
    for name in ("attention_variant", "keep_residual"):
        value = getattr(arguments, name)
        if value is None:
            continue
        if not hasattr(model.config, name):
            raise ValueError(f"--{name} does not apply: {type(model.config).__name__} has no such setting; leave it out.")
        setattr(model.config, name, value)
    if arguments.image_size is not None:
        if arguments.image_size < 1:
            raise ValueError(f"--image_size is {arguments.image_size}; it is a number of pixels.")
        processor.image_processor.size = {"shortest_edge": arguments.image_size, "longest_edge": 4 * arguments.image_size}


def choose_classes(arguments: argparse.Namespace, source) -> list[list[str]]:
    """Names of every class id, each with its synonyms: from `--classes`, else the data set's."""
    if source.class_synonyms is None:
        raise ValueError("The data set names no classes; pass --classes with the names in the order of the mask ids.")
    classes = normalise_class_names(source.class_synonyms)  # --reduce_labels leaves out the name of a 0
    if arguments.classes is None:
        return classes
    asked_for = class_names_of_argument(arguments.classes)
    unnamed = argparse.Namespace(**vars(arguments) | {"classes": None})
    own = open_source(unnamed, arguments.split, arguments.limit).class_synonyms
    if own is not None and len(own) not in (len(asked_for), len(classes)):
        raise ValueError(
            f"--classes names {len(asked_for)} classes, but the data set has {len(own)}: {[names[0] for names in own]}. "
            "Give one class per id, in the order of the ids."
        )
    return asked_for if len(asked_for) == len(classes) else classes


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
    options = {name: getattr(arguments, name) for name in names} | label_options(arguments)
    if arguments.templates is not None:
        options["templates"] = templates_of_argument(arguments.templates)
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
        self.num_images, self.class_names = num_images, class_names
        self.pictures: list = []

    def add(self, sample: dict, prediction: np.ndarray) -> None:
        if len(self.pictures) < 3 * self.num_images:
            maps = sample["mask"], prediction
            overlays = [overlay(sample["image"], labels, self.class_names, opacity=0.65) for labels in maps]
            self.pictures += [sample["image"], *overlays]

    def save(self, path: Path) -> None:
        captions = ["image", "ground truth", "prediction"] * (len(self.pictures) // 3)
        with replace_file(path) as partial:
            contact_sheet(self.pictures, captions, columns=3).save(partial, format="PNG")


def announce(arguments: argparse.Namespace, accelerator: Accelerator, model, num_images: int, classes: str) -> None:
    """Says what is about to happen, before it happens."""
    accelerator.print(
        f"{type(model).__name__} {arguments.model} on {num_images} images of {arguments.dataset_name} ({arguments.split}), "
        f"{classes}; {accelerator.num_processes} process(es) on {accelerator.device.type}, precision "
        f"{accelerator.mixed_precision}; results go to {arguments.output or 'the screen only'}"
    )


def evaluate(arguments: argparse.Namespace) -> dict:
    """One evaluation, from loading to the files; returns what the JSON file holds, in every process."""
    if arguments.pictures and not arguments.output:
        raise ValueError("--pictures are drawn next to the JSON file; pass --output too.")
    protocol = follow_protocol(arguments)
    if arguments.dry_run:
        print(describe(arguments, protocol))
        return {}
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision)
    is_exported = is_graph(arguments.model)
    checkpoint = load_graph(arguments.model) if is_exported else load_checkpoint(arguments.model, accelerator.device)
    model, processor = checkpoint.model, checkpoint.processor
    override_settings(model, processor, arguments)
    if protocol is not None:
        protocol.apply(model, processor)

    source = open_source(arguments, arguments.split, arguments.limit)
    classes = choose_classes(arguments, source)
    names = [synonyms[0] for synonyms in classes]
    unseen = unseen_class_ids(arguments.unseen, names)
    prompts = names_for_model(classes, model, arguments) if protocol is None else protocol.names()
    origin = "baked into the checkpoint" if prompts is None else "as prompts"
    announce(arguments, accelerator, model, len(source), f"{len(names)} classes {origin}, {len(unseen)} unseen")

    classifiers = {}
    if arguments.oracle:
        classifiers = fit_oracles(arguments, model, processor, len(names), accelerator.is_main_process)
    sheet, options = ContactSheet(arguments.pictures, names), inference_options(arguments, accelerator)
    options |= {} if protocol is None else protocol.options()
    scores = score(model, processor, source, prompts, len(names), accelerator, options, classifiers, sheet.add)

    figures = scores.figures(names, unseen)
    results = figures | {
        "num_images": scores.num_images,
        "protocol_settings": None if protocol is None else asdict(protocol),
        "class_names": names,
        "unseen_classes": [names[index] for index in unseen],
        "num_processes": accelerator.num_processes,
        "device": accelerator.device.type,
        **{name: value for name, value in vars(arguments).items() if name != "command_line"},
        **provenance("training.evaluate", arguments.command_line),
    }
    if accelerator.is_main_process:
        print(report(figures))
        if protocol is not None:
            print(compare(protocol, figures["mIoU"], arguments.model, scores.num_images))
        if arguments.output:
            write_json(arguments.output, results)
        if sheet.pictures:
            sheet.save(Path(arguments.output).with_suffix(".png"))
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    run_command(evaluate, parse_arguments, arguments)


if __name__ == "__main__":
    main()
