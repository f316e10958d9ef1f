"""Trains MVP-SEG+: a student on masks of seen classes and on guesses for the pixels whose masks are withheld.

Command:   python -m training.train_mvp_seg_plus --teacher runs/mvp-seg-toyscapes/final --output_dir runs/mvp-seg-plus-toyscapes

Until `--teacher_steps` the guesses are the teacher's, then the student's own, as in MaskCLIP+ (arXiv 2112.01071). Guesses are
unseen classes: the student is told which pixels are unseen (the transductive setting), never what they show.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers.hf_argparser import HfArg

from hf_clipseg import MvpSegForSemanticSegmentation, MvpSegPlusForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.clip.text_bank import weights_fingerprint
from hf_clipseg.constants import IGNORE_INDEX
from hf_clipseg.models.losses import segmentation_cross_entropy

from .data.feature_cache import CropCache, cache_pixels
from .data.openers import open_masks, open_validation
from .data.zero_shot import ZeroShotArguments, ZeroShotLabels, choose_split, crop_settings
from .engine.loop import SampleKey, make_accelerator, train
from .engine.optim import make_schedule, parameter_groups
from .engine.publish import check_hub_access, publish
from .engine.run_card import run_card
from .evaluation.validation import MaskValidation
from .settings.arguments import (
    ClassArguments,
    CommandParser,
    DataArguments,
    MaskArguments,
    MaskValidationArguments,
    PresetArguments,
    ValidationArguments,
    config_values,
    run_command,
)
from .settings.training_settings import TrainingSettings

logger = logging.getLogger(__name__)


@dataclass
class StudentArguments:
    """Whom the student learns from, and how."""

    _argument_group_name = "student"

    teacher: str | None = HfArg(default=None, help="a trained MVP-SEG model of the same classes")
    backbone: str | None = HfArg(default=None, help="a transformers backbone; default: the teacher's own vision encoder")
    learning_rate: float = HfArg(default=3e-4, help="at its peak")
    weight_decay: float = HfArg(default=0.01, help="of matrices")
    warmup_steps: int = HfArg(default=30, help="the learning rate rises linearly")
    teacher_steps: int | None = HfArg(default=None, help="steps on the teacher's guesses; default: a tenth of all")
    min_confidence: float = HfArg(default=0.0, help="ignore guesses less probable than this, among unseen classes")


GROUPS = (
    StudentArguments, PresetArguments, DataArguments, ClassArguments, MaskArguments, ZeroShotArguments, ValidationArguments,
    MaskValidationArguments,
    TrainingSettings,
)  # fmt: skip


def build_parser() -> CommandParser:
    parser = CommandParser(GROUPS, __doc__)
    parser.set_defaults(max_train_steps=200, checkpointing_steps=100, logging_steps=20, validation_steps=100)
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    return build_parser().parse_for_dataset(arguments, "train_mvp_seg_plus")


def guess_unseen(logits: torch.Tensor, unseen_ids: Sequence[int], size: Sequence[int], min_confidence: float) -> torch.Tensor:
    """The best unseen class of every pixel.

    Args:
        logits: `(batch, classes, h, w)` of all classes.
        unseen_ids: the classes to choose from.
        size: `(height, width)` of the result.
        min_confidence: less probable guesses become 255.

    Returns:
        `(batch, height, width)` int64 ids of all classes.
    """
    ids = torch.tensor(unseen_ids, device=logits.device)
    logits = F.interpolate(logits[:, ids].detach().float(), size=tuple(size), mode="bilinear", align_corners=False)
    confidence, choice = logits.softmax(dim=1).max(dim=1)
    return ids[choice].masked_fill(confidence < min_confidence, IGNORE_INDEX)


@torch.no_grad()
def teacher_guesses(
    teacher, cache: CropCache, split: ZeroShotLabels, min_confidence: float, batch_size: int = 32
) -> np.ndarray:
    """The teacher's guess for every pixel of every crop, `(crops, L, L)` uint8; only those of withheld pixels are ever used."""
    size = cache.labels.shape[1:]
    guesses = np.empty(cache.labels.shape, dtype=np.uint8)
    for first in range(0, len(cache), batch_size):
        pixels = torch.from_numpy(cache.encoded[first : first + batch_size].astype(np.float32)).to(teacher.device)
        guess = guess_unseen(teacher(pixels).logits, split.unseen_ids, size, min_confidence)
        guesses[first : first + batch_size] = guess.cpu().numpy()
    return guesses


class WithheldCrops(Dataset):
    """Crops with the labels that may be known, the pixels that are withheld, and the teacher's guesses for them."""

    def __init__(self, cache: CropCache, split: ZeroShotLabels, guesses: np.ndarray, seed: int):
        self.cache, self.split, self.guesses, self.seed = cache, split, guesses, seed

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        pixels, mask = self.cache[key.index]
        labels, withheld = self.split.hide(mask)
        guesses = torch.from_numpy(self.guesses[key.index].astype(np.int64))
        sample = {"pixel_values": pixels, "labels": labels, "withheld": withheld, "guesses": guesses}
        if np.random.default_rng((self.seed, key.epoch, key.index)).random() < 0.5:
            sample = {name: value.flip(-1) for name, value in sample.items()}
        return {**sample, "step": key.step}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0] if name != "step"}
    return {**batch, "step": samples[0]["step"]}


class Losses:
    """(model, batch) -> cross-entropy on ground truth and guesses, for the training loop.

    Args:
        split: knows which labels must never arrive here.
        names: `input_ids`, `name_ids` and `class_ids` of all classes.
        teacher_steps: from this step on the student guesses itself.
        min_confidence: see `guess_unseen`.
    """

    def __init__(self, split: ZeroShotLabels, names: dict[str, torch.Tensor], teacher_steps: int, min_confidence: float):
        self.split, self.names = split, names
        self.teacher_steps, self.min_confidence = teacher_steps, min_confidence

    def __call__(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        labels, withheld, guesses = batch["labels"], batch["withheld"], batch["guesses"]
        logits = model(pixel_values=batch["pixel_values"], **self.names).logits
        if self.split.unseen_ids and batch["step"] >= self.teacher_steps:
            guesses = guess_unseen(logits, self.split.unseen_ids, labels.shape[1:], self.min_confidence)
        targets = self.split.fill_withheld(labels, withheld, guesses)
        loss = segmentation_cross_entropy(logits, targets)
        return {"loss": loss, "guessed_pixels": (targets[withheld] != IGNORE_INDEX).sum() / targets.numel()}


def check_teacher(teacher, split: ZeroShotLabels) -> None:
    """A teacher that was trained for other classes would guess other classes."""
    baked = [names[0] for names in teacher.config.class_names or []]
    if baked != split.class_names:
        raise ValueError(
            f"The teacher knows the classes {baked}, the data set has {split.class_names}: train it on this data set."
        )


def run(args: argparse.Namespace) -> MvpSegPlusForSemanticSegmentation:
    """The whole training; returns the student with all classes baked in, and writes it to `<output_dir>/final`."""
    settings = TrainingSettings.from_arguments(args)
    check_hub_access(settings)
    if args.teacher is None:
        raise ValueError(
            "--teacher is needed: a model that training.train_mvp_seg trained on this data set, such as runs/mvp-seg/final."
        )
    sides = (args.image_size, args.image_size)
    source = open_masks(args, limit=args.limit, size=sides)
    split = choose_split(source.class_names, args.unseen)
    teacher = MvpSegForSemanticSegmentation.from_pretrained(args.teacher)
    processor = SegmentationProcessor.from_pretrained(args.teacher)
    check_teacher(teacher, split)
    accelerator = make_accelerator(settings)
    validation = MaskValidation(
        args, accelerator, processor, open_validation(args, size=sides), split.class_names, split.class_names
    )
    teacher.to(accelerator.device)
    logger.info("seen: %s; unseen: %s", ", ".join(split.seen_names), ", ".join(split.unseen_names) or "none")

    with accelerator.main_process_first():
        cache = cache_pixels(source, processor, crop_settings(args, teacher.clip.patch_size), cache_dir=args.cache_dir)
    guesses = np.full(cache.labels.shape, IGNORE_INDEX, dtype=np.uint8)
    if split.unseen_ids:
        guesses = teacher_guesses(teacher, cache, split, args.min_confidence)
    student = MvpSegPlusForSemanticSegmentation.from_teacher(teacher, args.backbone).to(accelerator.device).train()
    teacher_steps = settings.max_train_steps // 10 if args.teacher_steps is None else args.teacher_steps
    names = dict(processor(class_names=split.class_names).to(accelerator.device))
    losses = Losses(split, names, teacher_steps, args.min_confidence)

    optimizer = torch.optim.AdamW(parameter_groups(student, args.learning_rate, args.weight_decay))
    scheduler = make_schedule(optimizer, "poly", min(args.warmup_steps, settings.max_train_steps), settings.max_train_steps)
    student = train(
        accelerator, settings, student, optimizer, scheduler, WithheldCrops(cache, split, guesses, settings.seed), collate,
        losses, on_step=validation, processor=processor,
        identity={
            "data": source.description, "class_names": split.class_names, "unseen": split.unseen_names,
            "teacher": weights_fingerprint(teacher.prompts), "teacher_steps": teacher_steps,
            "min_confidence": args.min_confidence,
            **config_values(args, ZeroShotArguments, leave_out=("cache_dir", "unseen")),
        },
    )  # fmt: skip

    student.set_classes(split.class_names, processor)
    if accelerator.is_main_process:
        description = (
            f"MVP-SEG+: a student trained on {len(source)} images with masks of the classes {', '.join(split.seen_names)} and "
            f"on guesses for the pixels of withheld classes ({', '.join(split.unseen_names) or 'none'})."
        )
        card = run_card(
            args, "train_mvp_seg_plus", "MVP-SEG+", description, source.description, validation, base_model=args.teacher
        )
        publish(student, processor, settings, card)
    return student


def main(arguments: Sequence[str] | None = None) -> None:
    run_command(run, parse_arguments, arguments)


if __name__ == "__main__":
    main()
