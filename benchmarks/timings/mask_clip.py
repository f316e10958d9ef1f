"""What MaskCLIP costs on top of CLIP: time against the bare vision encoder, and memory of a large label map.

    python benchmarks/timings/mask_clip.py

Both models are timed in turn in one run, on a randomly initialised ViT-B/16 with 171 classes whose texts are cached. The figure
is the ratio of the medians; single times depend on the machine.
"""

import argparse
import resource
import statistics
import time

import torch
from tqdm import trange
from transformers import CLIPConfig, CLIPModel

from hf_clipseg import MaskClipConfig, MaskClipForSemanticSegmentation
from hf_clipseg.processing.upsampling import upsample_argmax


def build(num_classes: int) -> tuple[CLIPModel, MaskClipForSemanticSegmentation]:
    """A bare CLIP and a MaskCLIP with the same weights and random class embeddings."""
    clip = CLIPModel(CLIPConfig(vision_config={"patch_size": 16})).eval()
    names = [[f"class {index}"] for index in range(num_classes)]
    model = MaskClipForSemanticSegmentation(MaskClipConfig(clip_config=clip.config.to_dict(), class_names=names)).eval()
    model.clip.load_state_dict(clip.state_dict())
    model.class_embeds.copy_(torch.nn.functional.normalize(torch.randn_like(model.class_embeds), dim=-1))
    return clip, model


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare_times(num_classes: int, image_size: int, repeats: int) -> None:
    clip, model = build(num_classes)
    pixel_values = torch.randn(1, 3, image_size, image_size)
    bare = lambda: clip.get_image_features(pixel_values, interpolate_pos_encoding=True)  # noqa: E731
    dense = lambda: model(pixel_values)  # noqa: E731
    bare(), dense()
    times = [(seconds(bare), seconds(dense)) for _ in trange(repeats, desc=f"{image_size} px")]
    bare_median, dense_median = (statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"{image_size} px, {num_classes} classes: CLIP vision forward {bare_median:.3f} s, MaskCLIP {dense_median:.3f} s, "
        f"ratio {dense_median / bare_median:.3f}"
    )


def measure_memory(num_classes: int, image_size: int) -> None:
    """Peak memory that a label map adds, against what all logits at full size would take."""
    logits = torch.randn(num_classes, image_size // 16, image_size // 16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    upsample_argmax(logits, (image_size, image_size))
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    full = num_classes * image_size**2 * 4 / 2**20
    print(
        f"{num_classes}-class label map at {image_size} px: peak memory +{added:.0f} MiB (all logits at once: {full:.0f} MiB)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num_classes", type=int, default=171)
    parser.add_argument("--image_size", type=int, nargs="+", default=[224, 512])
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    with torch.inference_mode():
        measure_memory(arguments.num_classes, 1024)  # first: the peak of the process only ever rises
        for size in arguments.image_size:
            compare_times(arguments.num_classes, size, arguments.repeats)
