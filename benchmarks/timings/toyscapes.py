"""What Toyscapes costs and what a patch grid can reach on it.

    OMP_NUM_THREADS=1 python benchmarks/timings/toyscapes.py --num_scenes 300

Prints images per second of one core (picture, both masks and caption; CPU time of this process, so other load does not
count), the grid limit (mIoU of the true mask, averaged to N x N tokens and up-sampled bilinearly: the best that a model
with that many tokens a side can do without refinement), and how often and how large every class appears.
"""

import argparse
import time

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate, one_hot

from hf_clipseg.toyscapes import CLASS_NAMES, UNSEEN_CLASSES, render

SIDES = (64, 96, 128)
GRIDS = (8, 12, 16, 24)
LIMIT_SIDE = 128


def images_per_second(side: int, num_scenes: int) -> float:
    for index in range(20):  # texture tiles are made once per process
        render(1, index, side, side)
    start = time.process_time()
    for index in range(num_scenes):
        render(0, index, side, side)
    return num_scenes / (time.process_time() - start)


def through_grid(mask: torch.Tensor, tokens: int) -> torch.Tensor:
    """The best map of a `tokens` x `tokens` grid for `mask` (H, W) int64, at the mask's size."""
    shares = adaptive_avg_pool2d(one_hot(mask, len(CLASS_NAMES)).permute(2, 0, 1)[None].float(), tokens)
    return interpolate(shares, size=mask.shape, mode="bilinear", align_corners=False)[0].argmax(0)


def mean_iou(confusion: np.ndarray) -> float:
    hits = np.diag(confusion)
    return float(np.mean(hits / np.maximum(confusion.sum(0) + confusion.sum(1) - hits, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_scenes", type=int, default=300)
    count, classes = parser.parse_args().num_scenes, len(CLASS_NAMES)
    torch.set_num_threads(1)
    for side in SIDES:
        print(f"{side:4d} px: {images_per_second(side, count):6.0f} images/s per core")

    confusions = {tokens: np.zeros((classes, classes)) for tokens in GRIDS}
    scenes, pixels, mentions = np.zeros(classes), np.zeros(classes), 0
    for index in range(count):
        scene = render(0, index, LIMIT_SIDE, LIMIT_SIDE, "test")
        mask = torch.from_numpy(scene.mask.astype(np.int64))
        for tokens, confusion in confusions.items():
            pairs = mask * classes + through_grid(mask, tokens)
            confusion += np.bincount(pairs.ravel().numpy(), minlength=classes**2).reshape(classes, classes)
        scenes[list(scene.image_labels)] += 1
        pixels += np.bincount(scene.mask.ravel(), minlength=classes)
        mentions += len(scene.image_labels)
    for tokens, confusion in confusions.items():
        print(f"grid limit, {tokens:2d} tokens a side: mIoU {mean_iou(confusion):.3f}")

    print(f"{mentions / count:.1f} visible classes per scene")
    print("  class         share of scenes, of all pixels, of the pixels of its scenes")
    for name, appearances, area in zip(CLASS_NAMES, scenes, pixels, strict=True):
        share = area / LIMIT_SIDE**2
        unseen = "  (unseen split)" if name in UNSEEN_CLASSES else ""
        print(f"  {name:13s} {appearances / count:6.1%} {share / count:6.1%} {share / max(appearances, 1):6.1%}{unseen}")


if __name__ == "__main__":
    main()
