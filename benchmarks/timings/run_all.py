"""Every timing of docs/benchmarks.md in one command, as JSON and as the page itself.

    OMP_NUM_THREADS=1 python -m benchmarks.timings.run_all --json timings.json --page docs/benchmarks.md

Models have random weights where only time matters; scores come from the shipped checkpoints where the content does. `--only`
picks rows by a part of their name; `--repeats 3` is enough for a look.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSemanticSegmentation, CLIPConfig, CLIPModel, CLIPSegConfig, CLIPSegForImageSegmentation

from hf_clipseg import MaskClipConfig, MaskClipForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.atomic import replace_file
from hf_clipseg.evaluation.metrics import BoundaryF, ConfusionMatrix
from hf_clipseg.processing.upsampling import upsample_argmax
from hf_clipseg.refinement.crf import dense_crf
from hf_clipseg.refinement.pamr import pamr
from hf_clipseg.toyscapes import render

from .pairs import Pair, as_table, machine, measure, peak_memory

CARDS = Path(__file__).parents[2] / "model_cards"
PAGE = """# Benchmarks

Written by one command; do not edit by hand:

    {command}

Machine: {machine}. Both columns of a row were run in turn, {repeats} times; the ratio is the median of the ratios of neighbours
in time. Below 1, ours is quicker. Single times belong to this machine, ratios travel better. Peak memory of the whole run:
{memory:.0f} MiB.

{table}
"""


def all_at_once(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """What transformers' SegFormer post-processing does."""
    return nn.functional.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0].argmax(dim=0)


def post_processing() -> Iterator[Pair]:
    generator = torch.Generator().manual_seed(0)
    cases = {"random scores, 150 classes": torch.randn(150, 48, 64, generator=generator)}
    for name in ("mask-clip-toyscapes", "vpl-toyscapes", "mta-clip-toyscapes"):
        model = AutoModelForSemanticSegmentation.from_pretrained(CARDS / name).eval()
        processor = SegmentationProcessor.from_pretrained(CARDS / name)
        size = {"shortest_edge": 384, "longest_edge": 512}
        inputs = processor(images=render(0, 3, 384, 512).image, return_tensors="pt", size=size)
        cases[name] = model(pixel_values=inputs["pixel_values"]).logits[0]
    for name, logits in cases.items():
        yield Pair(
            f"labels of 1024 x 768 pixels, {name}",
            lambda logits=logits: all_at_once(logits, (768, 1024)),
            lambda logits=logits: upsample_argmax(logits, (768, 1024)),
            "all classes at full size against `upsample_argmax`",
        )


def methods(num_classes: int = 20, side: int = 352) -> Iterator[Pair]:
    clip = CLIPModel(CLIPConfig(vision_config={"patch_size": 16})).eval()
    names = [[f"class {index}"] for index in range(num_classes)]
    ours = MaskClipForSemanticSegmentation(MaskClipConfig(clip_config=clip.config.to_dict(), class_names=names)).eval()
    ours.clip.load_state_dict(clip.state_dict())
    pixels = torch.randn(1, 3, side, side)
    yield Pair(
        f"MaskCLIP, ViT-B/16, {side} px, {num_classes} classes",
        lambda: clip.get_image_features(pixels, interpolate_pos_encoding=True),
        lambda: ours(pixel_values=pixels),
        "CLIP's image encoder against the method",
    )
    for patch in (16, 32):
        other = CLIPSegForImageSegmentation(CLIPSegConfig(vision_config={"patch_size": patch})).eval()
        for count in (1, num_classes):
            copies = pixels.expand(count, -1, -1, -1)
            conditions = torch.randn(count, other.config.projection_dim)
            yield Pair(
                f"CLIPSeg, patch {patch}, {side} px, {count} classes",
                lambda other=other, copies=copies, conditions=conditions: other(
                    pixel_values=copies, conditional_embeddings=conditions, interpolate_pos_encoding=True
                ),
                lambda: ours(pixel_values=pixels),
                "CLIPSeg of transformers against MaskCLIP (ViT-B/16)",
            )


def refinement() -> Iterator[Pair]:
    scene = render(0, 3, 480, 640)
    pixels = torch.tensor(np.asarray(scene.image)).permute(2, 0, 1)[None]
    coarse = torch.randn(1, 8, 15, 20, generator=torch.Generator().manual_seed(0))
    maps = nn.functional.interpolate(coarse, size=(480, 640), mode="bilinear").softmax(dim=1)
    plain = lambda: upsample_argmax(coarse[0], (480, 640))  # noqa: E731
    yield Pair("PAMR, 640 x 480, 8 classes", plain, lambda: pamr(pixels, maps), "labels without refinement against PAMR")
    yield Pair("CRF, 640 x 480, 8 classes", plain, lambda: dense_crf(pixels, maps), "labels without refinement against the CRF")


def scores() -> Iterator[Pair]:
    truth = torch.tensor(np.asarray(render(0, 3, 480, 640).mask)).long()
    found = truth.roll((3, 4), dims=(0, 1))
    count = int(truth.max()) + 1
    yield Pair(
        f"boundary F, 640 x 480, {count} classes",
        lambda: ConfusionMatrix(count).update(found, truth),
        lambda: BoundaryF(count).update(found, truth),
        "the confusion matrix against boundary F",
    )


GROUPS = {"post-processing": post_processing, "methods": methods, "refinement": refinement, "scores": scores}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", choices=[*GROUPS], help="one group of rows only")
    parser.add_argument("--only", default="", help="rows with this in their name")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--page", type=Path, help="write the page here")
    return parser.parse_args(arguments)


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    timings = []
    for name, group in GROUPS.items():
        for pair in group() if args.group in (None, name) else ():
            if args.only in pair.name:
                timings.append(measure(pair, args.repeats))
                print(as_table(timings[-1:]).splitlines()[-1], flush=True)
    if not timings:
        sys.exit(f"error: no row has {args.only!r} in its name")
    command = shlex.join(["python", "-m", "benchmarks.timings.run_all", *(sys.argv[1:] if arguments is None else arguments)])
    figures = {"command": command, "machine": machine(), "repeats": args.repeats, "peak_memory_mib": peak_memory()}
    if args.json:
        with replace_file(args.json) as partial:
            partial.write_text(json.dumps({**figures, "timings": [asdict(row) for row in timings]}, indent=2) + "\n")
    if args.page:
        words = ", ".join(f"{key} {value}" for key, value in machine().items())
        text = PAGE.format(command=command, machine=words, repeats=args.repeats, memory=peak_memory(), table=as_table(timings))
        with replace_file(args.page) as partial:
            partial.write_text(text)


if __name__ == "__main__":
    main()
