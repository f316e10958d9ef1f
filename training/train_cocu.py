"""Trains a GroupViT on captions and curated concepts (CoCu), or on captions alone (the GroupViT baseline).

Paper: Xing et al., NeurIPS 2023, arXiv 2309.13505, on Xu et al., CVPR 2022, arXiv 2202.11094. Texts of an image: its caption
and M = 3 concepts, each in a random template, padded with the caption; the losses are in `hf_clipseg.clip.contrastive`.
Commands:  python -m training.curate_concepts --output_dir runs/concepts
           START="--start_from_clip model_cards/clip-toyscapes --freeze_vision"
           python -m training.train_cocu --concepts runs/concepts $START --output_dir runs/cocu
           python -m training.train_cocu --concepts runs/concepts $START --sampling none --output_dir runs/groupvit
From noise: --model_config tiny --max_train_steps 2000 --warmup_steps 200 in place of START.
Published: --recipe cocu-cc3m, cocu-cc12m, groupvit-cc3m or groupvit-cc12m: 30 epochs of 4096 pairs a step, 2 of them warm-up,
           a draw without temperature, the 5 best classes. The defaults of the options are for minutes on a laptop.
Deviations: templates are those of CLIP pre-training here (`tokenization.NOUN_TEMPLATES`), not ImageNet's; groups are projected
before they are averaged; the concepts of its archive are none of an image's negatives, drawn or not; encoders can start from
a CLIP (`clip_start`), and the groups of that start can be kept, as LiT (Zhai et al. 2021, arXiv 2111.07991) keeps its image
tower: trained further for minutes at the rate of the rest, they collapse into a few.
"""

import argparse
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from transformers import AutoTokenizer, GroupViTConfig, PreTrainedTokenizerFast
from transformers.hf_argparser import HfArg

from hf_clipseg import CocuConfig, CocuForSemanticSegmentation, SegmentationImageProcessor, SegmentationProcessor
from hf_clipseg.clip.class_files import class_names_of_argument
from hf_clipseg.clip.clip_checkpoint import load_whole
from hf_clipseg.models.configuration_dense_clip import BACKGROUND

from .curation.concept_batches import CaptionsWithConcepts, Collate
from .curation.concept_table import ConceptTable
from .curation.concepts import SAMPLING
from .curation.tokenization import NOUN_TEMPLATES, build_word_tokenizer
from .data.augmentation import normalise
from .data.caption_cache import CachedCaptions
from .data.caption_sources import SelectedRows
from .data.openers import caption_options, open_validation
from .data.sources import load_captions
from .engine.loop import make_accelerator, train
from .engine.optim import make_schedule, parameter_groups
from .engine.publish import check_hub_access, publish
from .engine.run_card import run_card
from .evaluation.validation import MaskValidation
from .pretraining.clip_start import start_from_clip
from .settings.arguments import (
    CaptionArguments,
    CaptionImageArguments,
    ClassArguments,
    CommandParser,
    DataArguments,
    DataSeedArguments,
    MaskArguments,
    MaskValidationArguments,
    PresetArguments,
    ValidationArguments,
    config_arguments,
    config_values,
    run_command,
)
from .settings.training_settings import TrainingSettings

logger = logging.getLogger(__name__)

STARTING_IMAGES = 256  # that tell start_from_clip what CLIP makes of images

# The published model is `{}`: transformers' defaults.
MODEL_CONFIGS: dict[str, dict] = {
    "full": {},
    "tiny": {  # learns to group from noise within minutes, from larger weights than usual
        "vision_config": {
            "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "depths": [2, 0], "num_hidden_layers": 2,
            "num_group_tokens": [12, 0], "num_output_groups": [12, 12], "image_size": 64, "patch_size": 8,
            "initializer_range": 0.07,
        },
        "text_config": {
            "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
            "hidden_act": "gelu", "initializer_range": 0.07,
        },
        "projection_dim": 128, "projection_intermediate_dim": 384,
    },
    "small": {  # of the sizes of model_cards/clip-toyscapes; one stage of groups, because images are 8 x 8 patches
        "vision_config": {
            "hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3, "depths": [3, 0], "num_hidden_layers": 3,
            "num_group_tokens": [24, 0], "num_output_groups": [24, 24], "image_size": 64, "patch_size": 8,
        },
        "text_config": {
            "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 2,
            "hidden_act": "gelu",
        },
        "projection_dim": 128, "projection_intermediate_dim": 384,
    },
}  # fmt: skip


ModelArguments = config_arguments(
    CocuConfig, ("pooling", "top_classes", "background_threshold", "duplicates_are_negatives"), "model; see CocuConfig"
)


@dataclass
class ConceptArguments:
    """What is contrasted beside captions."""

    _argument_group_name = "concepts"

    concepts: str | None = HfArg(
        default=None, help="output folder of curate_concepts; without it captions alone are contrasted"
    )
    sampling: str = HfArg(
        default="clustered",
        metadata={"choices": SAMPLING},
        help="concepts of the archive: by clusters, or the best; none: those of the caption, as GroupViT",
    )
    num_concepts: int = HfArg(default=3, help="M, concepts per image and step")
    temperature: float = HfArg(default=0.1, help="of the draw within a cluster")
    contrast_archive: bool = HfArg(default=False, help="undrawn concepts of its own archive are negatives, as published")


@dataclass
class StartArguments:
    """What training starts from, and how it goes on."""

    _argument_group_name = "start and optimisation"

    model_name_or_path: str | None = HfArg(default=None, help="continue from this CoCu checkpoint instead of starting anew")
    start_from_clip: str | None = HfArg(
        default=None, help="copy encoders and tokenizer of this CLIP, whose sizes --model_config has"
    )
    freeze_vision: bool = HfArg(default=False, help="keep the groups, learn what to call them: locked-image tuning")
    model_config: str = HfArg(default="small", help="'small', 'tiny', 'full' (published) or a GroupViTConfig file")
    tokenizer_name: str | None = HfArg(
        default=None, help="default: the checkpoint's, or a word tokenizer built from the captions"
    )
    max_text_length: int = HfArg(default=32, help="tokens per caption of a tokenizer built here")
    crop_size: int | None = HfArg(default=None, help="side that images are resized to; default: the model's image size")
    learning_rate: float = HfArg(default=1e-3, help="at its peak")
    weight_decay: float = HfArg(default=0.05, help="of matrices")
    warmup_steps: int = HfArg(default=30, help="the learning rate rises linearly")
    gradient_checkpointing: bool = HfArg(default=False, help="less memory, more time")
    cache_dir: str | None = HfArg(default=None, help="folder of the image cache; default: <output_dir>/cache")


@dataclass
class ValidationDataArguments:
    """Scores are never used for a choice but the best checkpoint."""

    _argument_group_name = "validation"

    validation_dataset_name: str | None = HfArg(
        default=None, help="images with masks, which --classes and the options of masks belong to; default: nothing is scored"
    )


GROUPS = (
    PresetArguments, DataArguments, CaptionArguments, CaptionImageArguments, DataSeedArguments, ConceptArguments,
    StartArguments, ModelArguments, ClassArguments, MaskArguments, ValidationDataArguments, ValidationArguments,
    MaskValidationArguments,
    TrainingSettings,
)  # fmt: skip


def build_parser() -> CommandParser:
    parser = CommandParser(GROUPS, __doc__)
    parser.set_defaults(
        max_train_steps=240, train_batch_size=64, max_grad_norm=5.0, checkpointing_steps=250, logging_steps=20,
        validation_limit=100, validation_steps=60, pooling="after_projection",
    )  # fmt: skip
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_for_dataset(arguments, "train_cocu")
    if args.concepts is None and args.sampling != "none" and not args.dry_run:
        parser.error(f"--sampling {args.sampling} needs --concepts, a folder that curate_concepts wrote; or --sampling none")
    return args


def build_tokenizer(args: argparse.Namespace, cache: CachedCaptions, table: ConceptTable | None, class_names: Sequence[str]):
    """The tokenizer that was named, that of the checkpoint, or a new one that knows captions, prompts and class names."""
    named = args.tokenizer_name or args.model_name_or_path or args.start_from_clip
    if named:
        return AutoTokenizer.from_pretrained(named)
    texts = [caption for captions in cache.captions for caption in captions]
    names = [*(table.names() if table else []), *class_names]
    return build_word_tokenizer([*texts, *names, *NOUN_TEMPLATES], max_length=args.max_text_length)


def build_model(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> CocuForSemanticSegmentation:
    """The checkpoint to continue from, or a new model whose text encoder fits `tokenizer`."""
    if args.model_name_or_path:
        return CocuForSemanticSegmentation.from_pretrained(args.model_name_or_path)
    named = MODEL_CONFIGS.get(args.model_config)
    config = json.loads(Path(args.model_config).read_text()) if named is None else named
    text_config = config.get("text_config", {}) | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CocuForSemanticSegmentation(
        CocuConfig(
            clip_config=GroupViTConfig(**config | {"text_config": text_config}),
            **config_values(args, ModelArguments),
        )
    )


def build_processor(model: CocuForSemanticSegmentation, tokenizer: PreTrainedTokenizerFast) -> SegmentationProcessor:
    vision = model.config.clip_config.vision_config
    size = {"shortest_edge": vision.image_size, "longest_edge": 4 * vision.image_size}
    return SegmentationProcessor(SegmentationImageProcessor(size=size, size_divisor=vision.patch_size), tokenizer, "ensemble")


def open_validation_masks(args: argparse.Namespace):
    """Masks of `--validation_dataset_name`, which is another data set than that of the captions; None without one."""
    if args.validation_dataset_name in (None, "none"):
        return None
    of_masks = {
        "dataset_name": args.validation_dataset_name, "dataset_config_name": None, "image_column": None, "streaming": False,
        "validation_split": args.validation_split or "validation",
    }  # fmt: skip
    return open_validation(argparse.Namespace(**vars(args) | of_masks), size=(args.image_size,) * 2)


def classes_to_bake(args: argparse.Namespace, masks) -> list[list[str]]:
    """The classes of the result: those of `--classes`, of the validation masks, or none: then names are given per call.

    Raises:
        ValueError: `--background_threshold` adds a background class that the masks do not have.
    """
    names = class_names_of_argument(args.classes) if args.classes else []
    if masks is not None:
        names = [[name] for name in masks.class_names] if masks.class_synonyms is None else list(masks.class_synonyms)
    if args.background_threshold is None or not names:
        return names
    if names[0][0] != BACKGROUND:
        raise ValueError(
            f"--background_threshold adds a class 0 {BACKGROUND!r}, but class 0 of the masks is {names[0][0]!r}. Leave it out, "
            "or evaluate on masks with background (--validation_dataset_name)."
        )
    return names[1:]


def open_cache(args: argparse.Namespace, table: ConceptTable | None, accelerator: Accelerator) -> CachedCaptions:
    """Decoded images and captions, without what curation could not read; checked against the concepts."""
    source = load_captions(args.dataset_name, args.split, **caption_options(args, args.image_size, args.data_seed, args.limit))
    description = source.description
    if table is not None and table.skipped_rows():
        source = SelectedRows(source, table.skipped_rows())
    with accelerator.main_process_first():
        cache = CachedCaptions(source, args.image_size, args.cache_dir or os.path.join(args.output_dir, "cache"))
    if table is not None:
        table.check(cache.keys, description)
    return cache


def new_model(args: argparse.Namespace, cache: CachedCaptions, tokenizer, table: ConceptTable | None):
    """The model as training starts."""
    model = build_model(args, tokenizer)
    if args.start_from_clip:
        images = torch.from_numpy(np.array(cache.images[:STARTING_IMAGES])).permute(0, 3, 1, 2) / 255
        start_from_clip(model, load_whole(args.start_from_clip), normalise(images), args.seed)
    if args.freeze_vision:
        model.clip.vision_model.requires_grad_(False)
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if table is None:
        model.concept_logit_scale.requires_grad_(False)  # distributed training stumbles over what no loss reaches
    return model


def compute_losses(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    outputs = model(**batch)
    return {**outputs.losses, "loss": outputs.loss}


def run(args: argparse.Namespace) -> CocuForSemanticSegmentation:
    """The whole training; returns the model, and writes it to `<output_dir>/final`."""
    settings = TrainingSettings.from_arguments(args)
    check_hub_access(settings)
    table = ConceptTable(args.concepts) if args.concepts else None
    accelerator = make_accelerator(settings)
    cache = open_cache(args, table, accelerator)
    masks = open_validation_masks(args)
    class_names = classes_to_bake(args, masks)

    tokenizer = build_tokenizer(args, cache, table, [name for names in class_names for name in names])
    model = new_model(args, cache, tokenizer, table)
    processor = build_processor(model, tokenizer)
    labels = [] if masks is None else masks.class_names
    validation = MaskValidation(args, accelerator, processor, masks, labels, class_names)
    optimizer = torch.optim.AdamW(parameter_groups(model, args.learning_rate, args.weight_decay))
    warmup = min(args.warmup_steps, settings.max_train_steps)
    crop_size = args.crop_size or model.config.clip_config.vision_config.image_size
    model = train(
        accelerator, settings, model, optimizer, make_schedule(optimizer, "cosine", warmup, settings.max_train_steps),
        CaptionsWithConcepts(cache, table, args), Collate(tokenizer, crop_size), compute_losses, on_step=validation,
        processor=processor,
        identity={
            "data": cache.description, "concepts": table.names() if table else None, "crop_size": crop_size,
            "freeze_vision": args.freeze_vision, "class_names": class_names,
            **config_values(args, ConceptArguments, leave_out=("concepts",)),
        },
    )  # fmt: skip
    if class_names:
        model.set_classes(class_names, processor)
    if accelerator.is_main_process:
        concepts = "captions alone" if table is None else f"captions and {len(table.names())} concepts curated from them"
        description = f"CoCu, trained on {len(cache)} images with {concepts}; no mask was read."
        card = run_card(
            args, "train_cocu", "CoCu", description, cache.description, validation,
            base_model=args.model_name_or_path or args.start_from_clip,
        )  # fmt: skip
        publish(model, processor, settings, card)
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    run_command(run, parse_arguments, arguments)


if __name__ == "__main__":
    main()
