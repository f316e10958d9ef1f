"""The figures of `docs/photographs.md`: the supervised methods on a frozen encoder that has seen photographs.

    python -m benchmarks.ablations.photographs --output_dir runs/photographs --data $HF_CLIPSEG_REAL_DATA
    python -m benchmarks.ablations.photographs --output_dir runs/photographs --data $HF_CLIPSEG_REAL_DATA --tables

Every run is `training.train_mta_clip` on the MobileNetV2 encoder of `deeplabv3_mobilenet_v2`, with the cpu preset but for the
options below; its features are computed once for all variants. The seed also draws which photographs are held out. Scores are
at their full resolution. A finished run leaves one JSON file, and is not done again; nothing that is trained here may be
shipped.
"""

import argparse
import json
import logging
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from torch import nn
from transformers import SegformerConfig
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from hf_clipseg import PixelTextClipForSemanticSegmentation
from hf_clipseg.models.losses import segmentation_cross_entropy
from hf_clipseg.outputs import SegmentationOutput
from training import train_mta_clip
from training.engine.provenance import provenance, write_json

logger = logging.getLogger(__name__)

ENCODER = "deeplabv3_mobilenet_v2"
MEASURED = ["--rehearsal_steps", "0", "--mixed_precision", "no", "--validation_pictures", "0"]
VARIANTS: dict[str, list[str]] = {
    "pixel-text": ["--method", "pixel_text"],
    "MTA-CLIP": ["--method", "mta_clip"],
    "Mask2Former (no texts)": ["--method", "mta_clip", "--num_prompts", "0"],
    "SegFormer head": ["--method", "pixel_text"],
    "linear layer": ["--method", "pixel_text"],
}
TRAIN_SHARE = {"msrc_v2": 200 / 296, "coco_panoptic100": 0.8}


class HeadOnEncoder(PixelTextClipForSemanticSegmentation):
    """Another head on the same maps; the pixel decoder is built, and idle."""

    def forward(self, pixel_values=None, labels=None, block_maps=None, **unused):
        maps = self.encode_blocks(pixel_values)[0] if block_maps is None else block_maps
        logits = self.decode(maps)
        loss = None if labels is None else segmentation_cross_entropy(logits, labels)
        return SegmentationOutput(loss=loss, logits=logits, losses=None if loss is None else {"cross_entropy": loss.detach()})


class SegformerOnEncoder(HeadOnEncoder):
    """transformers' SegFormer decode head."""

    def build_heads(self, num_classes: int) -> None:
        sizes = list(self.pyramid.channels)
        self.head = SegformerDecodeHead(SegformerConfig(hidden_sizes=sizes, decoder_hidden_size=128, num_labels=num_classes))

    def decode(self, maps):
        return self.head(self.pyramid(maps))


class LinearOnEncoder(HeadOnEncoder):
    """One linear layer on the cells of the last map, as they are."""

    def build_heads(self, num_classes: int) -> None:
        self.head = nn.Conv2d(self.pyramid.plan.channels[-1], num_classes, kernel_size=1)

    def decode(self, maps):
        return self.head(maps[-1])


HEADS = {"SegFormer head": SegformerOnEncoder, "linear layer": LinearOnEncoder}


def link(folder: Path, part: str, split: str, source: Path) -> None:
    target = folder / part / split / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        target.symlink_to(source.resolve())


def lay_out(data: Path, name: str, folder: Path, seed: int) -> list[str]:
    """A folder `images/SPLIT`, `masks/SPLIT` of links to a collection; returns the options that it needs."""
    masks = {path.stem: path for path in (data / name).glob("masks*/**/*.png")}
    images = sorted(path for path in (data / name / "images").rglob("*.*") if path.stem in masks)
    random.Random(seed).shuffle(images)
    count = round(len(images) * TRAIN_SHARE.get(name, 0))
    for index, image in enumerate(images):
        split = "train" if index < count or ("train" in image.parent.name and name not in TRAIN_SHARE) else "validation"
        link(folder, "images", split, image)
        link(folder, "masks", split, masks[image.stem])
    classes, options = class_names(data / name, folder)
    (folder / "classes.txt").write_text("\n".join(classes))
    return options


def class_names(collection: Path, folder: Path) -> tuple[list[str], list[str]]:
    if not (collection / "panoptic_categories.json").is_file():
        return json.loads((collection / "classes.json").read_text())["classes"], []
    categories = json.loads((collection / "panoptic_categories.json").read_text())
    ids = {0: 255} | {category["id"]: index for index, category in enumerate(categories)}
    (folder / "ids.json").write_text(json.dumps(ids))
    return [category["name"] for category in categories], ["--id_map", str(folder / "ids.json")]


def result_file(args: argparse.Namespace, collection: str, variant: str, seed: int) -> Path:
    name = "".join(letter if letter.isalnum() else "-" for letter in f"{collection} {variant}".lower())
    return args.output_dir / f"{name}.seed{seed}.json"


def run_one(args: argparse.Namespace, collection: str, variant: str, seed: int) -> None:
    """Train and score one variant with one seed; the file is written last."""
    target = result_file(args, collection, variant, seed)
    folder = args.output_dir / f"data-{seed}" / collection
    options = [
        "--preset", "cpu", "--dataset_name", str(folder), *lay_out(args.data, collection, folder, seed), "--validation_split",
        "validation", "--vision_backbone", str(args.data / ENCODER), "--seed", str(seed), *MEASURED, *VARIANTS[variant],
        "--cache_dir", str(args.output_dir / "cache"), "--output_dir", str(target.with_suffix("")), "--overwrite_output_dir",
        *args.more,
    ]  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = train_mta_clip.parse_arguments(options)
    train_mta_clip.METHODS["pixel_text"] = HEADS.get(variant, PixelTextClipForSemanticSegmentation)
    wall, cpu = time.perf_counter(), time.process_time()
    model = train_mta_clip.run(arguments)
    lines = [json.loads(line) for line in (target.with_suffix("") / "metrics.jsonl").read_text().splitlines()]
    scores = {name: lines[-1][name] for name in ("mIoU", "pixel_accuracy")}
    losses = [line["loss"] for line in lines if "loss" in line]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    result = {
        **scores, "iou": {name.removeprefix("IoU/"): iou for name, iou in lines[-1].items() if name.startswith("IoU/")},
        "first_loss": losses[0], "last_loss": losses[-1], "trained_parameters": trained,
        "cpu_seconds": round(time.process_time() - cpu), "seconds": round(time.perf_counter() - wall),
        **provenance("training.train_mta_clip", options),
    }  # fmt: skip
    write_json(target, result)
    logger.info("%s, %s, seed %d: %s", collection, variant, seed, scores)


def tables(args: argparse.Namespace) -> str:
    lines = ["| collection | method | mIoU | pixel accuracy | first and last loss | CPU s |", "|---|---|---|---|---|---|"]
    for collection in args.collections:
        for variant in args.variants:
            files = [result_file(args, collection, variant, seed) for seed in args.seeds]
            found = [json.loads(file.read_text()) for file in files if file.is_file()]
            if found:
                figures = [mean_and_deviation([run[name] for run in found]) for name in ("mIoU", "pixel_accuracy")]
                first, last, cpu = (
                    statistics.mean(run[name] for run in found) for name in ("first_loss", "last_loss", "cpu_seconds")
                )
                lines.append(f"| {collection} | {variant} | {' | '.join(figures)} | {first:.2f}, {last:.2f} | {cpu:.0f} |")
    return "\n".join(lines)


def mean_and_deviation(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f} ({len(values)})" if len(values) > 1 else f"{mean} (1)"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="the folder that HF_CLIPSEG_REAL_DATA names")
    parser.add_argument("--collections", nargs="+", default=["msrc_v2"], help="of msrc_v2, coco_panoptic100, coco_mini")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tables", action="store_true", help="print what was measured, as Markdown")
    parser.add_argument("more", nargs="*", help="after --: further options of training.train_mta_clip, for every run")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for seed in args.seeds:
        for collection in args.collections:
            for variant in args.variants:
                if not args.tables and not result_file(args, collection, variant, seed).is_file():
                    run_one(args, collection, variant, seed)
    print(tables(args))


if __name__ == "__main__":
    main()
