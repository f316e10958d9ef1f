"""What mask-text alignment costs on top of transformers' Mask2Former, and what one training step needs in memory.

    python -m benchmarks.timings.mta_clip                    # ratios at both sizes, then memory
    python -m benchmarks.timings.mta_clip --sizes toyscapes

The reference is `Mask2FormerForUniversalSegmentation` behind the very same backbone and pyramid, with as many queries, layers
and points; weights are random. Both are timed in turn in one run, in CPU time; the figure is the ratio of the medians, single
times depend on the machine. A step is forward, losses and backward; MTA-CLIP's includes its text encoder. Memory is the peak
of a child process that does one step and nothing else, less what it held before the model was made.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from transformers import CLIPConfig, Mask2FormerForUniversalSegmentation, SwinConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

from hf_clipseg import MtaClipConfig, MtaClipForSemanticSegmentation
from hf_clipseg.models.mta_clip.mask_text_loss import MaskTargets
from hf_clipseg.models.mta_clip.modeling_mta_clip import mask2former_config
from training.train_clip import SMALL
from training.train_mta_clip import PRESETS

TOKENS_PER_NAME = 2
TEXT = {"vocab_size": 1000, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SIZES = {  # classes, image size, batch, CLIP, fields
    "toyscapes": (
        30, 128, 16, SMALL | {"text_config": SMALL["text_config"] | TEXT},
        {name: value for name, value in PRESETS["toyscapes"].items() if name in MtaClipConfig.__dataclass_fields__},
    ),
    "ade20k": (150, 512, 2, {"vision_config": {"patch_size": 16}, "text_config": TEXT}, {}),
}  # fmt: skip


def build(size: str, batch: int | None = None) -> tuple[MtaClipForSemanticSegmentation, torch.Tensor, torch.Tensor]:
    """Model, images and labels (8 x 8 blocks of random classes, about a dozen per image)."""
    num_classes, side, default_batch, clip, fields = SIZES[size]
    row = [TEXT["bos_token_id"], *range(3, 3 + TOKENS_PER_NAME), TEXT["eos_token_id"]]
    config = MtaClipConfig(
        clip_config=CLIPConfig(**clip).to_dict(),
        class_names=[[f"class {index}"] for index in range(num_classes)],
        prompt_input_ids=[row] * (num_classes + 1),
        prompt_class_ids=list(range(num_classes + 1)),
        **fields,
    )
    batch = batch or default_batch
    pixel_values = torch.randn(batch, 3, side, side)
    blocks = torch.randint(num_classes, (batch, 4, 4)) % 12
    labels = blocks.repeat_interleave(side // 4, 1).repeat_interleave(side // 4, 2)
    return MtaClipForSemanticSegmentation(config), pixel_values, labels


class SameBackbone(nn.Module):
    """CLIP and pyramid as a backbone of transformers' Mask2Former."""

    def __init__(self, model: MtaClipForSemanticSegmentation):
        super().__init__()
        self.clip, self.pyramid, self.layers = model.clip, model.pyramid, model.config.feature_layers

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        states = self.clip.hidden_states(pixel_values)
        grid = [side // self.clip.patch_size for side in pixel_values.shape[-2:]]
        maps = self.pyramid([states[layer + 1][:, 1:].unflatten(1, grid) for layer in self.layers])
        return SimpleNamespace(feature_maps=maps)


def build_reference(model: MtaClipForSemanticSegmentation) -> Mask2FormerForUniversalSegmentation:
    """transformers' model with this model's backbone, sizes and loss settings."""
    config = mask2former_config(model.config)
    config.backbone_config = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], out_features=[f"stage{index}" for index in range(1, 5)]
    )
    reference = Mask2FormerForUniversalSegmentation(config)
    width = model.config.clip_config.vision_config.hidden_size
    reference.model.pixel_level_module.encoder = SameBackbone(model)
    reference.model.pixel_level_module.decoder = Mask2FormerPixelDecoder(config, [width] * 4)
    nn.init.normal_(reference.model.pixel_level_module.decoder.level_embed)
    return reference


def seconds(function) -> float:
    """CPU time, over all threads: other programs on the machine disturb it less than they do the wall clock."""
    start = time.process_time()
    function()
    return time.process_time() - start


def training_step(model: nn.Module, inputs: dict) -> None:
    model(**inputs).loss.backward()
    model.zero_grad()


def compare_times(size: str, repeats: int) -> None:
    model, pixel_values, labels = build(size)
    reference, targets = build_reference(model), MaskTargets(labels)
    ours = {"pixel_values": pixel_values, "labels": labels}
    theirs = {"pixel_values": pixel_values, "mask_labels": targets.masks, "class_labels": targets.classes}
    model.train(), reference.train()
    training_step(model, ours), training_step(reference, theirs)
    report(size, "training step", [
        (seconds(lambda: training_step(model, ours)), seconds(lambda: training_step(reference, theirs)))
        for _ in range(repeats)
    ])  # fmt: skip
    model.eval(), reference.eval()
    with torch.inference_mode():
        model(pixel_values), reference(pixel_values)
        report(size, "forward", [
            (seconds(lambda: model(pixel_values)), seconds(lambda: reference(pixel_values))) for _ in range(repeats)
        ])  # fmt: skip
        with_text = [seconds(lambda: model(pixel_values)) for _ in range(repeats)]
        model.drop_text_encoder()
        without = [seconds(lambda: model(pixel_values)) for _ in range(repeats)]
    ratio = statistics.median(with_text) / statistics.median(without)
    print(f"{size}: forward with the text encoder on board / dropped: {ratio:.3f}", flush=True)


def report(size: str, what: str, times: list[tuple[float, float]]) -> None:
    ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{size}: {what} {ours:.3f} s, Mask2Former {theirs:.3f} s, ratio {ours / theirs:.3f}", flush=True)


def peak() -> float:
    """Largest memory of this process so far, in MiB. `getrusage` would count what its parent held when it was forked."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def measure_memory(batch: int, checkpointing: bool, bfloat16: bool) -> None:
    """One training step at 512 px with 150 classes, in this process."""
    before = peak()
    model, pixel_values, labels = build("ade20k", batch)
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = model(pixel_values=pixel_values, labels=labels).loss
    loss.backward()
    weights = sum(parameter.numel() for parameter in model.parameters()) * 4 / 2**20
    settings = f"batch {batch}, {'bf16' if bfloat16 else 'fp32'}{', gradient checkpointing' if checkpointing else ''}"
    print(f"512 px, 150 classes, {settings}: peak {peak() - before:.0f} MiB, of which weights {weights:.0f}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="*", choices=sorted(SIZES), default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory_batches", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--measure_memory", nargs=3, help=argparse.SUPPRESS)  # what the child process is asked to do
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(0)
    if args.measure_memory:
        batch, checkpointing, bfloat16 = args.measure_memory
        return measure_memory(int(batch), checkpointing == "1", bfloat16 == "1")
    for size in args.sizes:
        compare_times(size, args.repeats)
    for batch in args.memory_batches:
        for settings in (("0", "0"), ("0", "1"), ("1", "0")):
            subprocess.run(
                [sys.executable, "-m", "benchmarks.timings.mta_clip", "--measure_memory", str(batch), *settings], check=True
            )


if __name__ == "__main__":
    main()
