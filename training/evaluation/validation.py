"""Scoring a model while it is trained: a callback for the loop, which keeps the checkpoint with the best mIoU."""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from hf_clipseg.clip.text_bank import ClassName
from hf_clipseg.processing.inference import segment

from .pictures import keep_sheet, prediction_sheet, spread
from .scoring import score

FIGURES = ("mIoU", "pixel_accuracy", "boundary_f")
CLASS_PREFIX = "IoU/"  # one chart per class, in a group of their own


class MaskValidation:
    """Scores images with masks every `--validation_steps` steps and after the last one, and draws some of them.

    Args:
        args: has `output_dir`, `max_train_steps` and the fields of `ValidationArguments`.
        source: images with masks; None: nothing is ever scored.
        label_names: name of every label of the masks.
        class_names: passed to the model; None where its baked classes are those of the masks.

    Raises:
        ValueError: the masks have other classes than the model is trained for, or a stride is given without a window.
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
        self.options = window_options(args)
        names = None if source is None else source.class_names
        if names is not None and list(names) != self.label_names:
            raise ValueError(
                f"The validation masks are of the classes {list(names)}, the model of {self.label_names}. Pass --classes with "
                "the names of both, or validate on masks of the same classes."
            )

    def is_due(self, step: int) -> bool:
        last = step == self.args.max_train_steps
        return self.source is not None and (last or step % self.args.validation_steps == 0)

    def __call__(self, step: int, model: torch.nn.Module) -> dict[str, float] | None:
        if not self.is_due(step):
            return None
        count = len(self.label_names)
        scores = score(model, self.processor, self.source, self.class_names, count, self.accelerator, self.options)
        figures = scores.figures(self.label_names)
        self.scores = {name: figures[name] for name in FIGURES if figures[name] is not None}
        self.class_scores = {name: iou for name, iou in figures["per_class_iou"].items() if iou is not None}
        self.draw(step, model)
        return {**self.scores, **{CLASS_PREFIX + name: iou for name, iou in self.class_scores.items()}}

    def draw(self, step: int, model: torch.nn.Module) -> None:
        """A sheet of images from all over the set; every process computes it, as a sharded model needs, and one keeps it."""
        if not self.args.validation_pictures:
            return
        samples = [self.source[index] for index in spread(len(self.source), self.args.validation_pictures)]
        images = [sample["image"] for sample in samples]
        label_maps = segment(model, self.processor, images, self.class_names, **self.options)
        sheet = prediction_sheet(samples, label_maps, self.label_names)
        keep_sheet(sheet, self.args.output_dir, step, self.accelerator)

    def ahead(self, step: int, model: torch.nn.Module, count: int = 2) -> tuple[int, float]:
        """How many validations follow after `step`, and the seconds that one takes, measured on `count` images."""
        due = sum(map(self.is_due, range(step + 1, self.args.max_train_steps + 1)))
        if not due:
            return 0, 0.0
        started = time.perf_counter()
        chosen = spread(len(self.source), count)
        segment(model, self.processor, [self.source[row]["image"] for row in chosen], self.class_names, **self.options)
        per_image = (time.perf_counter() - started) / len(chosen)
        return due, per_image * (len(self.source) / self.accelerator.num_processes + self.args.validation_pictures)


def window_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `segment`: sliding windows where the options ask for them."""
    if args.validation_window is None:
        if args.validation_stride is not None:
            raise ValueError("--validation_stride is the distance of windows: pass --validation_window, too")
        return {}
    return {"window": args.validation_window, "stride": args.validation_stride or args.validation_window // 2}
