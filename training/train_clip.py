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
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from hf_clipseg.toyscapes import CAPTION_NOUNS

from .curation.tokenization import NOUN_TEMPLATES, NounVocabulary, build_word_tokenizer, mine_nouns
from .data.augmentation import colour_jitter, normalise, resize
from .data.caption_cache import CachedCaptions
from .data.sources import load_captions
from .engine.loop import SampleKey, TrainingSettings, add_training_arguments, make_accelerator, train
from .engine.optim import make_schedule, parameter_groups
from .pretraining.contrastive import ClipForPretraining, NounLoss

logger = logging.getLogger(__name__)

# "gelu" and not CLIP's "quick_gelu": one fused kernel, 1.5 times the training speed on a CPU.
SMALL = {
    "vision_config": {
        "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768,
        "patch_size": 8, "image_size": 128, "hidden_act": "gelu",
    },
    "text_config": {
        "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 512, "hidden_act": "gelu",
    },
    "projection_dim": 128,
}  # fmt: skip


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_name", default="toyscapes", help="'toyscapes', a Hub id, or a folder")
    data.add_argument("--dataset_config", help="configuration of a Hub data set")
    data.add_argument("--train_split", default="train")
    data.add_argument("--validation_split", default="validation", help="held-out captions for retrieval; 'none' to do without")
    data.add_argument("--image_column")
    data.add_argument("--caption_column")
    data.add_argument("--max_train_samples", type=int, default=40_000, help="images used; of a streamed set, the first so many")
    data.add_argument("--streaming", action="store_true", help="read a Hub data set without downloading all of it")
    data.add_argument("--omission_rate", type=float, default=0.1, help="Toyscapes: share of concepts a caption leaves out")
    data.add_argument(
        "--closeup_rate", type=float, default=0.5, help="Toyscapes: share of images in which one concept fills the frame"
    )
    data.add_argument("--cache_dir", help="folder of the image cache; default: <output_dir>/cache")
    model = parser.add_argument_group("model")
    model.add_argument("--model_name_or_path", help="continue from this CLIP checkpoint instead of starting anew")
    model.add_argument("--clip_config", default="small", help="'small', or a CLIPConfig JSON file")
    model.add_argument("--tokenizer_name", help="default: that of the checkpoint, or a word tokenizer built from the captions")
    model.add_argument("--max_text_length", type=int, default=32, help="tokens per caption of a tokenizer built here")
    losses = parser.add_argument_group("losses")
    losses.add_argument(
        "--nouns_file", help="one concept per line, synonyms parted by commas; default: mined from the captions"
    )
    losses.add_argument(
        "--present_weight", type=float, default=10.0, help="weight of the multi-label noun term; all 0: CLIP alone"
    )
    losses.add_argument(
        "--explained_weight", type=float, default=1.0, help="weight of the competition between nouns at a patch"
    )
    losses.add_argument(
        "--assigned_weight",
        type=float,
        default=0.0,
        help="weight of balanced self-labels; needs a model that localises already",
    )
    losses.add_argument("--negative_weight", type=float, default=1.0, help="weight of a noun that the caption does not mention")
    losses.add_argument(
        "--unmentioned", type=float, default=0.1, help="share of patches that may show what a caption leaves out"
    )
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--image_sizes", type=int, nargs="+", default=[64, 64, 128], help="drawn from for each step")
    optimisation.add_argument("--learning_rate", type=float, default=1e-3)
    optimisation.add_argument("--weight_decay", type=float, default=0.1)
    optimisation.add_argument("--warmup_steps", type=int, default=150)
    optimisation.add_argument("--validation_steps", type=int, default=350)
    add_training_arguments(
        parser,
        max_train_steps=2800,
        train_batch_size=64,
        mixed_precision="bf16",
        checkpointing_steps=350,
        logging_steps=50,
    )
    return parser.parse_args(arguments)


class AugmentedCaptions(torch.utils.data.Dataset):
    """Pairs (image, caption) with the numbers their augmentation is seeded by; indexed with a `SampleKey`."""

    def __init__(self, cache: CachedCaptions, seed: int):
        self.cache, self.seed = cache, seed

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        random = np.random.default_rng((self.seed, key.epoch, key.index))
        captions = self.cache.captions[key.index]
        image = torch.from_numpy(np.array(self.cache.images[key.index])).permute(2, 0, 1)
        return {
            "image": image.flip(2) if random.random() < 0.5 else image,
            "caption": captions[random.integers(len(captions))],
            "jitter": torch.from_numpy(random.uniform(-0.2, 0.2, 3)).float(),  # brightness, contrast, saturation
            "step": key.step,
        }


class Collate:
    """List of samples -> tensors. Image size and noun prompts are drawn from (seed, step), so all processes agree on them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, nouns: NounVocabulary | None, image_sizes: Sequence[int], seed: int):
        self.tokenizer, self.nouns, self.image_sizes, self.seed = tokenizer, nouns, tuple(image_sizes), seed

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        random = np.random.default_rng((self.seed, samples[0]["step"]))
        size = self.image_sizes[random.integers(len(self.image_sizes))]
        captions = [sample["caption"] for sample in samples]
        images = resize(torch.stack([sample["image"] for sample in samples]).float() / 255, size)
        images = colour_jitter(images, torch.stack([sample["jitter"] for sample in samples]))
        batch = {"pixel_values": normalise(images), "input_ids": self.tokenize(captions)}
        if self.nouns is not None:
            batch["noun_input_ids"] = self.tokenize(self.noun_prompts(random))
            batch["mentioned"] = torch.zeros(len(samples), len(self.nouns), dtype=torch.bool)
            for row, caption in enumerate(captions):
                batch["mentioned"][row, list(self.nouns.find(caption))] = True
        return batch

    def noun_prompts(self, random: np.random.Generator) -> list[str]:
        """One sentence per concept: a random one of its words in a random template."""
        words = [concept[random.integers(len(concept))] for concept in self.nouns.concepts]
        return [NOUN_TEMPLATES[random.integers(len(NOUN_TEMPLATES))].format(word) for word in words]

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        return self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")["input_ids"]


def build_tokenizer(args: argparse.Namespace, captions: list[list[str]], nouns: NounVocabulary | None):
    """The tokenizer that was named, that of the checkpoint, or a new one that knows every word of the captions and prompts."""
    if args.tokenizer_name or args.model_name_or_path:
        return AutoTokenizer.from_pretrained(args.tokenizer_name or args.model_name_or_path)
    words = {word for concept in nouns.concepts for word in concept} if nouns else set()
    prompts = [template.format(word) for template in NOUN_TEMPLATES for word in sorted(words)]
    texts = [caption for sample in captions for caption in sample]
    return build_word_tokenizer(texts + prompts, max_length=args.max_text_length)


def build_clip(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """The checkpoint to continue from, or a new model whose text tower fits `tokenizer`."""
    # eager attention: its backward pass is quicker than SDPA's on a CPU at these sizes
    if args.model_name_or_path:
        return CLIPModel.from_pretrained(args.model_name_or_path, attn_implementation="eager")
    config = SMALL if args.clip_config == "small" else json.loads(Path(args.clip_config).read_text())
    text_config = config["text_config"] | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPModel._from_config(CLIPConfig(**config | {"text_config": text_config}), attn_implementation="eager")


def build_nouns(args: argparse.Namespace, captions: list[list[str]]) -> NounVocabulary | None:
    """The concepts of the noun-level loss; None where all of its weights are 0."""
    if args.present_weight == args.explained_weight == args.assigned_weight == 0:
        return None
    if args.nouns_file:
        return NounVocabulary.from_file(args.nouns_file)
    if args.dataset_name == "toyscapes":
        return NounVocabulary.from_mapping(CAPTION_NOUNS)
    return NounVocabulary(mine_nouns(caption for sample in captions for caption in sample))


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


def save(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Model, tokenizer and image processor in the layout of a Hub repository; complete as soon as `folder` exists."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    size = model.config.vision_config.image_size
    CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def publish(folder: Path, repository: str) -> None:
    """Uploads `folder` to a model repository of the Hub, which is created where it does not exist."""
    api = HfApi()
    repo_id = api.create_repo(repository, exist_ok=True).repo_id
    api.upload_folder(folder_path=folder, repo_id=repo_id)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    settings = TrainingSettings.from_arguments(args)
    accelerator = make_accelerator(settings)

    cache_dir = args.cache_dir or os.path.join(args.output_dir, "cache")
    caches = {}
    for split, limit in ((args.train_split, args.max_train_samples), (args.validation_split, 256)):
        if split == "none":
            continue
        source = load_captions(
            args.dataset_name, split, config_name=args.dataset_config, image_column=args.image_column,
            caption_column=args.caption_column, streaming=args.streaming, limit=limit, size=(max(args.image_sizes),) * 2,
            seed=args.seed, omission_rate=args.omission_rate, closeup_rate=args.closeup_rate,
        )  # fmt: skip
        with accelerator.main_process_first():
            caches[split] = CachedCaptions(source, max(args.image_sizes), cache_dir)
    cache = caches[args.train_split]

    nouns = build_nouns(args, cache.captions)
    tokenizer = build_tokenizer(args, cache.captions, nouns)
    noun_loss = None
    if nouns:
        noun_loss = NounLoss(
            args.present_weight, args.explained_weight, args.negative_weight, args.unmentioned, args.assigned_weight
        )
    model = ClipForPretraining(build_clip(args, tokenizer), noun_loss)
    logger.info("%d captions, %d words, %s concepts", len(cache), len(tokenizer), len(nouns) if nouns else "no")

    optimizer = torch.optim.AdamW(parameter_groups(model, args.learning_rate, args.weight_decay), betas=(0.9, 0.98), eps=1e-6)
    scheduler = make_schedule(optimizer, "cosine", args.warmup_steps, settings.max_train_steps)

    def validate(step: int, trained: ClipForPretraining) -> dict[str, float] | None:
        if args.validation_split == "none" or step % args.validation_steps:
            return None
        return retrieval_recall(trained, caches[args.validation_split], tokenizer, max(args.image_sizes))

    model = train(
        accelerator, settings, model, optimizer, scheduler,
        dataset=AugmentedCaptions(cache, args.seed),
        collate=Collate(tokenizer, nouns, args.image_sizes, args.seed),
        compute_losses=lambda trained, batch: trained(**batch),
        on_step=validate,
    )  # fmt: skip
    if accelerator.is_main_process:
        folder = Path(settings.output_dir) / "final"
        save(model.clip, tokenizer, folder)
        if settings.push_to_hub:
            publish(folder, settings.hub_model_id or Path(settings.output_dir).name)


if __name__ == "__main__":
    main()
