"""Trains MTA-CLIP, its ablations, and the pixel-text baseline, from masks.

Commands:
    python -m training.train_mta_clip --output_dir runs/mta-clip-toyscapes
    python -m training.train_mta_clip --dataset_name my-folder --model_name_or_path openai/clip-vit-base-patch16 \
        --validation_fraction 0.1 --output_dir runs/mine
    accelerate launch -m training.train_mta_clip --preset ade20k --dataset_name HUB_ID \
        --model_name_or_path openai/clip-vit-base-patch16 --output_dir runs/mta-clip-ade20k
    accelerate launch --num_processes 8 -m training.train_mta_clip --recipe mta-clip-ade20k \
        --dataset_name ADEChallengeData2016 --output_dir runs/mta-clip-ade20k      # as the released code has it

    python -m training.train_mta_clip --preset photos --dataset_name my-folder --validation_fraction 0.1 \
        --model_name_or_path openai/clip-vit-base-patch16 --output_dir runs/mine

Without `--preset` the options are the paper's (`paper`), or on a machine without an accelerator those of `cpu`; `toyscapes` is
the preset of the data set of that name. With `--vision_backbone` another encoder reads the images, which may have seen more
photographs than your CLIP, and the texts stay CLIP's:

    python -m training.train_mta_clip --dataset_name my-folder --validation_fraction 0.1 \
        --vision_backbone microsoft/resnet-50 --output_dir runs/mine

| preset | crop | steps x images | what it is for | mIoU of peers, single scale |
|---|---|---|---|---|
| photos | 384 x 384 | 2k x 8 | some hundred photographs of your own; what it sets: `settings/photo_presets.py` | |
| cpu | 384 x 384 | 600 x 4 | the same in minutes on one core, `--vision_backbone` frozen: `docs/photographs.md` | |
| toyscapes | 128 x 128 | 3k x 8 | CLIP frozen, its features computed once; measured in the card | |
| ade20k | 512 x 512 | 160k x 16 | 150 classes, labels reduced by one | DenseCLIP ViT-B 50.6, Mask2Former R50 47.2 |
| cityscapes | 512 x 1024 | 90k x 16 | 19 classes as train ids | Mask2Former R50 79.4 |

This repository has not measured the ade20k and cityscapes presets. Under them a step must see 16 images in all: processes x
`--train_batch_size` x `--gradient_accumulation_steps`; the script warns where it does not.
`python -m training.check_dataset NAME` shows what the labels of a data set look like; run it first.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForSemanticSegmentation
from transformers.hf_argparser import HfArg

from hf_clipseg import (
    MtaClipConfig,
    MtaClipForSemanticSegmentation,
    PixelTextClipConfig,
    PixelTextClipForSemanticSegmentation,
    SegmentationProcessor,
)
from hf_clipseg.clip.text_bank import normalise_class_names
from hf_clipseg.models.mta_clip.mask_text_loss import DivergedError

from .data.crops_or_features import make_dataset
from .data.masked_crops import collate
from .data.openers import open_masks, open_validation
from .engine.loop import make_accelerator, train
from .engine.lora import add_lora, without_lora
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
    ValidationArguments,
    config_arguments,
    config_values,
    run_command,
)
from .settings.crop_arguments import CropArguments, OptimisationArguments
from .settings.dataset_defaults import CLIP, CLIP_ON_CPU, DRAWN_CLIP_ON_CPU, FROZEN_ON_CPU, warn_of_drawn_clip
from .settings.dataset_defaults import MTA_CLIP_PRESETS as PRESETS
from .settings.training_settings import TrainingSettings

logger = logging.getLogger(__name__)

METHOD_NAMES = {"mta_clip": "MTA-CLIP", "pixel_text": "Pixel-text CLIP"}
METHODS = {"mta_clip": MtaClipForSemanticSegmentation, "pixel_text": PixelTextClipForSemanticSegmentation}
SHARED_FIELDS = (
    "hidden_dim", "num_attention_heads", "finest_scale", "pixel_decoder_layers", "pixel_decoder_feedforward_dim",
    "num_prompt_tokens", "direct_features",
)  # fmt: skip
DECODER_FIELDS = (
    "num_queries", "decoder_layers", "feedforward_dim", "normalise_texts", "contrastive_form", "contrastive_temperature",
    "contrastive_weight",
    "no_object_weight", "num_points",
)  # fmt: skip
MODEL_FIELDS = {"mta_clip": (*SHARED_FIELDS, *DECODER_FIELDS), "pixel_text": SHARED_FIELDS}
ModelArguments = config_arguments(MtaClipConfig, MODEL_FIELDS["mta_clip"], "model; see MtaClipConfig")
UNDECAYED = ("query_features", "query_positions", "text_positions", "level_embed", "contexts", "class_offsets")


@dataclass
class MethodArguments:
    """What is trained, and from where."""

    _argument_group_name = "method"

    preset: str | None = HfArg(
        default=None, metadata={"choices": sorted(PRESETS)}, help="defaults of other options; default: those of the paper"
    )
    method: str = HfArg(default="mta_clip", metadata={"choices": sorted(METHODS)}, help="or the pixel-text baseline")
    model_name_or_path: str = HfArg(default=CLIP, help="any CLIP checkpoint")
    vision_backbone: str | None = HfArg(
        default=None,
        help="an encoder that reads the images in place of CLIP's: Hub id or folder of any backbone of transformers, "
        "timm/NAME, or a model with maps as hidden states, such as MobileNetV2",
    )
    num_prompts: int | None = HfArg(default=None, help="default: 3, and 1 for the baseline; 0: no text (ablation)")
    initial_checkpoint: str | None = HfArg(
        default=None, help="start from the pyramid and pixel decoder of a trained checkpoint, of either method"
    )


GROUPS = (
    MethodArguments, DataArguments, ClassArguments, MaskArguments, ValidationArguments, MaskValidationArguments, CropArguments,
    ModelArguments, OptimisationArguments, TrainingSettings,
)  # fmt: skip


def build_parser() -> CommandParser:
    parser = CommandParser(GROUPS, __doc__)
    parser.set_defaults(max_grad_norm=0.01, checkpointing_steps=5000, logging_steps=20, validation_steps=5000)
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_for_dataset(arguments, "train_mta_clip")
    if args.preset is None and args.recipe is None and not torch.accelerator.is_available():
        parser.set_defaults(preset="cpu")
        parser.apply_preset("train_mta_clip", arguments)
        args = parser.parse_args(arguments)
    if args.preset == "cpu":
        of_clip = DRAWN_CLIP_ON_CPU if args.model_name_or_path == CLIP else CLIP_ON_CPU
        parser.set_defaults(**(of_clip if args.vision_backbone is None else FROZEN_ON_CPU))
        args = parser.parse_args(arguments)
    for name in ("crop_size", "scale"):
        if len(getattr(args, name)) != 2:
            parser.error(f"--{name} takes two numbers, got {getattr(args, name)}")
    if args.num_prompts is None:
        config_class = PixelTextClipConfig if args.method == "pixel_text" else MtaClipConfig
        args.num_prompts = config_class().num_prompts
    return args


def choose_class_names(args: argparse.Namespace, source) -> list[list[str]]:
    """Every class with its synonyms, which `|` parts in a file."""
    if source.class_names is None:
        raise ValueError(
            f"{args.dataset_name} names no classes. Put classes.txt into the folder, one name per line in the order of the "
            "labels (after --reduce_labels or --id_map), or pass --classes."
        )
    return normalise_class_names(source.class_synonyms)


def build_model(args: argparse.Namespace, processor: SegmentationProcessor, class_names: list[list[str]]):
    fields = {name: getattr(args, name) for name in (*MODEL_FIELDS[args.method], "num_prompts")}
    fields["learned_class_texts"] = learn_unknown_names(args, processor, class_names)
    model = METHODS[args.method].from_clip(args.model_name_or_path, vision_backbone=args.vision_backbone, **fields)
    model.set_classes(class_names, processor)
    if args.initial_checkpoint:
        trained = AutoModelForSemanticSegmentation.from_pretrained(args.initial_checkpoint)
        for name in ("pyramid", "pixel_decoder"):
            getattr(model, name).load_state_dict(getattr(trained, name).state_dict())
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if args.backbone_factor == 0:
        vision_encoder(model).requires_grad_(False)
    if args.lora_rank:
        add_lora(vision_encoder(model), args.lora_rank)
    return model.train()  # freezes what is never learned, so before the optimiser is made


def vision_encoder(model) -> torch.nn.Module:
    return model.pyramid.network if model.config.vision_backbone is not None else model.clip.vision_model


def learn_unknown_names(args: argparse.Namespace, processor: SegmentationProcessor, class_names: list[list[str]]) -> bool:
    """Whether classes need texts that are learned, because the tokenizer does not know what they are called; says so."""
    unknown = processor.unknown_words(class_names)
    if not unknown or not args.num_prompts:
        return False
    logger.warning(
        "The CLIP in %s does not know the words %s: each class gets a text that is moved by what it learns from the masks.",
        args.model_name_or_path, ", ".join(unknown[:12]) + (f" and {len(unknown) - 12} more" if len(unknown) > 12 else ""),
    )  # fmt: skip
    return True


def make_processor(args: argparse.Namespace) -> SegmentationProcessor:
    """Inference sees images at the scale that training is centred on."""
    size = {"shortest_edge": args.short_side, "longest_edge": 4 * args.short_side}
    return SegmentationProcessor.from_clip(
        args.model_name_or_path, templates="name", size=size, vision_backbone=args.vision_backbone
    )


def learning_rate_factors(args: argparse.Namespace, num_blocks: int) -> dict[str, float]:
    """CLIP learns more slowly than what is new, and its first blocks more slowly than its last."""
    if args.backbone_factor == 0 or args.lora_rank:
        return {}
    if args.vision_backbone:
        if args.layer_decay != 1:
            logger.info("--layer_decay is for the blocks of CLIP: %s learns at one rate", args.vision_backbone)
        return {"pyramid.network": args.backbone_factor}
    factors = {"clip": args.backbone_factor * args.layer_decay**num_blocks}  # embeddings lie below the first block
    for block in range(num_blocks):
        depth = args.layer_decay ** (num_blocks - 1 - block)
        factors[f"clip.vision_model.encoder.layers.{block}"] = args.backbone_factor * depth
    return factors


def announce_preset(args: argparse.Namespace) -> None:
    """Says that a machine without an accelerator gets smaller defaults than the paper's."""
    if args.preset == "cpu":
        logger.info(
            "preset cpu: %s with a small decoder (%d channels), crops of %s, %d steps of %d images, vision encoder %s. "
            "--method and --max_train_steps choose otherwise; --preset photos is for a GPU, --preset paper has the paper's "
            "sizes (22 M parameters).",
            METHOD_NAMES[args.method], args.hidden_dim, " x ".join(map(str, args.crop_size)), args.max_train_steps,
            args.train_batch_size,
            f"trained at {args.backbone_factor} of the rate" if args.backbone_factor else "frozen",
        )  # fmt: skip


def warn_about_batch(args: argparse.Namespace, processes: int) -> None:
    images = processes * args.train_batch_size * args.gradient_accumulation_steps
    expected = PRESETS.get(args.preset, {}).get("train_batch_size", TrainingSettings.train_batch_size)
    if args.preset not in (None, "cpu") and images != expected:
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


def use_eager_attention(model) -> None:
    """On a CPU, the backward pass of eager attention is quicker than that of fused attention; the forward pass is slower."""
    for part in filter(None, (model.clip.vision_model, model.clip.text_model)):
        if part is model.clip.text_model or any(parameter.requires_grad for parameter in part.parameters()):
            part.set_attn_implementation("eager")
    model.config._attn_implementation = {
        "": "eager",
        "clip_config": "eager",
    }  # the setter for models trips over encoders that were taken out


def run(args: argparse.Namespace):
    """The whole training; returns the model, which is also in `<output_dir>/final`."""
    settings = TrainingSettings.from_arguments(args)
    check_hub_access(settings)
    warn_of_drawn_clip(args)
    accelerator = make_accelerator(settings)
    announce_preset(args)
    warn_about_batch(args, accelerator.num_processes)
    source = open_masks(args, limit=args.limit)
    class_names = choose_class_names(args, source)
    labels = [names[0] for names in class_names]
    processor = make_processor(args)
    validation = MaskValidation(args, accelerator, processor, open_validation(args), labels)
    model = build_model(args, processor, class_names)
    if accelerator.device.type == "cpu":
        use_eager_attention(model)
    logger.info("%d images, %d classes: %s", len(source), len(class_names), ", ".join(labels))

    model.to(accelerator.device)
    with accelerator.main_process_first():
        dataset = make_dataset(args, source, model, vision_encoder(model), processor)
    undecayed = [name for name in UNDECAYED if name != "contexts" or not args.decay_contexts]
    factors = learning_rate_factors(args, model.config.clip_config.vision_config.num_hidden_layers)
    optimizer = torch.optim.AdamW(parameter_groups(model, args.learning_rate, args.weight_decay, factors, undecayed))
    scheduler = make_schedule(optimizer, "poly", min(args.warmup_steps, args.max_train_steps), args.max_train_steps)
    model = train(
        accelerator, settings, model, optimizer, scheduler, dataset, collate,
        compute_losses=Losses(settings.on_nonfinite_loss == "skip"), on_step=validation, processor=processor,
        identity={
            "data": source.description, "class_names": class_names, "initial_checkpoint": args.initial_checkpoint,
            "lora_rank": args.lora_rank,
            **config_values(args, CropArguments, leave_out=("cache_dir", "keep_images")),
        },
    )  # fmt: skip
    model = without_lora(model)
    if accelerator.is_main_process:
        description = f"{type(model).__name__}, trained on {len(source)} images with masks of {len(labels)} classes."
        card = run_card(
            args, "train_mta_clip", METHOD_NAMES[args.method], description, source.description, validation,
            limits=["It knows the classes it was trained for and no others."], base_model=args.model_name_or_path,
        )  # fmt: skip
        publish(model, processor, settings, card)
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    run_command(run, parse_arguments, arguments)


if __name__ == "__main__":
    main()
