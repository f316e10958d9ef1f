"""What MVP-SEG costs.

    python -m benchmarks.timings.mvp_seg inference   # baked classes against MaskCLIP, timed in turn: ratio of the medians
    python -m benchmarks.timings.mvp_seg epoch       # an epoch over cached features against one that recomputes them
    python -m benchmarks.timings.mvp_seg memory      # one optimisation step of a full-size ViT-B/16 at 512 px with 150 classes

Each is a process of its own, because peak memory only ever rises. Ratios are of one run; single times depend on the machine.
"""

import argparse
import resource
import statistics
import time
from pathlib import Path

import torch
from torch.nn.functional import normalize
from tqdm import trange
from transformers import CLIPConfig

from hf_clipseg import (
    MaskClipConfig,
    MaskClipForSemanticSegmentation,
    MvpSegConfig,
    MvpSegForSemanticSegmentation,
    SegmentationProcessor,
)
from training import train_mvp_seg
from training.data.feature_cache import cache_features, crop, stack
from training.data.openers import open_masks
from training.data.zero_shot import choose_split, crop_settings
from training.engine.loop import SampleKey


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@torch.inference_mode()
def compare_inference(clip_config: CLIPConfig, title: str, num_classes: int, image_size: int, repeats: int) -> None:
    """Both methods with the same random weights and baked classes, one image at a time."""
    shared = {"clip_config": clip_config.to_dict(), "class_names": [[f"class {index}"] for index in range(num_classes)]}
    mask_clip = MaskClipForSemanticSegmentation(MaskClipConfig(**shared)).eval()
    mvp_seg = MvpSegForSemanticSegmentation(MvpSegConfig(**shared)).eval()
    mvp_seg.clip.load_state_dict(mask_clip.clip.state_dict())
    for model in (mask_clip, mvp_seg):
        model.class_embeds.copy_(normalize(torch.randn_like(model.class_embeds), dim=-1))
    pixel_values = torch.randn(1, 3, image_size, image_size)
    mask_clip(pixel_values), mvp_seg(pixel_values)
    times = [
        (seconds(lambda: mask_clip(pixel_values)), seconds(lambda: mvp_seg(pixel_values))) for _ in trange(repeats, desc=title)
    ]
    first, second = (statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"{title}, {image_size} px, {num_classes} classes: MaskCLIP {1000 * first:.2f} ms, MVP-SEG {1000 * second:.2f} ms, "
        f"ratio {second / first:.3f}"
    )


def inference(arguments: argparse.Namespace) -> None:
    full = CLIPConfig(vision_config={"patch_size": 16})
    for size in (224, 512):
        compare_inference(full, "ViT-B/16", 171, size, arguments.repeats)
    if Path(arguments.clip).is_dir():
        small = CLIPConfig.from_pretrained(arguments.clip)
        compare_inference(small, "shipped CLIP", 30, 128, 20 * arguments.repeats)


class RecomputedCrops(train_mvp_seg.SeenCrops):
    """The same samples without the cache: every one is read, resized, and run through the encoder again."""

    def __init__(self, cache, split, model):
        super().__init__(cache, split)
        self.model = model

    @torch.no_grad()
    def batch(self, keys: list[SampleKey]) -> dict[str, torch.Tensor]:
        cache, crops = self.cache, []
        for key in keys:
            sample = cache.source[key.index]
            crops.append(crop(cache.processor, sample["image"], sample["mask"], cache.settings, key.index, 0))
        pixels, masks = stack(crops)
        labels = self.split.to_seen_numbers(self.split.hide(masks)[0])
        return {"patch_embeds": self.model.dense_features(pixels), "labels": labels}


def epoch(arguments: argparse.Namespace) -> None:
    """Times one epoch of 256 scenes in batches of 16, first the data alone, then with forward, backward and step."""
    options = ["--output_dir", "unused", "--model_name_or_path", arguments.clip, "--limit", "256"]
    args = train_mvp_seg.parse_arguments(options)
    processor = SegmentationProcessor.from_clip(args.model_name_or_path, templates="name")
    model = train_mvp_seg.build_model(args, processor).train()
    source = open_masks(args, limit=args.limit, size=(args.image_size, args.image_size))
    split = choose_split(source.class_names, args.unseen)
    cache = cache_features(model, source, processor, crop_settings(args, model.clip.patch_size))
    losses = train_mvp_seg.make_losses(args, model, processor, split, "cpu")
    optimizer = train_mvp_seg.make_optimizer(args, model)
    cached, recomputed = train_mvp_seg.SeenCrops(cache, split), RecomputedCrops(cache, split, model)
    batches = [[SampleKey(index, 0, 0) for index in range(first, first + 16)] for first in range(0, len(cache), 16)]

    def from_cache(keys):
        return train_mvp_seg.collate([cached[key] for key in keys])

    def step(batch) -> None:
        losses(model, batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    for title, use in (("features and labels", lambda batch: None), ("whole training", step)):
        fast, slow = (
            seconds(lambda read=read, use=use: [use(read(keys)) for keys in batches]) for read in (from_cache, recomputed.batch)
        )
        print(f"epoch of {len(cache)} scenes, {title}: cached {fast:.2f} s, recomputed {slow:.2f} s, {slow / fast:.1f} times")


def memory(arguments: argparse.Namespace) -> None:
    """Forward, backward and step from pixels, as `--train_batch_size` images of 512 px with labels of 512 px."""
    config = MvpSegConfig(clip_config=CLIPConfig(vision_config={"patch_size": 16}).to_dict())
    model = MvpSegForSemanticSegmentation(config).train()
    if arguments.gradient_checkpointing:
        model.activation_checkpointing_enable()
    words = torch.randint(1000, 40_000, (150, 3))
    end = config.clip_config.text_config.eos_token_id
    input_ids = torch.cat([torch.full((150, 1), 49406), words, torch.full((150, 1), end)], dim=1)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=2e-3)
    started = time.perf_counter()
    loss = model(
        torch.randn(arguments.batch_size, 3, 512, 512),
        input_ids=input_ids,
        name_ids=torch.arange(150),
        class_ids=torch.arange(150),
        labels=torch.randint(0, 150, (arguments.batch_size, 512, 512)),
    ).loss
    loss.backward()
    optimizer.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(
        f"ViT-B/16, 512 px, 150 classes, batch {arguments.batch_size}, {trained} trained parameters, checkpointing "
        f"{arguments.gradient_checkpointing}: one step {time.perf_counter() - started:.1f} s, peak memory {peak:.1f} GiB"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("inference", "epoch", "memory"))
    parser.add_argument("--clip", default="model_cards/clip-toyscapes")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch_size", type=int, default=16, help="images per step, for memory")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="for memory")
    arguments = parser.parse_args()
    {"inference": inference, "epoch": epoch, "memory": memory}[arguments.what](arguments)
