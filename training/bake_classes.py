"""Turns a CLIP into a MaskCLIP checkpoint with classes of your own baked in. Nothing is trained.

    python -m training.bake_classes model_cards/clip-toyscapes --dataset_name toyscapes --output_dir runs/mask-clip-toyscapes
    python -m training.bake_classes openai/clip-vit-base-patch16 --classes "sky, boat|ship" --output_dir harbour

The result loads with `from_pretrained` and with `pipeline("image-segmentation")`; other classes may still be named per call
unless the text encoder was dropped.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers.hf_argparser import HfArg

from hf_clipseg import MaskClipConfig, MaskClipForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.atomic import replace_folder
from hf_clipseg.clip.class_files import class_names_of_argument
from hf_clipseg.hub_export import save_with_code

from .data.sources import load_source
from .settings.arguments import ClassArguments, CommandParser, config_arguments, config_values, run_command

ModelArguments = config_arguments(MaskClipConfig, ("attention_variant", "keep_residual"), "model; see MaskClipConfig")


@dataclass
class BakeArguments:
    """What goes into the checkpoint, and where it goes."""

    output_dir: str = HfArg(help="folder of the checkpoint")
    dataset_name: str | None = HfArg(default=None, help="in place of --classes: those of this data set, such as toyscapes")
    templates: str = HfArg(default="ensemble", help="a preset, or one template with '{}'")
    image_size: int | None = HfArg(default=None, help="short side of the model's input; default: 1.5 times CLIP's")
    drop_text_encoder: bool = HfArg(default=False, help="keep the baked classes only")


def build_parser() -> CommandParser:
    parser = CommandParser((BakeArguments, ClassArguments, ModelArguments), __doc__)
    parser.add_argument("clip", help="folder or Hub id of a CLIP checkpoint")
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(arguments)
    if (args.classes is None) == (args.dataset_name is None):
        parser.error("name the classes: --classes NAMES_OR_FILE, or --dataset_name to take those of a data set")
    return args


def choose_classes(args: argparse.Namespace) -> list:
    if args.classes is not None:
        return class_names_of_argument(args.classes)
    source = load_source(args.dataset_name, "train", limit=1)
    if source.class_synonyms is None:
        raise ValueError(f"{args.dataset_name} names no classes; pass --classes")
    return list(source.class_synonyms)


def bake(args: argparse.Namespace) -> tuple[MaskClipForSemanticSegmentation, SegmentationProcessor]:
    classes = choose_classes(args)
    model = MaskClipForSemanticSegmentation.from_clip(args.clip, **config_values(args, ModelArguments))
    side = args.image_size
    size = None if side is None else {"shortest_edge": side, "longest_edge": 4 * side}
    processor = SegmentationProcessor.from_clip(args.clip, templates=args.templates, size=size)
    if unknown := processor.unknown_words(classes):
        print(f"warning: the tokenizer does not know {', '.join(unknown)}; classes named by these words mean nothing to it")
    model.set_classes(classes, processor)
    if args.drop_text_encoder:
        model.drop_text_encoder()
    return model, processor


def run(args: argparse.Namespace) -> None:
    folder = Path(args.output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already: remove it, or choose another --output_dir")
    model, processor = bake(args)
    with replace_folder(folder) as partial:
        save_with_code(model, processor, partial)
    labels = model.config.id2label.values()
    print(f"{len(labels)} classes baked into {args.output_dir}: {', '.join(labels)}")


def main(arguments: Sequence[str] | None = None) -> None:
    run_command(run, parse_arguments, arguments)


if __name__ == "__main__":
    main()
