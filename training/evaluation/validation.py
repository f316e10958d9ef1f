"""Scoring a model while it is trained: a callback for the loop, which keeps the checkpoint with the best mIoU."""

import argparse
from collections.abc import Sequence

import torch
from accelerate import Accelerator

from hf_clipseg.clip.text_bank import ClassName

from .scoring import score

FIGURES = ("mIoU", "pixel_accuracy", "boundary_f")


class MaskValidation:
    """Scores images with masks every `--validation_steps` steps and after the last one.

    Args:
        args: has `validation_steps` and `max_train_steps`.
        source: images with masks; None: nothing is ever scored.
        label_names: name of every label of the masks.
        class_names: passed to the model; None where its baked classes are those of the masks.

    Raises:
        ValueError: the masks have other classes than the model is trained for.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: Accelerator,
        processor,
        source,
        label_names: Sequence[str],
        class_names: Sequence[ClassName] | None = None,
    ):
        self.args, self.accelerator, self.processor, self.source = args, accelerator, processor, source
        self.label_names, self.class_names = list(label_names), class_names
        self.scores: dict[str, float] | None = None
        self.class_scores: dict[str, float] | None = None
        names = None if source is None else source.class_names
        if names is not None and list(names) != self.label_names:
            raise ValueError(
                f"The validation masks are of the classes {list(names)}, the model of {self.label_names}. Pass --classes with "
                "the names of both, or validate on masks of the same classes."
            )

    def __call__(self, step: int, model: torch.nn.Module) -> dict[str, float] | None:
        last = step == self.args.max_train_steps
        if self.source is None or (step % self.args.validation_steps and not last):
            return None
        count = len(self.label_names)
        scores = score(model, self.processor, self.source, self.class_names, count, self.accelerator)
        figures = scores.figures(self.label_names)
        self.scores = {name: figures[name] for name in FIGURES if figures[name] is not None}
        self.class_scores = {name: iou for name, iou in figures["per_class_iou"].items() if iou is not None}
        return self.scores
