"""The card of a run, from its options, its data and its validation."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from .provenance import provenance
from .result_card import ResultCard


def run_card(
    args: argparse.Namespace,
    command: str,
    method: str,
    description: str,
    data: Mapping[str, Any],
    validation: Any = None,
    limits: Sequence[str] = (),
    base_model: str | None = None,
) -> ResultCard:
    """What `publish` writes beside the weights.

    Args:
        args: from `CommandParser`, which adds the `command_line`.
        command: name of the script, `train_vpl`.
        method: for the heading, `VPL`.
        description: how the model was supervised, in a sentence or two.
        data: `description` of the source it learned from.
        validation: has `scores` and `class_scores`, None where nothing was scored.
        limits: what the model cannot do.
        base_model: the checkpoint it started from.
    """
    return ResultCard(
        title=f"{method} on {args.dataset_name.rstrip('/').split('/')[-1]}",
        description=description,
        provenance=provenance(f"training.{command}", args.command_line),
        data={"split": args.split, **data},
        dataset_name=args.dataset_name,
        scores=getattr(validation, "scores", None),
        class_scores=getattr(validation, "class_scores", None),
        limits=limits,
        base_model=base_model,
    )
