"""Trains MVP-SEG: prompts and temperatures on a frozen CLIP, from the masks of seen classes.

Command:   python -m training.train_mvp_seg --output_dir runs/mvp-seg-toyscapes

CLIP is frozen, so its features are computed once (`feature_cache`). With the defaults this trains the shipped
`model_cards/mvp-seg-toyscapes`; its card has hardware, runtime and scores.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from hf_clipseg import MvpSegForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.clip.multi_view import FUSIONS, fused_embeds
from hf_clipseg.clip.text_bank import average_templates
from hf_clipseg.models.mvp_seg.configuration_mvp_seg import ORTHOGONALITY, PRESENCE_LOSSES, REFINEMENT

from .data.feature_cache import CropCache, CropSettings, cache_features
from .data.sources import load_source
from .data.zero_shot import ZeroShotLabels, add_zero_shot_arguments, check_prompts_fit, choose_split
from .engine.loop import SampleKey, TrainingSettings, add_training_arguments, make_accelerator, train
from .engine.optim import make_schedule

logger = logging.getLogger(__name__)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default="model_cards/clip-toyscapes", help="any CLIP checkpoint (%(default)s)")
    add_zero_shot_arguments(parser)
    model = parser.add_argument_group("model; the forms of the paper are named")
    model.add_argument("--attention_variant", default="value", help="attention of CLIP's last block (%(default)s)")
    model.add_argument(
        "--keep_residual", choices=("yes", "no"), default="no", help="residual and MLP of the last block (%(default)s)"
    )
    model.add_argument("--num_views", type=int, default=3, help="segmentation prompts, k (%(default)s; paper: 3)")
    model.add_argument("--num_prompt_tokens", type=int, default=16, help="learnable tokens of each prompt (%(default)s)")
    model.add_argument("--fusion", choices=FUSIONS, default="sum", help="(%(default)s; paper: sum)")
    model.add_argument("--orthogonality", choices=ORTHOGONALITY, default="text", help="OCLoss (%(default)s; paper: prompt)")
    model.add_argument("--global_refinement", choices=REFINEMENT, default="threshold", help="(%(default)s; paper: paper)")
    model.add_argument("--presence_loss", choices=PRESENCE_LOSSES, default="multilabel", help="(%(default)s; paper: positive)")
    model.add_argument("--presence_weight", type=float, default=1.0, help="lambda_2 (%(default)s)")
    model.add_argument("--orthogonality_weight", type=float, default=0.1, help="lambda_3 (%(default)s)")
    model.add_argument(
        "--prompt_words", nargs="+", default=[],
        help="start the prompts from these words, one string per prompt, the global one first, in turn; default: random",
    )  # fmt: skip
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--learning_rate", type=float, default=5e-3)
    optimisation.add_argument("--weight_decay", type=float, default=0.0, help="of the prompts (%(default)s)")
    optimisation.add_argument("--warmup_steps", type=int, default=20)
    optimisation.add_argument(
        "--anchor_weight",
        type=float,
        default=0.5,
        help="keep the fused text of a class near its template ensemble (%(default)s; paper: 0)",
    )
    optimisation.add_argument(
        "--gradient_checkpointing", action="store_true", help="less memory in the text encoder, more time"
    )
    add_training_arguments(parser, max_train_steps=600, train_batch_size=16, checkpointing_steps=200, logging_steps=20)
    return parser.parse_args(arguments)


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
    model = MvpSegForSemanticSegmentation.from_clip(
        args.model_name_or_path,
        attention_variant=args.attention_variant,
        keep_residual=args.keep_residual == "yes",
        num_views=args.num_views,
        num_prompt_tokens=args.num_prompt_tokens,
        fusion=args.fusion,
        orthogonality=args.orthogonality,
        global_refinement=args.global_refinement,
        presence_loss=args.presence_loss,
        presence_weight=args.presence_weight,
        orthogonality_weight=args.orthogonality_weight,
    )
    if args.prompt_words:
        words = [args.prompt_words[index % len(args.prompt_words)] for index in range(1 + args.num_views)]
        ids = [processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in words]
        if len(set(map(len, ids))) > 1:
            lengths = ", ".join(f"{text!r}: {len(row)}" for text, row in zip(words, ids, strict=True))
            raise ValueError(f"--prompt_words must have equal numbers of tokens, got {lengths}.")
        model.prompts.start_from_words(model.clip, torch.tensor(ids))
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def open_training_data(args: argparse.Namespace):
    """The images and masks to train on; always the same ones, whatever the seed of the run."""
    return load_source(
        args.dataset_name, args.train_split, config_name=args.dataset_config, image_column=args.image_column,
        mask_column=args.mask_column, classes_file=args.classes_file, reduce_labels=args.reduce_labels,
        limit=args.max_train_samples, seed=0, size=(args.image_size, args.image_size),
    )  # fmt: skip


def crop_settings(args: argparse.Namespace, patch_size: int) -> CropSettings:
    label_size = args.label_cells * (-(-args.image_size // patch_size))
    return CropSettings(args.image_size, args.crops_per_image, label_size=label_size)


class Losses:
    """(model, batch) -> named losses over the seen classes, for the training loop.

    Args:
        names: `input_ids`, `name_ids` and `class_ids` of the seen classes.
        anchors: `(names, dim)`, their template ensembles; with `anchor_weight` the mean direction of a name's views is kept
            near its anchor, as KgCoOp (arXiv 2303.13283) does for unseen classes' sake.
    """

    def __init__(self, names: dict[str, torch.Tensor], anchors: torch.Tensor, anchor_weight: float):
        self.names, self.anchors, self.anchor_weight = names, anchors, anchor_weight

    def __call__(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        outputs = model(**batch, **self.names)
        losses = {**outputs.losses, "loss": outputs.loss}
        if self.anchor_weight:
            fused = fused_embeds(outputs.view_embeds[1:], "renormalised_sum")
            losses["anchor"] = 1 - F.cosine_similarity(fused, self.anchors.to(fused.dtype), dim=-1).mean()
            losses["loss"] = losses["loss"] + self.anchor_weight * losses["anchor"]
        return losses


def make_losses(args: argparse.Namespace, model, processor, split: ZeroShotLabels, device) -> Losses:
    names = processor(class_names=split.seen_names, templates="name").to(device)
    ensemble = processor(class_names=split.seen_names, templates="ensemble").to(device)
    with torch.no_grad():
        anchors = average_templates(model.clip.encode_text(ensemble["input_ids"]), ensemble["name_ids"])
    return Losses(dict(names), anchors, args.anchor_weight)


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
    source = open_training_data(args)
    split = choose_split(source.class_names, args.unseen)
    size = {"shortest_edge": args.image_size, "longest_edge": 4 * args.image_size}
    processor = SegmentationProcessor.from_clip(args.model_name_or_path, templates="name", size=size)
    accelerator = make_accelerator(settings)
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
    model = train(accelerator, settings, model, optimizer, scheduler, SeenCrops(cache, split), collate, losses)

    model.set_classes(split.class_names, processor)
    if accelerator.is_main_process:
        save(model, processor, settings)
    return model


def save(model, processor: SegmentationProcessor, settings: TrainingSettings) -> None:
    """The checkpoint in `<output_dir>/final`, laid out as a Hub repository, and on the Hub where asked for."""
    for part in (model, processor):
        part.save_pretrained(Path(settings.output_dir) / "final")
        if settings.push_to_hub:
            part.push_to_hub(settings.hub_model_id or Path(settings.output_dir).name)


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        run(parse_arguments(arguments))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
