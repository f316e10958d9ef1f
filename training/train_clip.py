"""Pre-trains a CLIP on image-caption pairs, in two stages the shipped `model_cards/clip-toyscapes`. No mask is read.

Commands: export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2000000000 OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=1
          torchrun --standalone --nproc_per_node 2 -m training.train_clip --output_dir runs/clip-stage1
          torchrun --standalone --nproc_per_node 2 -m training.train_clip --output_dir runs/clip-stage2 --seed 1 \
              --model_name_or_path runs/clip-stage1/final --explained_weight 0 --assigned_weight 4 --image_sizes 64 128 \
              --max_train_steps 900 --warmup_steps 50 --learning_rate 5e-4
Hardware: 2 CPU cores with AVX512-BF16, one process on each (`accelerate launch --cpu` starts only one). The MALLOC settings
          keep glibc from giving memory back after every step.
Runtime:  2,800 and 900 steps of 128 images at about 200 images/s: half an hour and ten minutes. Score: in the model card.

The second stage labels patches with the nouns of their own caption, balanced over the image; it needs a model that localises a
little already, which the first stage makes.

Paper: CLIP (Radford et al. 2021, arXiv:2103.00020). Deviations: a noun-level term beside the contrast of captions (see
`contrastive`), word tokens, several image sizes with interpolated positions. Accumulated steps contrast within each forward
pass only, so for the contrastive term (not for the noun term) a larger batch is not the same as more accumulation.
"""

import argparse
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast
from transformers.hf_argparser import HfArg

from hf_clipseg.clip.clip_checkpoint import load_whole
from hf_clipseg.clip.text_bank import TEMPLATES

from .curation.tokenization import NOUN_TEMPLATES, NounVocabulary, build_word_tokenizer, mine_nouns
from .data.augmentation import normalise, resize
from .data.caption_cache import CachedCaptions
from .data.openers import caption_options
from .data.sources import load_captions
from .data.splits import SPLITS, unseen_class_ids
from .engine.loop import make_accelerator, train
from .engine.optim import make_schedule, parameter_groups
from .engine.publish import check_hub_access, publish
from .engine.run_card import run_card
from .pretraining.caption_batches import AugmentedCaptions, Collate, Layouts
from .pretraining.caption_styles import CaptionStyles, words_of_styles
from .pretraining.contrastive import ClipForPretraining, NounLoss
from .settings.arguments import (
    CaptionArguments,
    CommandParser,
    DataArguments,
    ValidationArguments,
    config_values,
    run_command,
)
from .settings.dataset_defaults import nouns_for
from .settings.training_settings import TrainingSettings

logger = logging.getLogger(__name__)

# "gelu" and not CLIP's "quick_gelu": one fused kernel, 1.5 times the training speed on a CPU.
SMALL: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768,
        "patch_size": 8, "image_size": 128, "hidden_act": "gelu",
    },
    "text_config": {
        "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 512, "hidden_act": "gelu",
    },
    "projection_dim": 128,
}  # fmt: skip


@dataclass
class ClipArguments:
    """What is trained, and from where."""

    _argument_group_name = "model"

    model_name_or_path: str | None = HfArg(default=None, help="continue from this CLIP checkpoint instead of starting anew")
    clip_config: str = HfArg(default="small", help="'small', or a CLIPConfig JSON file")
    tokenizer_name: str | None = HfArg(
        default=None, help="default: that of the checkpoint, or a word tokenizer built from the captions"
    )
    max_text_length: int = HfArg(default=32, help="tokens per caption of a tokenizer built here")
    nouns_file: str | None = HfArg(
        default=None, help="one concept per line, synonyms parted by commas; default: mined from the captions"
    )
    caption_styles: float = HfArg(
        default=0.0, help="share of pictures that are changed in a way that their caption tells (dark, blurry, from afar)"
    )
    mosaic_sides: list[int] = HfArg(
        default_factory=lambda: [1], help="pictures along a side of an image, drawn from for each step; 1: alone, no mosaic"
    )
    unseen: str | None = HfArg(
        default=None, help=f"nouns that only captions of whole pictures teach, parted by commas, or one of {', '.join(SPLITS)}"
    )
    noun_templates: str = HfArg(
        default="many", help=f"what stands around a noun in the losses on patches: 'many', or one of {', '.join(TEMPLATES)}"
    )
    cone: float = HfArg(
        default=0.0, help="deviation of the biases that a new CLIP's two towers start from: each in a cone of its own"
    )
    image_sizes: list[int] = HfArg(default_factory=lambda: [64, 64, 128], help="drawn from for each step")
    learning_rate: float = HfArg(default=1e-3, help="at its peak")
    weight_decay: float = HfArg(default=0.1, help="of matrices")
    warmup_steps: int = HfArg(default=150, help="the learning rate rises linearly")
    cache_dir: str | None = HfArg(default=None, help="folder of the image cache; default: <output_dir>/cache")


@dataclass
class NounLossArguments:
    """The terms beside CLIP's own; with all weights 0 it is CLIP alone."""

    _argument_group_name = "losses"

    averaged_weight: float = HfArg(default=0.0, help="weight of the contrast of captions with the mean of the patches")
    present_weight: float = HfArg(default=10.0, help="weight of the multi-label noun term; all 0: CLIP alone")
    explained_weight: float = HfArg(default=1.0, help="weight of the competition between nouns at a patch")
    assigned_weight: float = HfArg(default=0.0, help="weight of balanced self-labels; needs a model that localises already")
    negative_weight: float = HfArg(default=1.0, help="weight of a noun that the caption does not mention")
    unmentioned: float = HfArg(default=0.1, help="share of patches that may show what a caption leaves out")
    scale: float = HfArg(default=10.0, help="of the cosines of patches and nouns, at first; narrow cones need more")


BATCH_OPTIONS = ("image_sizes", "caption_styles", "mosaic_sides", "unseen", "noun_templates")
"""What a step is made of: another value is another run, which cannot be resumed."""

GROUPS = (
    ClipArguments, NounLossArguments, DataArguments, CaptionArguments, ValidationArguments,
    TrainingSettings,
)  # fmt: skip


def build_parser() -> CommandParser:
    parser = CommandParser(GROUPS, __doc__)
    parser.set_defaults(
        max_train_steps=2800, train_batch_size=64, checkpointing_steps=350, logging_steps=50, validation_steps=350,
        validation_limit=256,
    )  # fmt: skip
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    return build_parser().parse_for_dataset(arguments, "train_clip")


def build_tokenizer(args: argparse.Namespace, captions: list[list[str]], nouns: NounVocabulary | None):
    """The tokenizer that was named, that of the checkpoint, or a new one that knows every word of the captions and prompts."""
    if args.tokenizer_name or args.model_name_or_path:
        return AutoTokenizer.from_pretrained(args.tokenizer_name or args.model_name_or_path)
    words = {word for concept in nouns.concepts for word in concept} if nouns else set()
    prompts = [template.format(word) for template in NOUN_TEMPLATES for word in sorted(words)]
    texts = [caption for sample in captions for caption in sample]
    told = words_of_styles() if args.caption_styles else []
    return build_word_tokenizer(texts + prompts + told, max_length=args.max_text_length)


def build_clip(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """The checkpoint to continue from, or a new model whose text tower fits `tokenizer`."""
    # eager attention: its backward pass is quicker than SDPA's on a CPU at these sizes
    if args.model_name_or_path:
        return load_whole(args.model_name_or_path, attn_implementation="eager")
    config = SMALL if args.clip_config == "small" else json.loads(Path(args.clip_config).read_text())
    text_config = config["text_config"] | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    clip = CLIPModel._from_config(CLIPConfig(**config | {"text_config": text_config}), attn_implementation="eager")
    if args.cone:
        start_in_cones(clip, args.cone)
    return clip


@torch.no_grad()
def start_in_cones(clip: CLIPModel, deviation: float) -> None:
    """Random biases before the projections: images share one direction and texts another, as in a CLIP of full size.

    "Mind the Gap" (Liang et al. 2022, arXiv 2203.02053) finds such cones in every encoder at random, narrower with depth;
    contrastive training at a low temperature keeps them. Encoders of four blocks have none, so theirs are made.
    """
    for norm in (clip.vision_model.post_layernorm, clip.text_model.final_layer_norm):
        norm.bias.normal_(std=deviation)


def build_nouns(args: argparse.Namespace, captions: list[list[str]]) -> NounVocabulary | None:
    """The concepts of the noun-level loss; None where all of its weights are 0."""
    if args.present_weight == args.explained_weight == args.assigned_weight == 0:
        return None
    if args.nouns_file:
        return NounVocabulary.from_file(args.nouns_file)
    if mapping := nouns_for(args.dataset_name):
        return NounVocabulary.from_mapping(mapping)
    return NounVocabulary(mine_nouns(caption for sample in captions for caption in sample))


def withhold(nouns: NounVocabulary | None, unseen: str | None) -> tuple[NounVocabulary | None, NounVocabulary | None]:
    """The nouns that losses on patches may teach, and those that they may not; None for none."""
    if unseen is None:
        return nouns, None
    if nouns is None:
        raise ValueError("--unseen is about the losses of nouns, which all have weight 0: leave it out, or give one a weight")
    ids = unseen_class_ids(unseen, [words[0] for words in nouns.concepts])
    kept = [words for index, words in enumerate(nouns.concepts) if index not in ids]
    return NounVocabulary(kept), NounVocabulary([nouns.concepts[index] for index in ids])


def prompt_templates(name: str) -> tuple[str, ...]:
    """By the name of a list of `hf_clipseg.clip.text_bank`, or "many"."""
    if name != "many" and name not in TEMPLATES:
        raise ValueError(f"--noun_templates {name!r} is no list of templates: take 'many' or one of {', '.join(TEMPLATES)}")
    return NOUN_TEMPLATES if name == "many" else TEMPLATES[name]


@torch.inference_mode()
def retrieval_recall(
    model: ClipForPretraining, cache: CachedCaptions, tokenizer, size: int, limit: int = 256
) -> dict[str, float]:
    """Share of held-out images whose own caption is the nearest of `limit`, and the reverse; equal captions count."""
    device = model.clip.device
    captions = [cache.captions[index][0] for index in range(min(limit, len(cache)))]
    input_ids = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")["input_ids"]
    images = torch.from_numpy(np.array(cache.images[: len(captions)])).permute(0, 3, 1, 2).float() / 255
    pixel_values = normalise(resize(images, size)).to(device)
    model.eval()
    image_embeds = torch.cat([model.encode_images(chunk)[0] for chunk in pixel_values.split(64)])
    similarity = image_embeds @ model.encode_texts(input_ids.to(device)).T
    same = torch.tensor([[a == b for b in captions] for a in captions], device=device)
    hits = {
        name: same.gather(1, s.argmax(1, keepdim=True))
        for name, s in (("image_to_text", similarity), ("text_to_image", similarity.T))
    }
    return {f"recall_{name}": hit.float().mean().item() for name, hit in hits.items()}


def open_caches(args: argparse.Namespace, accelerator: Accelerator) -> tuple[CachedCaptions, CachedCaptions | None]:
    """The captions to learn from, and those to find again, where there are any."""
    side = max(args.image_sizes)
    caches = []
    validated = args.validation_fraction is not None or args.validation_split not in (None, "none")
    held_out = (args.validation_split or "validation", args.validation_limit)
    for split, limit in ((args.split, args.limit), *([held_out] if validated else [])):
        source = load_captions(
            args.dataset_name, split, validation_fraction=args.validation_fraction,
            **caption_options(args, side, args.seed, limit),
        )  # fmt: skip
        with accelerator.main_process_first():
            caches.append(CachedCaptions(source, side, args.cache_dir or os.path.join(args.output_dir, "cache")))
    return caches[0], caches[1] if validated else None


def result_parts(model: CLIPModel, tokenizer: PreTrainedTokenizerFast) -> list:
    """What stands beside the weights."""
    size = model.config.vision_config.image_size
    return [tokenizer, CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})]


def run(args: argparse.Namespace) -> CLIPModel:
    """The whole training; returns the CLIP, which is also in `<output_dir>/final`."""
    settings = TrainingSettings.from_arguments(args)
    check_hub_access(settings)
    accelerator = make_accelerator(settings)
    cache, held_out = open_caches(args, accelerator)
    nouns = build_nouns(args, cache.captions)
    tokenizer = build_tokenizer(args, cache.captions, nouns)
    noun_loss = NounLoss(**config_values(args, NounLossArguments, leave_out=("averaged_weight",))) if nouns else None
    model = ClipForPretraining(build_clip(args, tokenizer), noun_loss, args.averaged_weight)
    taught, withheld = withhold(nouns, args.unseen)
    logger.info(
        "%d captions, %d words, %s concepts, %s of them for whole captions only", len(cache), len(tokenizer),
        len(nouns) if nouns else "no", len(withheld) if withheld else "none",
    )  # fmt: skip
    layouts = Layouts(
        tuple(args.image_sizes), tuple(args.mosaic_sides), args.seed, settings.train_batch_size,
        model.clip.config.vision_config.patch_size,
    )  # fmt: skip
    styles = CaptionStyles(args.caption_styles, nouns) if args.caption_styles else None

    optimizer = torch.optim.AdamW(parameter_groups(model, args.learning_rate, args.weight_decay), betas=(0.9, 0.98), eps=1e-6)
    scheduler = make_schedule(optimizer, "cosine", min(args.warmup_steps, settings.max_train_steps), settings.max_train_steps)

    def validate(step: int, trained: ClipForPretraining) -> dict[str, float] | None:
        if held_out is None or step % args.validation_steps:
            return None
        return retrieval_recall(trained, held_out, tokenizer, max(args.image_sizes))

    model = train(
        accelerator, settings, model, optimizer, scheduler,
        dataset=AugmentedCaptions(cache, layouts, styles, withheld),
        collate=Collate(tokenizer, taught, prompt_templates(args.noun_templates), layouts, withheld),
        compute_losses=lambda trained, batch: trained(**batch),
        on_step=validate,
        identity={
            "data": cache.description, "nouns": nouns.concepts if nouns else None,
            **{name: getattr(args, name) for name in BATCH_OPTIONS}, **config_values(args, NounLossArguments),
        },
        processor=result_parts(model.clip, tokenizer),
    )  # fmt: skip
    if accelerator.is_main_process:
        description = f"A CLIP, pre-trained on {len(cache)} images with captions; no mask was read."
        card = run_card(args, "train_clip", "CLIP", description, cache.description, base_model=args.model_name_or_path)
        publish(model.clip, result_parts(model.clip, tokenizer), settings, card)
    return model.clip


def main(arguments: Sequence[str] | None = None) -> None:
    run_command(run, parse_arguments, arguments)


if __name__ == "__main__":
    main()
