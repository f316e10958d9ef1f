"""How much a CLIP is like CLIP: what the papers build on, measured on pictures with captions and on pictures with masks.

    python -m benchmarks.ablations.clip_like                                             # the shipped CLIP, on Toyscapes
    python -m benchmarks.ablations.clip_like --clip openai/clip-vit-base-patch16 --keep_residual --attention_variant value \
        --dataset_name my-masks --captions my-captions --split validation

Distances and cosines are between L2-normalised embeddings. The modality gap is the distance between the centroids of images and
of their captions (Liang et al. 2022, "Mind the Gap", arXiv 2203.02053), here also of patches and class texts; a cone is a mean
cosine of different images, or of different captions, well above 0 (the same paper). Patches are those that MaskCLIP reads.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.nn import functional as F
from transformers import AutoTokenizer

from hf_clipseg import MaskClipForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.clip.clip_checkpoint import load_whole
from hf_clipseg.clip.multi_view import class_spread
from hf_clipseg.clip.text_bank import TEMPLATES
from hf_clipseg.processing.image_io import batches_of_one_size
from training.data.sources import load_captions, load_source
from training.engine.provenance import provenance, write_json
from training.evaluation.oracle import collect_patches, fit_linear_probe, fit_prototypes
from training.evaluation.scoring import score

ENERGY = 0.99
"""Share of the patches' squared norm that "the span of the patches" holds: enough patches span all of a joint space."""


def pairs_of(args: argparse.Namespace) -> tuple[list, list[str]]:
    """Images and one caption each."""
    options = {"size": (args.image_size,) * 2, "omission_rate": 0.1, "closeup_rate": 0.0}  # of Toyscapes
    source = load_captions(args.captions or args.dataset_name, args.split, limit=args.limit, seed=args.seed, **options)
    samples = [source[index] for index in range(len(source))]
    return [sample["image"] for sample in samples], [sample["captions"][0] for sample in samples]


@torch.inference_mode()
def embed_images(clip, processor, images: Sequence, batch_size: int = 50) -> torch.Tensor:
    """`(N, D)`, L2-normalised: CLIP's own image embeddings."""
    embeds = torch.empty(len(images), clip.config.projection_dim)
    for batch in batches_of_one_size(images, batch_size):
        pixels = processor(images=[images[index] for index in batch])["pixel_values"]
        embeds[batch] = clip.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output
    return F.normalize(embeds, dim=-1)


@torch.inference_mode()
def embed_captions(clip, tokenizer, captions: Sequence[str], batch_size: int = 256) -> torch.Tensor:
    """`(N, D)`, L2-normalised."""
    parts = []
    for first in range(0, len(captions), batch_size):
        inputs = tokenizer(list(captions[first : first + batch_size]), padding=True, truncation=True, return_tensors="pt")
        parts.append(clip.get_text_features(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).pooler_output)
    return F.normalize(torch.cat(parts), dim=-1)


@torch.inference_mode()
def class_texts(model, processor, class_names: Sequence, templates: str) -> torch.Tensor:
    """`(N, D)`, L2-normalised: every name through a template list."""
    inputs = processor(class_names=list(class_names), templates=templates)
    return model.encode_names(inputs["input_ids"], inputs["name_ids"])


def gap(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first.mean(0) - second.mean(0)).norm())


def share_in_span(vectors: torch.Tensor, patches: torch.Tensor) -> float:
    """Mean share of the squared norm of `vectors` inside the smallest subspace that holds `ENERGY` of the patches'."""
    _, values, directions = torch.linalg.svd(patches, full_matrices=False)
    energy = values.square().cumsum(0) / values.square().sum()
    basis = directions[: int((energy < ENERGY).sum()) + 1]
    return float((vectors @ basis.T).square().sum(1).mean())


def geometry(images: torch.Tensor, captions: torch.Tensor, patches: torch.Tensor, texts: dict[str, torch.Tensor]) -> dict:
    """The distances and cosines of a CLIP, by what they are called in the table."""
    agree = (images @ captions.T).argmax(1) == torch.arange(len(images))
    return {
        "centroid distance, images to captions": gap(images, captions),
        "centroid distance, patches to class texts": gap(patches, texts["ensemble"]),
        "mean cosine of different images": float(class_spread(images)),
        "mean cosine of different captions": float(class_spread(captions)),
        "mean cosine of different patches": float(class_spread(patches)),
        "mean cosine of an image and its caption": float((images * captions).sum(1).mean()),
        "recall at 1, image to caption": float(agree.float().mean()),
        "share of a class text's norm in the span of the patches": share_in_span(texts["ensemble"], patches),
        **{
            f"cosine of the bare name and `{name}`": float((texts["name"] * texts[name]).sum(1).mean())
            for name in TEMPLATES
            if name != "name"
        },
    }


def segmentation(model, processor, source, patches, shares) -> dict:
    """mIoU of MaskCLIP with every template list, of the ceilings on the same features, and how much prompts matter."""
    accelerator, count = Accelerator(), len(source.class_names)
    oracles = {"oracle_mIoU": fit_linear_probe(patches, shares), "oracle_prototypes_mIoU": fit_prototypes(patches, shares)}
    scores = {}
    for name in TEMPLATES:
        processor.templates = list(TEMPLATES[name])
        scored = score(
            model, processor, source, source.class_names, count, accelerator,
            classifiers=oracles if name == "ensemble" else None,
        )  # fmt: skip
        scores[name] = scored.figures([str(names) for names in source.class_names])
    mious = {name: figures["mIoU"] for name, figures in scores.items()}
    ceilings = scores["ensemble"]
    return {
        **{f"MaskCLIP mIoU, templates `{name}`": value for name, value in mious.items()},
        "margin of prompts: best less worst": max(mious.values()) - min(mious.values()),
        "oracle, linear probe": ceilings["oracle_mIoU"],
        "oracle, true regions as prototypes": ceilings["oracle_prototypes_mIoU"],
        "grid limit": ceilings["grid_limit"],
    }


def measure(args: argparse.Namespace) -> dict:
    """Every figure of the table, by name."""
    clip, tokenizer = load_whole(args.clip).eval(), AutoTokenizer.from_pretrained(args.clip)
    size = {"shortest_edge": args.image_size, "longest_edge": 4 * args.image_size}
    processor = SegmentationProcessor.from_clip(args.clip, templates="ensemble", size=size)
    model = MaskClipForSemanticSegmentation.from_clip(
        args.clip, attention_variant=args.attention_variant, keep_residual=args.keep_residual
    ).eval()
    images, captions = pairs_of(args)
    mask_options = {"classes_file": args.classes, "seed": args.seed, "size": (args.image_size,) * 2}
    source = load_source(args.dataset_name, args.split, limit=args.limit, **mask_options)
    fitted = load_source(args.dataset_name, args.oracle_split, limit=args.oracle_images, **mask_options)
    samples = (fitted[index] for index in range(len(fitted)))
    patches, shares = collect_patches(samples, model, processor, len(fitted), len(source.class_names))
    texts = {name: class_texts(model, processor, source.class_names, list(TEMPLATES[name])) for name in TEMPLATES}
    figures = geometry(embed_images(clip, processor, images), embed_captions(clip, tokenizer, captions), patches, texts)
    return figures | segmentation(model, processor, source, patches, shares)


def table(figures: dict) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value:.3f} |" for name, value in figures.items())])


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", default="model_cards/clip-toyscapes", help="folder or Hub id (%(default)s)")
    parser.add_argument("--dataset_name", default="toyscapes", help="images with masks (%(default)s)")
    parser.add_argument("--captions", help="images with captions; default: those of --dataset_name")
    parser.add_argument("--classes", help="class names, or a file of them; default: those of the data set")
    parser.add_argument("--split", default="test")
    parser.add_argument("--oracle_split", default="train", help="what the oracles are fitted on, and patches are taken from")
    parser.add_argument("--oracle_images", type=int, default=300)
    parser.add_argument("--limit", type=int, default=500, help="images (%(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="which scenes of Toyscapes (%(default)s)")
    parser.add_argument("--image_size", type=int, default=128, help="short side of the input (%(default)s)")
    parser.add_argument("--attention_variant", default="value")
    parser.add_argument("--keep_residual", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--output", type=Path, help="JSON file for figures and provenance")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    try:
        figures = measure(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(table(figures))
    if args.output:
        write_json(args.output, {"figures": figures, **provenance("benchmarks.ablations.clip_like", sys.argv[1:])})


if __name__ == "__main__":
    main()
