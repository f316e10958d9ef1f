"""Turns image tags into pseudo masks with a VPL model's localisation maps.

    python -m training.make_pseudo_labels my-vpl --output_dir pseudo-labels --dataset_name photos --labels_csv tags.csv
    accelerate launch -m training.make_pseudo_labels my-vpl --output_dir pseudo-labels        # images shared by the processes

What the folder holds, and how a killed run goes on, is in `pseudo_masks`; training drops pixels below a confidence of its own.
"""

import argparse
from collections.abc import Sequence

from accelerate import Accelerator

from hf_clipseg import SegmentationProcessor, VplForSemanticSegmentation
from hf_clipseg.clip.class_files import class_names_of_argument
from hf_clipseg.localization.pseudo_labels import REFINEMENTS

from .data.pseudo_masks import write_pseudo_labels
from .data.tagged_images import TaggedImages, load_tagged_images


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that choose tagged images; `open_source` reads them."""
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_name", default="toyscapes", help="'toyscapes', a Hub id, or a folder of images (%(default)s)")
    data.add_argument("--dataset_config", help="configuration of a Hub data set")
    data.add_argument("--train_split", default="train", help="(%(default)s)")
    data.add_argument("--labels_csv", help="for a folder: a CSV with the columns file and labels (parted by ';')")
    data.add_argument("--classes", help="all classes, parted by commas, synonyms by '|' (default: the data set's)")
    data.add_argument("--image_column", help="where it cannot be guessed")
    data.add_argument("--labels_column", help="where it cannot be guessed")
    data.add_argument("--max_train_samples", type=int, help="use so many images")
    data.add_argument("--data_seed", type=int, default=0, help="which scenes of Toyscapes, which rows (%(default)s)")


def open_source(arguments: argparse.Namespace, class_names=None) -> TaggedImages:
    """The images that the arguments name; `class_names` where a model already fixes them."""
    return load_tagged_images(
        arguments.dataset_name, arguments.train_split, arguments.labels_csv,
        class_names or (class_names_of_argument(arguments.classes) if arguments.classes else None),
        arguments.max_train_samples, arguments.data_seed, arguments.dataset_config, arguments.image_column,
        arguments.labels_column,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a VPL checkpoint with prototypes (the folder of training.train_vpl's first stage)")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--refinement", choices=sorted(REFINEMENTS), default="crf")
    parser.add_argument("--batch_size", type=int, default=16)
    add_data_arguments(parser)
    args = parser.parse_args(arguments)
    accelerator = Accelerator()
    model = VplForSemanticSegmentation.from_pretrained(args.model).to(accelerator.device).eval()
    processor = SegmentationProcessor.from_pretrained(args.model)
    source = open_source(args, model.config.class_names)
    write_pseudo_labels(model, processor, source, args.output_dir, args.refinement, args.batch_size, accelerator)


if __name__ == "__main__":
    main()
