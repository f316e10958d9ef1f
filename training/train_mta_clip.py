"""Trains MTA-CLIP, its ablations, and the pixel-text baseline, from masks.

Commands:
    python -m training.train_mta_clip --output_dir runs/mta-clip-toyscapes
    python -m training.train_mta_clip --dataset_name my-folder --train_split train --output_dir runs/mine
    accelerate launch -m training.train_mta_clip --preset ade20k --dataset_name HUB_ID \
        --model_name_or_path openai/clip-vit-base-patch16 --mixed_precision bf16 --output_dir runs/mta-clip-ade20k

| preset | crop | steps x images | what it is for | mIoU of peers, single scale |
|---|---|---|---|---|
| toyscapes | 128 x 128 | 3k x 8 | CLIP frozen, its features computed once; measured in the card | |
| ade20k | 512 x 512 | 160k x 16 | 150 classes, labels reduced by one | DenseCLIP ViT-B 50.6, Mask2Former R50 47.2 |
| cityscapes | 512 x 1024 | 90k x 16 | 19 classes as train ids | Mask2Former R50 79.4 |

This repository has not measured the ade20k and cityscapes presets. Under them a step must see 16 images in all: processes x
`--train_batch_size` x `--gradient_accumulation_steps`; the script warns where it does not.
`python -m training.check_dataset NAME` shows what the labels of a data set look like; run it first.
"""

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSemanticSegmentation

from hf_clipseg import (
    MtaClipConfig,
    MtaClipForSemanticSegmentation,
    PixelTextClipConfig,
    PixelTextClipForSemanticSegmentation,
    SegmentationProcessor,
)
from hf_clipseg.clip.text_bank import normalise_class_names, weights_fingerprint
from hf_clipseg.models.mta_clip.configuration_mta_clip import CONTRASTIVE_FORMS
from hf_clipseg.models.mta_clip.mask_text_loss import DivergedError

from .data.feature_cache import CachedFeatures, CropCache, CropSettings
from .data.masked_crops import MaskedCrops, RandomCropSettings, collate
from .data.sources import load_source
from .engine.loop import TrainingSettings, add_training_arguments, make_accelerator, train
from .engine.optim import make_schedule, parameter_groups
from .evaluation.scoring import score

logger = logging.getLogger(__name__)

METHODS = {"mta_clip": MtaClipForSemanticSegmentation, "pixel_text": PixelTextClipForSemanticSegmentation}
MODEL_FIELDS = {
    "mta_clip": (
        "hidden_dim", "num_attention_heads", "finest_scale", "pixel_decoder_layers", "pixel_decoder_feedforward_dim",
        "num_prompts", "num_prompt_tokens", "num_queries", "decoder_layers", "feedforward_dim", "contrastive_form",
        "contrastive_temperature", "contrastive_weight", "no_object_weight", "num_points",
    ),
    "pixel_text": (
        "hidden_dim", "num_attention_heads", "finest_scale", "pixel_decoder_layers", "pixel_decoder_feedforward_dim",
        "num_prompts", "num_prompt_tokens",
    ),
}  # fmt: skip
UNDECAYED = ("query_features", "query_positions", "text_positions", "level_embed", "contexts")

IMAGES_PER_STEP = {"toyscapes": 8, "ade20k": 16, "cityscapes": 16}
PRESETS = {
    "toyscapes": {
        "crop_size": [128, 128], "short_side": 128, "scale": [1.0, 1.5], "max_train_samples": 3000,
        "backbone_factor": 0.0, "crops_per_image": 2, "mixed_precision": "bf16",
        "hidden_dim": 64, "num_attention_heads": 4, "finest_scale": 2, "pixel_decoder_layers": 2,
        "pixel_decoder_feedforward_dim": 128, "num_prompt_tokens": 4, "num_queries": 24, "decoder_layers": 3,
        "feedforward_dim": 128, "num_points": 512, "contrastive_temperature": 0.07,
        "learning_rate": 2e-3, "warmup_steps": 50, "max_train_steps": 3000, "max_grad_norm": 1.0,
        "train_batch_size": 8, "checkpointing_steps": 500,
    },
    "ade20k": {
        "crop_size": [512, 512], "short_side": 512, "reduce_labels": True, "max_train_steps": 160_000,
    },
    "cityscapes": {
        "crop_size": [512, 1024], "short_side": 1024, "max_train_steps": 90_000,
    },
}  # fmt: skip
"""What differs from the defaults of `build_parser`, which are the paper's."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), default="toyscapes", help="defaults of other options (%(default)s)"
    )
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_name", default="toyscapes", help="'toyscapes', a Hub id, or a folder (%(default)s)")
    data.add_argument("--dataset_config", help="configuration of a Hub data set")
    data.add_argument("--train_split", default="train")
    data.add_argument("--validation_split", help="scored every --validation_steps and at the end; default: nothing is")
    data.add_argument("--validation_steps", type=int, default=5000)
    data.add_argument("--max_validation_samples", type=int, default=500)
    data.add_argument("--image_column", help="where it cannot be guessed")
    data.add_argument("--mask_column", help="where it cannot be guessed")
    data.add_argument("--max_train_samples", type=int, help="use so many images; default: all")
    data.add_argument(
        "--classes", help="file with a class per line in the order of the labels, synonyms parted by |; default: the data set's"
    )
    data.add_argument(
        "--reduce_labels", action=argparse.BooleanOptionalAction, default=False, help="label 0 is ignored, the others lose one"
    )
    data.add_argument("--id_map", help="JSON file: label in the mask -> class number, 255 to ignore it")
    crops = parser.add_argument_group("crops")
    crops.add_argument("--crop_size", type=int, nargs=2, default=[512, 512], metavar=("HEIGHT", "WIDTH"))
    crops.add_argument("--short_side", type=int, default=512, help="images are resized to this, times a random scale")
    crops.add_argument("--scale", type=float, nargs=2, default=[0.5, 2.0], help="smallest and largest random scale")
    add_model_arguments(parser)
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--learning_rate", type=float, default=1e-4)
    optimisation.add_argument(
        "--backbone_factor", type=float, default=0.1, help="of the learning rate, for CLIP; 0 freezes it (%(default)s)"
    )
    optimisation.add_argument(
        "--crops_per_image", type=int, default=0,
        help="with a frozen CLIP: compute its features once, for so many fixed square crops per image; 0: random crops, anew",
    )  # fmt: skip
    optimisation.add_argument("--cache_dir", help="where these features are kept; default: in memory")
    optimisation.add_argument(
        "--layer_decay", type=float, default=1.0, help="factor per CLIP block, last to first (%(default)s)"
    )
    optimisation.add_argument("--weight_decay", type=float, default=0.02)
    optimisation.add_argument("--warmup_steps", type=int, default=1500)
    optimisation.add_argument(
        "--gradient_checkpointing", action="store_true", help="less memory in CLIP and decoder, more time"
    )
    add_training_arguments(parser, train_batch_size=16, max_grad_norm=0.01, checkpointing_steps=5000, logging_steps=20)
    return parser


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model; see MtaClipConfig for what each means")
    model.add_argument("--method", choices=sorted(METHODS), default="mta_clip", help="or the pixel-text baseline")
    model.add_argument("--model_name_or_path", default="model_cards/clip-toyscapes", help="any CLIP checkpoint (%(default)s)")
    model.add_argument(
        "--timm_backbone", help="network of timm in place of CLIP's vision transformer, such as resnet50_clip.openai"
    )
    model.add_argument(
        "--initial_checkpoint", help="start from the pyramid and pixel decoder of a trained checkpoint, of either method"
    )
    model.add_argument("--num_prompts", type=int, help="default: 3, and 1 for the baseline; 0: no text (ablation)")
    model.add_argument("--contrastive_form", choices=CONTRASTIVE_FORMS, default="mix")
    defaults = MtaClipConfig()
    for name in MODEL_FIELDS["mta_clip"]:
        if name not in ("num_prompts", "contrastive_form"):
            value = getattr(defaults, name)
            model.add_argument(f"--{name}", type=type(value), default=value, help="(%(default)s)")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    preset = parser.parse_known_args(arguments)[0].preset
    parser.set_defaults(**PRESETS[preset])
    args = parser.parse_args(arguments)
    if args.num_prompts is None:
        config_class = PixelTextClipConfig if args.method == "pixel_text" else MtaClipConfig
        args.num_prompts = config_class().num_prompts
    return args


def open_source(args: argparse.Namespace, split: str, limit: int | None):
    """Images and masks of a split, labels reduced or mapped as asked."""
    id_map = None
    if args.id_map:
        id_map = {int(label): int(number) for label, number in json.loads(Path(args.id_map).read_text()).items()}
    return load_source(
        args.dataset_name, split, config_name=args.dataset_config, image_column=args.image_column,
        mask_column=args.mask_column, classes_file=args.classes, reduce_labels=args.reduce_labels, id_map=id_map,
        limit=limit, seed=0,
    )  # fmt: skip


def choose_class_names(args: argparse.Namespace, source) -> list[list[str]]:
    """Every class with its synonyms, which `|` parts in a file."""
    if source.class_names is None:
        raise ValueError(
            f"{args.dataset_name} names no classes. Pass --classes with a file that has one name per line, in the order of the "
            "labels (after --reduce_labels or --id_map)."
        )
    return normalise_class_names(source.class_synonyms)


def build_model(args: argparse.Namespace, processor: SegmentationProcessor, class_names: list[list[str]]):
    fields = {name: getattr(args, name) for name in (*MODEL_FIELDS[args.method], "timm_backbone")}
    model = METHODS[args.method].from_clip(args.model_name_or_path, **fields)
    model.set_classes(class_names, processor)
    if args.initial_checkpoint:
        trained = AutoModelForSemanticSegmentation.from_pretrained(args.initial_checkpoint)
        for name in ("pyramid", "pixel_decoder"):
            getattr(model, name).load_state_dict(getattr(trained, name).state_dict())
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if args.backbone_factor == 0:
        if args.timm_backbone:
            raise ValueError(
                "A network of timm is trained, not frozen: --backbone_factor must be above 0 with --timm_backbone."
            )
        model.clip.requires_grad_(False)
    return model.train()  # freezes what is never learned, so before the optimiser is made


def make_dataset(args: argparse.Namespace, source, model, processor) -> torch.utils.data.Dataset:
    """Random crops of images, or the features of fixed ones."""
    if not args.crops_per_image:
        crops = RandomCropSettings(*args.crop_size, short_side=args.short_side, scale=tuple(args.scale))
        return MaskedCrops(source, crops, seed=args.seed, keep=args.dataset_name == "toyscapes")
    if args.backbone_factor or args.crop_size != [args.short_side] * 2:
        raise ValueError(
            f"--crops_per_image needs a frozen CLIP, --backbone_factor 0 (got {args.backbone_factor}), and square crops of the "
            f"size of --short_side (got {args.crop_size} and {args.short_side})."
        )
    crops = CropSettings(args.short_side, args.crops_per_image, max_scale=args.scale[1])
    identity = {"weights": weights_fingerprint(model.clip.vision_model), "blocks": sorted(set(model.config.feature_layers))}
    model.clip.eval()

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return model.encode_blocks(pixels.to(model.device))[0]

    return CachedFeatures(CropCache(source, processor, crops, encode, identity, args.cache_dir))


def make_processor(args: argparse.Namespace) -> SegmentationProcessor:
    """Inference sees images at the scale that training is centred on."""
    size = {"shortest_edge": args.short_side, "longest_edge": 4 * args.short_side}
    return SegmentationProcessor.from_clip(args.model_name_or_path, templates="name", size=size)


def learning_rate_factors(args: argparse.Namespace, num_blocks: int) -> dict[str, float]:
    """CLIP learns more slowly than what is new, and its first blocks more slowly than its last."""
    if args.backbone_factor == 0:
        return {}
    if args.timm_backbone:
        return {"pyramid": args.backbone_factor}
    factors = {"clip": args.backbone_factor * args.layer_decay**num_blocks}  # embeddings lie below the first block
    for block in range(num_blocks):
        depth = args.layer_decay ** (num_blocks - 1 - block)
        factors[f"clip.vision_model.encoder.layers.{block}"] = args.backbone_factor * depth
    return factors


def warn_about_batch(args: argparse.Namespace, processes: int) -> None:
    images, expected = processes * args.train_batch_size * args.gradient_accumulation_steps, IMAGES_PER_STEP[args.preset]
    if images != expected:
        logger.warning(
            "A step sees %d images (%d processes x %d x %d accumulated); the %s preset and its learning rate are for %d.",
            images, processes, args.train_batch_size, args.gradient_accumulation_steps, args.preset, expected,
        )  # fmt: skip


class Losses:
    """(model, batch) -> named losses. Predictions that are not finite become a loss that the loop reports or skips."""

    def __init__(self, skip_diverged: bool):
        self.skip_diverged = skip_diverged

    def __call__(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        try:
            outputs = model(**batch)
        except DivergedError:
            if not self.skip_diverged:
                raise
            return {"loss": torch.full((), float("nan"), device=batch["labels"].device, requires_grad=True)}
        return {"loss": outputs.loss, **outputs.losses}


def validation(args: argparse.Namespace, accelerator, processor, num_classes: int):
    """A callback for the loop that scores the validation split now and then; None without one."""
    if args.validation_split is None:
        return None
    source = open_source(args, args.validation_split, args.max_validation_samples)

    def validate(step: int, model: torch.nn.Module) -> dict[str, float] | None:
        if step % args.validation_steps and step != args.max_train_steps:
            return None
        figures = score(model, processor, source, None, num_classes, accelerator).figures(range(num_classes))
        return {name: figures[name] for name in ("mIoU", "pixel_accuracy", "boundary_f") if figures[name] is not None}

    return validate


def use_eager_attention(model) -> None:
    """On a CPU, the backward pass of eager attention is quicker than that of fused attention."""
    for part in (model.clip.vision_model, model.clip.text_model):
        part.set_attn_implementation("eager")
    model.set_attn_implementation({"": "eager"})


def run(args: argparse.Namespace):
    """The whole training; returns the model, which is also in `<output_dir>/final`."""
    settings = TrainingSettings.from_arguments(args)
    accelerator = make_accelerator(settings)
    warn_about_batch(args, accelerator.num_processes)
    source = open_source(args, args.train_split, args.max_train_samples)
    class_names = choose_class_names(args, source)
    processor = make_processor(args)
    model = build_model(args, processor, class_names)
    if accelerator.device.type == "cpu" and args.timm_backbone is None:  # convolutions take the time otherwise
        use_eager_attention(model)
    logger.info("%d images, %d classes: %s", len(source), len(class_names), ", ".join(names[0] for names in class_names))

    model.to(accelerator.device)
    with accelerator.main_process_first():
        dataset = make_dataset(args, source, model, processor)
    factors = learning_rate_factors(args, model.config.clip_config.vision_config.num_hidden_layers)
    optimizer = torch.optim.AdamW(parameter_groups(model, args.learning_rate, args.weight_decay, factors, UNDECAYED))
    scheduler = make_schedule(optimizer, "poly", min(args.warmup_steps, args.max_train_steps), args.max_train_steps)
    model = train(
        accelerator, settings, model, optimizer, scheduler, dataset, collate,
        compute_losses=Losses(settings.on_nonfinite_loss == "skip"),
        on_step=validation(args, accelerator, processor, len(class_names)),
    )  # fmt: skip
    if accelerator.is_main_process:
        save(model, processor, settings)
    return model


def save(model, processor: SegmentationProcessor, settings: TrainingSettings) -> None:
    """The checkpoint in `<output_dir>/final`, laid out as a Hub repository, and on the Hub where asked for."""
    final = Path(settings.output_dir) / "final"
    partial = final.with_name(".final.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part in (model, processor):
        part.save_pretrained(partial)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    if settings.push_to_hub:
        for part in (model, processor):
            part.push_to_hub(settings.hub_model_id or Path(settings.output_dir).name)


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        run(parse_arguments(arguments))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
