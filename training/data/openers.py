"""From the options of a command to its data: the one place that knows which flag is which argument of which source."""

import argparse
from typing import Any

from hf_clipseg.clip.class_files import class_names_of_argument

from .file_checks import check_some_masks
from .layouts import division_key
from .sources import load_source
from .tagged_images import TaggedImages, load_tagged_images


def open_masks(args: argparse.Namespace, split: str | None = None, limit: int | None = None, **more: Any):
    """Images and masks as `DataArguments`, `ClassArguments` and `MaskArguments` say.

    Args:
        split: default: `args.split`.
        limit: use so many images; default: all.
        more: further arguments of `load_source`, such as `seed`, and the `size` of Toyscapes scenes.
    """
    options: dict[str, Any] = {
        "config_name": args.dataset_config_name, "image_column": args.image_column, "mask_column": args.mask_column,
        "classes_file": args.classes, "reduce_labels": args.reduce_labels, "id_map": args.id_map,
        "ignore_label": args.ignore_label, "colour_map": args.colour_map, "streaming": args.streaming,
        "limit": limit, "validation_fraction": args.validation_fraction,
    }  # fmt: skip
    source = load_source(args.dataset_name, split or args.split, **options | more)
    check_some_masks(source)
    return source


def open_validation(args: argparse.Namespace, **more: Any):
    """The masks that `ValidationArguments` name; None where they name none."""
    if args.validation_split is None and args.validation_fraction is None:
        return None
    return open_masks(args, args.validation_split or "validation", args.validation_limit, **more)


def check_held_out(trained_on: TaggedImages, masks, fraction: float | None) -> None:
    """Raises ValueError where `--validation_fraction` divided tags and masks of one set in different ways."""
    column = getattr(masks, "key_column", None)
    if fraction is None or masks is None or column is None:
        return
    both = {division_key(key) for key in trained_on.keys} & {division_key(str(key)) for key in masks.dataset[column]}
    if both:
        raise ValueError(
            f"{len(both)} images, such as {sorted(both)[0]!r}, would be trained on and scored: tags and masks are not of the "
            "same images. Put the masks to score on into a split of their own, and pass --validation_split"
        )


def open_tags(args: argparse.Namespace, class_names=None) -> TaggedImages:
    """Tagged images as `DataArguments` and `TagArguments` say; `class_names` where a model already fixes them."""
    names = class_names or (class_names_of_argument(args.classes) if args.classes else None)
    return load_tagged_images(
        args.dataset_name, args.split, args.labels_csv, names, args.limit, args.data_seed, args.dataset_config_name,
        args.image_column, args.labels_column, validation_fraction=getattr(args, "validation_fraction", None),
        streaming=args.streaming,
    )  # fmt: skip


def caption_options(args: argparse.Namespace, side: int, seed: int, limit: int | None) -> dict[str, Any]:
    """Arguments of `load_captions` besides data set and split, as `DataArguments` and `CaptionArguments` say.

    Args:
        side: of Toyscapes scenes.
        seed: which scenes, which rows.
        limit: use so many images; None: all.
    """
    options: dict[str, Any] = {
        "config_name": args.dataset_config_name, "image_column": args.image_column, "caption_column": args.caption_column,
        "streaming": args.streaming, "limit": limit, "seed": seed,
    }  # fmt: skip
    if args.dataset_name == "toyscapes":
        options |= {"size": (side, side), "omission_rate": args.omission_rate, "closeup_rate": args.closeup_rate}
    return options
