"""Turns a CLIP into a MaskCLIP checkpoint with classes of your own baked in. Nothing is trained.

    python -m training.bake_classes model_cards/clip-toyscapes --output_dir model_cards/mask-clip-toyscapes
    python -m training.bake_classes openai/clip-vit-base-patch16 --classes "sky, boat|ship" --output_dir harbour

The result loads with `from_pretrained` and with `pipeline("image-segmentation")`; other classes may still be named per call
unless the text encoder was dropped.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hf_clipseg import MaskClipForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.clip.class_files import class_names_of_argument
from hf_clipseg.clip.clip_backbone import KEEPS_RESIDUAL
from hf_clipseg.clip.text_bank import TEMPLATES
from hf_clipseg.toyscapes import CLASS_NAMES


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.bake_classes", description=__doc__.split("\n")[0])
    parser.add_argument("clip", help="folder or Hub id of a CLIP checkpoint")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument(
        "--classes", help="parted by commas, synonyms by '|'; or a file with one class per line (default: those of Toyscapes)"
    )
    parser.add_argument(
        "--templates", default="ensemble", help=f"one template with '{{}}', or of {sorted(TEMPLATES)} (%(default)s)"
    )
    parser.add_argument("--attention_variant", choices=sorted(KEEPS_RESIDUAL), default="value", help="(%(default)s)")
    parser.add_argument(
        "--keep_residual", choices=("yes", "no"), help="residual and MLP of the last block (default: the paper's)"
    )
    parser.add_argument("--image_size", type=int, help="short side of the model's input (default: 1.5 times CLIP's)")
    parser.add_argument("--drop_text_encoder", action="store_true", help="keep the baked classes only")
    return parser


def choose_classes(argument: str | None) -> list:
    return list(CLASS_NAMES) if argument is None else class_names_of_argument(argument)


def bake(arguments: argparse.Namespace) -> tuple[MaskClipForSemanticSegmentation, SegmentationProcessor]:
    keep_residual = None if arguments.keep_residual is None else arguments.keep_residual == "yes"
    model = MaskClipForSemanticSegmentation.from_clip(
        arguments.clip, attention_variant=arguments.attention_variant, keep_residual=keep_residual
    )
    side = arguments.image_size
    size = None if side is None else {"shortest_edge": side, "longest_edge": 4 * side}
    processor = SegmentationProcessor.from_clip(arguments.clip, templates=arguments.templates, size=size)
    classes = choose_classes(arguments.classes)
    if unknown := processor.unknown_words(classes):
        print(f"warning: the tokenizer does not know {', '.join(unknown)}; classes named by these words mean nothing to it")
    model.set_classes(classes, processor)
    if arguments.drop_text_encoder:
        model.drop_text_encoder()
    return model, processor


def save(model, processor, output_dir: str | os.PathLike) -> None:
    """Write into a new folder beside `output_dir`, then move the files over: a kill leaves no half-written weights."""
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}.") as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        for file in Path(partial).iterdir():
            shutil.move(file, output_dir / file.name)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = build_parser().parse_args(argv)
    try:
        model, processor = bake(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    save(model, processor, arguments.output_dir)
    print(
        f"{len(model.config.id2label)} classes baked into {arguments.output_dir}: {', '.join(model.config.id2label.values())}"
    )


if __name__ == "__main__":
    main()
