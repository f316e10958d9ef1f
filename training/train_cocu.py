"""Trains a GroupViT on captions and curated concepts (CoCu), or on captions alone (the GroupViT baseline).

Paper: Xing et al., NeurIPS 2023, arXiv 2309.13505, on Xu et al., CVPR 2022, arXiv 2202.11094. Texts of an image: its caption
and M = 3 concepts, each in a random template, padded with the caption; the losses are in `hf_clipseg.clip.contrastive`.
Commands:  python -m training.curate_concepts --output_dir runs/concepts
           START="--start_from_clip model_cards/clip-toyscapes --freeze_vision"
           python -m training.train_cocu --concepts runs/concepts $START --output_dir runs/cocu
           python -m training.train_cocu --concepts runs/concepts $START --sampling none --output_dir runs/groupvit
From noise: --model_config tiny --max_train_steps 2000 --warmup_steps 200 in place of START.
Published: --model_config full --image_size 224 --learning_rate 1.6e-3 --train_batch_size 4096 over all processes, 30 epochs,
           --pooling before_projection --contrast_archive --duplicates_are_negatives.
Deviations: templates are those of CLIP pre-training here (`tokenization.NOUN_TEMPLATES`), not ImageNet's; groups are projected
before they are averaged; the concepts of its archive are none of an image's negatives, drawn or not; encoders can start from
a CLIP (`clip_start`), and the groups of that start can be kept, as LiT (Zhai et al. 2021, arXiv 2111.07991) keeps its image
tower: trained further for minutes at the rate of the rest, they collapse into a few.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import AutoTokenizer, CLIPModel, GroupViTConfig, PreTrainedTokenizerFast

from hf_clipseg import CocuConfig, CocuForSemanticSegmentation, SegmentationImageProcessor, SegmentationProcessor
from hf_clipseg.evaluation.metrics import summarise
from hf_clipseg.models.cocu.configuration_cocu import BACKGROUND, POOLINGS

from .curation.concept_table import ConceptTable
from .curation.concepts import SAMPLING, random_for
from .curation.tokenization import NOUN_TEMPLATES, build_word_tokenizer
from .data.augmentation import colour_jitter, normalise, resize
from .data.caption_cache import CachedCaptions
from .data.caption_sources import SelectedRows, add_source_arguments, open_captions, source_options
from .data.sources import load_source
from .engine.loop import SampleKey, TrainingSettings, add_training_arguments, make_accelerator, train
from .engine.optim import make_schedule, parameter_groups
from .evaluation.scoring import score
from .pretraining.clip_start import start_from_clip

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


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source_arguments(parser)
    parser.add_argument("--cache_dir", help="folder of the image cache; default: <output_dir>/cache")
    concepts = parser.add_argument_group("concepts")
    concepts.add_argument("--concepts", help="output folder of curate_concepts; without it captions alone are contrasted")
    concepts.add_argument(
        "--sampling", choices=SAMPLING, default="clustered",
        help="concepts of the archive: by clusters, or the best; none: those of the caption, as GroupViT (%(default)s)",
    )  # fmt: skip
    concepts.add_argument("--num_concepts", type=int, default=3, help="M, concepts per image and step (%(default)s)")
    concepts.add_argument("--temperature", type=float, default=0.1, help="of the draw within a cluster (%(default)s)")
    concepts.add_argument(
        "--contrast_archive", action="store_true", help="undrawn concepts of its own archive are negatives, as published"
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model_name_or_path", help="continue from this CoCu checkpoint instead of starting anew")
    model.add_argument(
        "--start_from_clip", metavar="CLIP", help="copy encoders and tokenizer of this CLIP, whose sizes --model_config has"
    )
    model.add_argument(
        "--freeze_vision", action="store_true", help="keep the groups, learn what to call them: locked-image tuning"
    )
    model.add_argument("--model_config", default="small", help="'small', 'tiny', 'full' (published) or a GroupViTConfig file")
    model.add_argument("--tokenizer_name", help="default: the checkpoint's, or a word tokenizer built from the captions")
    model.add_argument("--max_text_length", type=int, default=32, help="tokens per caption of a tokenizer built here")
    model.add_argument("--pooling", choices=POOLINGS, default="after_projection", help="see CocuConfig (%(default)s)")
    model.add_argument("--top_classes", type=int, default=8, help="classes that one image may show (%(default)s)")
    model.add_argument("--background_threshold", type=float, help="predict background below this; default: no background class")
    model.add_argument("--duplicates_are_negatives", action="store_true", help="contrast equal concepts, as the released code")
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--crop_size", type=int, help="side that images are resized to; default: the model's image size")
    optimisation.add_argument("--learning_rate", type=float, default=1e-3)
    optimisation.add_argument("--weight_decay", type=float, default=0.05)
    optimisation.add_argument("--warmup_steps", type=int, default=30)
    optimisation.add_argument("--gradient_checkpointing", action="store_true", help="less memory, more time")
    evaluation = parser.add_argument_group("evaluation (never used for a choice)")
    evaluation.add_argument("--eval_dataset", default="toyscapes", help="images with masks; 'none' to do without (%(default)s)")
    evaluation.add_argument("--eval_split", default="validation")
    evaluation.add_argument("--eval_samples", type=int, default=100)
    evaluation.add_argument("--eval_steps", type=int, default=60)
    add_training_arguments(
        parser, max_train_steps=240, train_batch_size=64, mixed_precision="bf16", max_grad_norm=5.0, checkpointing_steps=250,
        logging_steps=20,
    )  # fmt: skip
    args = parser.parse_args(arguments)
    if args.concepts is None and args.sampling != "none":
        parser.error(f"--sampling {args.sampling} needs --concepts, a folder that curate_concepts wrote; or --sampling none")
    return args


class CaptionsWithConcepts(torch.utils.data.Dataset):
    """Samples with the texts of one step; indexed with a `SampleKey`, and drawn from (seed, epoch, key) alone.

    Args:
        table: None leaves concepts out.
    """

    def __init__(self, cache: CachedCaptions, table: ConceptTable | None, args: argparse.Namespace):
        self.cache, self.table, self.args = cache, table, args
        self.archive_size = table.longest_archive() if table else 0  # the same on all processes

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        name = self.cache.keys[key.index]
        random = random_for(f"{name} {key.epoch}", self.args.seed)
        captions = self.cache.captions[key.index] or [""]
        caption = captions[random.integers(len(captions))]
        image = torch.from_numpy(np.array(self.cache.images[key.index])).permute(2, 0, 1)
        sample = {
            "image": image.flip(2) if random.random() < 0.5 else image,
            "jitter": torch.from_numpy(random.uniform(-0.2, 0.2, 3)).float(),
            "caption": " ".join(caption.split()),
        }
        if self.table is not None:
            names = self.table.sample(name, self.args.sampling, self.args.num_concepts, self.args.temperature, random)
            missing = self.args.num_concepts - len(names)
            templates = [NOUN_TEMPLATES[random.integers(len(NOUN_TEMPLATES))] for _ in names]
            prompts = [template.format(concept) for template, concept in zip(templates, names, strict=True)]
            sample["concepts"] = prompts + missing * [sample["caption"]]
            sample["concept_ids"] = [self.table.id_of(concept) for concept in names] + missing * [-1]
            if not self.args.contrast_archive:
                archive = [self.table.id_of(concept) for concept in self.table.archive(name, self.args.sampling)]
                sample["archive_ids"] = archive + (self.archive_size - len(archive)) * [-1]
        return sample


class Collate:
    """List of samples -> arguments of the model."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, size: int):
        self.tokenizer, self.size = tokenizer, size

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images = resize(torch.stack([sample["image"] for sample in samples]).float() / 255, self.size)
        images = colour_jitter(images, torch.stack([sample["jitter"] for sample in samples]))
        batch = {"pixel_values": normalise(images), "caption_input_ids": self.tokens([sample["caption"] for sample in samples])}
        if "concepts" in samples[0]:
            concepts = self.tokens([text for sample in samples for text in sample["concepts"]])
            batch["concept_input_ids"] = concepts.unflatten(0, (len(samples), -1))
        for name in ("concept_ids", "archive_ids"):
            if name in samples[0]:
                batch[name] = torch.tensor([sample[name] for sample in samples])
        return batch

    def tokens(self, texts: list[str]) -> torch.Tensor:
        """Concepts are shorter than captions, so each kind is padded by itself."""
        return self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")["input_ids"]


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
            top_classes=args.top_classes,
            background_threshold=args.background_threshold,
            pooling=args.pooling,
            duplicates_are_negatives=args.duplicates_are_negatives,
        )
    )


def build_processor(model: CocuForSemanticSegmentation, tokenizer: PreTrainedTokenizerFast) -> SegmentationProcessor:
    vision = model.config.clip_config.vision_config
    size = {"shortest_edge": vision.image_size, "longest_edge": 4 * vision.image_size}
    return SegmentationProcessor(SegmentationImageProcessor(size=size, size_divisor=vision.patch_size), tokenizer, "ensemble")


class Evaluation:
    """mIoU on images with masks every `--eval_steps` steps."""

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator):
        self.steps, self.accelerator = args.eval_steps, accelerator
        options = {"limit": args.eval_samples}
        if args.eval_dataset == "toyscapes":
            options["size"] = (args.image_size,) * 2
        self.source = load_source(args.eval_dataset, args.eval_split, **options)
        self.num_classes = len(self.source.class_names)
        self.class_names = list(self.source.class_names)
        if args.background_threshold is not None:
            if self.class_names[0] != BACKGROUND:
                raise ValueError(
                    f"--background_threshold adds a class 0 {BACKGROUND!r}, but class 0 of the masks is {self.class_names[0]!r}"
                    ". Leave it out, or evaluate on masks with background (--eval_dataset)."
                )
            del self.class_names[0]

    def __call__(self, model: CocuForSemanticSegmentation, processor: SegmentationProcessor) -> dict[str, float]:
        model.eval()
        scores = score(model, processor, self.source, self.class_names, self.num_classes, self.accelerator)
        figures = summarise(scores.confusions["mIoU"])
        return {"mIoU": figures["mIoU"], "pixel_accuracy": figures["pixel_accuracy"]}


def open_cache(args: argparse.Namespace, table: ConceptTable | None, accelerator: Accelerator) -> CachedCaptions:
    """Decoded images and captions, without what curation could not read; checked against the concepts."""
    source = open_captions(args.dataset_name, args.train_split, **source_options(args))
    description = source.description
    if table is not None and table.skipped_rows():
        source = SelectedRows(source, table.skipped_rows())
    with accelerator.main_process_first():
        cache = CachedCaptions(source, args.image_size, args.cache_dir or os.path.join(args.output_dir, "cache"))
    if table is not None:
        table.check(cache.keys, description)
    return cache


def run(args: argparse.Namespace) -> CocuForSemanticSegmentation:
    """The whole training; returns the model, and writes it to `<output_dir>/final`."""
    settings = TrainingSettings.from_arguments(args)
    table = ConceptTable(args.concepts) if args.concepts else None
    accelerator = make_accelerator(settings)
    cache = open_cache(args, table, accelerator)
    evaluation = None if args.eval_dataset == "none" else Evaluation(args, accelerator)

    tokenizer = build_tokenizer(args, cache, table, evaluation.class_names if evaluation else ())
    model = build_model(args, tokenizer)
    if args.start_from_clip:
        images = torch.from_numpy(np.array(cache.images[:STARTING_IMAGES])).permute(0, 3, 1, 2) / 255
        start_from_clip(model, CLIPModel.from_pretrained(args.start_from_clip), normalise(images), args.seed)
    if args.freeze_vision:
        model.clip.vision_model.requires_grad_(False)
    processor = build_processor(model, tokenizer)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if table is None:
        model.concept_logit_scale.requires_grad_(False)  # distributed training stumbles over what no loss reaches

    optimizer = torch.optim.AdamW(parameter_groups(model, args.learning_rate, args.weight_decay))
    warmup = min(args.warmup_steps, settings.max_train_steps)
    scheduler = make_schedule(optimizer, "cosine", warmup, settings.max_train_steps)

    def compute_losses(trained: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = trained(**batch)
        return {**outputs.losses, "loss": outputs.loss}

    def evaluate(step: int, trained: CocuForSemanticSegmentation) -> dict[str, float] | None:
        due = evaluation is not None and (step % args.eval_steps == 0 or step == settings.max_train_steps)
        return evaluation(trained, processor) if due else None

    model = train(
        accelerator, settings, model, optimizer, scheduler,
        dataset=CaptionsWithConcepts(cache, table, args),
        collate=Collate(tokenizer, args.crop_size or model.config.clip_config.vision_config.image_size),
        compute_losses=compute_losses,
        on_step=evaluate,
    )  # fmt: skip
    if evaluation is not None:
        model.set_classes(evaluation.class_names, processor)
    if accelerator.is_main_process:
        save(model, processor, settings)
    return model


def save(model: CocuForSemanticSegmentation, processor: SegmentationProcessor, settings: TrainingSettings) -> None:
    """The checkpoint in `<output_dir>/final`, laid out as a Hub repository, and on the Hub where asked for."""
    for part in (model, processor):
        part.save_pretrained(Path(settings.output_dir) / "final")
        if settings.push_to_hub:
            part.push_to_hub(settings.hub_model_id or Path(settings.output_dir).name)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:
        run(args)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
