"""Trains MVP-SEG: prompts and temperatures on a frozen CLIP, from the masks of seen classes.

Command:   python -m training.train_mvp_seg --output_dir runs/mvp-seg-toyscapes

CLIP is frozen, so its features are computed once (`feature_cache`). With the defaults this trains the shipped
`model_cards/mvp-seg-toyscapes`, by `--orthogonality text --spread_weight 0`; its card has hardware, runtime and scores.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers.hf_argparser import HfArg

from hf_clipseg import MvpSegConfig, MvpSegForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.clip.multi_view import class_spread, fused_embeds
from hf_clipseg.clip.text_bank import average_templates

from .data.feature_cache import CropCache, cache_features
from .data.openers import open_masks, open_validation
from .data.zero_shot import ZeroShotArguments, ZeroShotLabels, check_prompts_fit, choose_split, crop_settings
from .engine.loop import SampleKey, make_accelerator, train
from .engine.optim import make_schedule
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
    config_arguments,
    config_values,
    run_command,
)
from .settings.dataset_defaults import CLIP, warn_of_drawn_clip
from .settings.training_settings import TrainingSettings

logger = logging.getLogger(__name__)

HAND_WRITTEN = "a photo of a {}"
"""What the class spread of learned prompts is compared with."""

MODEL_FIELDS = (
    "attention_variant", "keep_residual", "num_views", "num_prompt_tokens", "fusion", "orthogonality", "global_refinement",
    "presence_loss", "presence_weight", "orthogonality_weight",
)  # fmt: skip
ModelArguments = config_arguments(MvpSegConfig, MODEL_FIELDS, "model; see MvpSegConfig")


@dataclass
class PromptArguments:
    """How prompts start and how they are learned."""

    _argument_group_name = "prompts"

    model_name_or_path: str = HfArg(default=CLIP, help="any CLIP checkpoint")
    prompt_words: list[str] = HfArg(
        default_factory=list,
        help="start the prompts from these words, one string per prompt, the global one first, in turn; default: random",
    )
    learning_rate: float = HfArg(default=5e-3, help="at its peak")
    weight_decay: float = HfArg(default=0.0, help="of the prompts")
    warmup_steps: int = HfArg(default=20, help="the learning rate rises linearly")
    anchor_weight: float = HfArg(default=0.5, help="keep the fused text of a class near its template ensemble; paper: 0")
    spread_weight: float = HfArg(
        default=1.0, help="keep each view's class spread at or below that of hand-written prompts; paper: 0"
    )
    gradient_checkpointing: bool = HfArg(default=False, help="less memory in the text encoder, more time")


GROUPS = (
    PromptArguments, PresetArguments, DataArguments, ClassArguments, MaskArguments, ZeroShotArguments, ValidationArguments,
    MaskValidationArguments,
    ModelArguments, TrainingSettings,
)  # fmt: skip


def build_parser() -> CommandParser:
    parser = CommandParser(GROUPS, __doc__)
    parser.set_defaults(
        max_train_steps=600, checkpointing_steps=200, logging_steps=20, validation_steps=200, mixed_precision="no"
    )
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    return build_parser().parse_for_dataset(arguments, "train_mvp_seg")


class SeenCrops(Dataset):
    """Crops of a `CropCache` with the labels of seen classes only, numbered 0 .. seen classes - 1."""

    def __init__(self, cache: CropCache, split: ZeroShotLabels):
        self.cache, self.split = cache, split

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, key: SampleKey) -> tuple[torch.Tensor, torch.Tensor]:
        features, mask = self.cache[key.index]
        labels, _ = self.split.hide(mask)
        self.split.assert_hidden(labels)
        return features, self.split.to_seen_numbers(labels)


def collate(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    features, labels = zip(*samples, strict=True)
    return {"patch_embeds": torch.stack(features), "labels": torch.stack(labels)}


def build_model(args: argparse.Namespace, processor: SegmentationProcessor) -> MvpSegForSemanticSegmentation:
    """The model on its CLIP checkpoint, prompts at random or at `--prompt_words`."""
    model = MvpSegForSemanticSegmentation.from_clip(args.model_name_or_path, **config_values(args, ModelArguments))
    if args.prompt_words:
        words = [args.prompt_words[index % len(args.prompt_words)] for index in range(1 + args.num_views)]
        ids = [processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in words]
        if len(set(map(len, ids))) > 1:
            lengths = ", ".join(f"{text!r}: {len(row)}" for text, row in zip(words, ids, strict=True))
            raise ValueError(f"--prompt_words must have equal numbers of tokens, got {lengths}.")
        model.prompts.start_from_words(model.clip, torch.tensor(ids))
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model


class Losses:
    """(model, batch) -> named losses over the seen classes, for the training loop.

    Two losses are ours. The anchor keeps the mean direction of a name's views near its template ensemble, as KgCoOp (arXiv
    2303.13283) does for unseen classes' sake. The spread keeps views from forgetting the class: random contexts start with
    texts that are much more alike from class to class than hand-written ones are, and nothing else changes that, because
    what all classes share cancels in the softmax over classes. With s_i the mean cosine of different classes in view i, and s
    the same of `HAND_WRITTEN`: `L_spread = mean_i max(0, s_i - s)`.

    Args:
        names: `input_ids`, `name_ids` and `class_ids` of the seen classes.
        anchors: `(names, dim)`, their template ensembles.
        by_hand: `(names, dim)`, their hand-written prompts.
        anchor_weight, spread_weight: of these two losses.
    """

    def __init__(
        self, names: dict[str, torch.Tensor], anchors: torch.Tensor, by_hand: torch.Tensor, anchor_weight: float,
        spread_weight: float,
    ):  # fmt: skip
        self.names, self.anchors, self.anchor_weight = names, anchors, anchor_weight
        self.spread_by_hand, self.spread_weight = class_spread(by_hand), spread_weight

    def __call__(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        outputs = model(**batch, **self.names)
        losses = {**outputs.losses, "loss": outputs.loss}
        if self.anchor_weight:
            fused = fused_embeds(outputs.view_embeds[1:], "renormalised_sum")
            losses["anchor"] = 1 - F.cosine_similarity(fused, self.anchors.to(fused.dtype), dim=-1).mean()
            losses["loss"] = losses["loss"] + self.anchor_weight * losses["anchor"]
        spreads = class_spread(outputs.view_embeds)
        if self.spread_weight:
            losses["spread"] = (spreads[1:] - self.spread_by_hand).clamp(min=0).mean()
            losses["loss"] = losses["loss"] + self.spread_weight * losses["spread"]
        return losses | self.logged_spreads(spreads.detach(), has_global=outputs.presence_logits is not None)

    def logged_spreads(self, spreads: torch.Tensor, has_global: bool) -> dict[str, torch.Tensor]:
        """Class spread of every prompt in use and, beside them, of the hand-written one; see `class_spread`."""
        named = {f"class_spread/view_{number}": spread for number, spread in enumerate(spreads) if number}
        if has_global:
            named["class_spread/global"] = spreads[0]
        return named | {"class_spread/by_hand": self.spread_by_hand}


def make_losses(args: argparse.Namespace, model, processor, split: ZeroShotLabels, device) -> Losses:
    def texts(templates: str) -> torch.Tensor:
        inputs = processor(class_names=split.seen_names, templates=templates).to(device)
        with torch.no_grad():
            return average_templates(model.clip.encode_text(inputs["input_ids"]), inputs["name_ids"])

    names = dict(processor(class_names=split.seen_names, templates="name").to(device))
    return Losses(names, texts("ensemble"), texts(HAND_WRITTEN), args.anchor_weight, args.spread_weight)


def make_optimizer(args: argparse.Namespace, model) -> torch.optim.Optimizer:
    """AdamW; weight decay pulls on prompts only, not on temperatures and threshold."""
    scalars = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim == 0]
    groups = [
        {"params": [model.prompts.contexts], "weight_decay": args.weight_decay},
        {"params": scalars, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.learning_rate)


def run(args: argparse.Namespace) -> MvpSegForSemanticSegmentation:
    """The whole training; returns the model with all classes baked in, and writes it to `<output_dir>/final`."""
    settings = TrainingSettings.from_arguments(args)
    check_hub_access(settings)
    warn_of_drawn_clip(args)
    sides = (args.image_size, args.image_size)  # of Toyscapes scenes; always the same ones, whatever the seed of the run
    source = open_masks(args, limit=args.limit, size=sides)
    split = choose_split(source.class_names, args.unseen)
    size = {"shortest_edge": args.image_size, "longest_edge": 4 * args.image_size}
    processor = SegmentationProcessor.from_clip(args.model_name_or_path, templates="name", size=size)
    accelerator = make_accelerator(settings)
    validation = MaskValidation(
        args, accelerator, processor, open_validation(args, size=sides), split.class_names, split.class_names
    )
    model = build_model(args, processor)
    limit = model.config.clip_config.text_config.max_position_embeddings
    check_prompts_fit(processor, split.class_names, "name", args.num_prompt_tokens, limit)
    logger.info("seen: %s; unseen: %s", ", ".join(split.seen_names), ", ".join(split.unseen_names) or "none")

    model.to(accelerator.device)
    with accelerator.main_process_first():
        cropping = crop_settings(args, model.clip.patch_size)
        cache = cache_features(model, source, processor, cropping, cache_dir=args.cache_dir)
    losses = make_losses(args, model, processor, split, accelerator.device)
    optimizer = make_optimizer(args, model)
    scheduler = make_schedule(optimizer, "cosine", min(args.warmup_steps, settings.max_train_steps), settings.max_train_steps)
    model = train(
        accelerator, settings, model, optimizer, scheduler, SeenCrops(cache, split), collate, losses, on_step=validation,
        processor=processor,
        identity={
            "data": source.description, "class_names": split.class_names, "unseen": split.unseen_names,
            "anchor_weight": args.anchor_weight, "spread_weight": args.spread_weight, "prompt_words": args.prompt_words,
            **config_values(args, ZeroShotArguments, leave_out=("cache_dir", "unseen")),
        },
    )  # fmt: skip

    model.set_classes(split.class_names, processor)
    if accelerator.is_main_process:
        description = (
            f"MVP-SEG: prompts learned on a frozen CLIP from {len(source)} images with masks of the classes "
            f"{', '.join(split.seen_names)}. Withheld in training: {', '.join(split.unseen_names) or 'none'}."
        )
        card = run_card(
            args, "train_mvp_seg", "MVP-SEG", description, source.description, validation, base_model=args.model_name_or_path
        )
        publish(model, processor, settings, card)
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    run_command(run, parse_arguments, arguments)


if __name__ == "__main__":
    main()
