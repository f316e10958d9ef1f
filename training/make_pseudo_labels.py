"""Turns image tags into pseudo masks with a VPL model's localisation maps.

    python -m training.make_pseudo_labels my-vpl --output_dir pseudo-labels --dataset_name photos --labels_csv tags.csv
    accelerate launch -m training.make_pseudo_labels my-vpl --output_dir pseudo-labels        # images shared by the processes

What the folder holds, and how a killed run goes on, is in `data.pseudo_masks`; training drops pixels below a confidence of its
own.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from accelerate import Accelerator
from transformers.hf_argparser import HfArg

from hf_clipseg import SegmentationProcessor, VplForSemanticSegmentation
from hf_clipseg.refinement.refinements import REFINEMENTS

from .data.openers import open_tags
from .data.pseudo_masks import write_pseudo_labels
from .settings.arguments import (
    ClassArguments,
    CommandParser,
    DataArguments,
    DataSeedArguments,
    TagArguments,
    run_command,
)


@dataclass
class PseudoLabelArguments:
    output_dir: str = HfArg(help="folder of the masks")
    refinement: str = HfArg(default="crf", metadata={"choices": sorted(REFINEMENTS)}, help="of the maps, with the image")
    batch_size: int = HfArg(default=16, help="images per forward pass; decides the masks to the bit")


def build_parser() -> CommandParser:
    parser = CommandParser([PseudoLabelArguments, DataArguments, TagArguments, ClassArguments, DataSeedArguments], __doc__)
    parser.add_argument("model", help="a VPL checkpoint with prototypes (the folder of training.train_vpl's first stage)")
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    return build_parser().parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    accelerator = Accelerator()
    model = VplForSemanticSegmentation.from_pretrained(args.model).to(accelerator.device).eval()
    processor = SegmentationProcessor.from_pretrained(args.model)
    source = open_tags(args, model.config.class_names)
    write_pseudo_labels(model, processor, source, args.output_dir, args.refinement, args.batch_size, accelerator)


def main(arguments: Sequence[str] | None = None) -> None:
    run_command(run, parse_arguments, arguments)


if __name__ == "__main__":
    main()
