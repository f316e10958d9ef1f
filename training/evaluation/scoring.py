"""Scores a model on a source of images with masks: the loop behind `training.evaluate`, for any process count.

Trainers may call `score` between steps; the command-line script adds oracles, provenance and files.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from tqdm.auto import tqdm

from hf_clipseg.clip.text_bank import ClassName
from hf_clipseg.evaluation.metrics import BoundaryF, ConfusionMatrix, summarise
from hf_clipseg.processing.inference import segment

from .oracle import WHOLE, PatchClassifier, dense_features, through_the_grid

BATCHES_READ_AT_ONCE = 4  # images of one size share a batch, so a larger pool fills the batches better


class Scores:
    """Everything that is counted; `reduce` sums it over the processes.

    Args:
        num_classes: C.
        classifiers: oracles to score beside the model, by the name of their figure.
    """

    def __init__(self, num_classes: int, classifiers: dict[str, PatchClassifier]):
        self.classifiers = classifiers
        self.confusions = {name: ConfusionMatrix(num_classes) for name in ("mIoU", "grid_limit", *classifiers)}
        self.boundary = BoundaryF(num_classes)
        self.num_images = 0
        self.seconds = 0.0

    def update(
        self,
        mask: np.ndarray,
        prediction: np.ndarray,
        grid: tuple[int, int],
        features: torch.Tensor | None = None,
        extent: tuple[float, float] = WHOLE,
    ) -> None:
        """Adds one image: `(H, W)` maps, the grid of the model's logits, dense features where there are oracles, and the
        share of the grid's height and width that shows the image."""
        self.confusions["mIoU"].update(prediction, mask)
        self.boundary.update(prediction, mask)
        self.confusions["grid_limit"].update(through_the_grid(mask, grid, extent), mask)
        for name, classifier in self.classifiers.items():
            self.confusions[name].update(classifier.label_map(features, mask.shape, extent), mask)
        self.num_images += 1

    def reduce(self, accelerator: Accelerator) -> None:
        """Sums counts over the processes; of the times the slowest process's stays."""

        def total(counts: torch.Tensor) -> torch.Tensor:
            return accelerator.reduce(counts.to(accelerator.device)).cpu()

        for confusion in self.confusions.values():
            confusion.matrix = total(confusion.matrix)
        self.boundary.totals = total(self.boundary.totals)
        self.num_images = int(total(torch.tensor(self.num_images)))
        self.seconds = float(accelerator.gather(torch.tensor([self.seconds], device=accelerator.device)).max())

    def figures(self, class_names: Sequence[str], unseen: Sequence[int] = ()) -> dict:
        """All figures as plain values; None for what was not asked for or has no value."""
        figures = summarise(self.confusions["mIoU"], unseen)
        figures["per_class_iou"] = dict(zip(class_names, figures["per_class_iou"], strict=True))
        figures["boundary_f"] = None if np.isnan(self.boundary.score()) else self.boundary.score()
        figures["images_per_second"] = self.num_images / max(self.seconds, 1e-9)
        for name in ("grid_limit", "oracle_mIoU", "oracle_prototypes_mIoU"):
            figures[name] = summarise(self.confusions[name])["mIoU"] if name in self.confusions else None
        return figures


class LogitGrid:
    """`grid(image_size) -> (h, w)`: cells of the model's logits for an image of `(width, height)` pixels.

    With windows and scales it is the grid that the windows at the largest scale make up together.
    """

    def __init__(self, model, processor, class_names, window: int | None = None, scales: Sequence[float] = (1.0,)):
        self.model, self.processor, self.window, self.scale = model, processor, window, max(scales)
        self.text_inputs = {} if class_names is None else processor(class_names=class_names).to(model.device)
        self._grids: dict[tuple[int, int], tuple[int, int]] = {}

    def __call__(self, image_size: tuple[int, int]) -> tuple[int, int]:
        if image_size not in self._grids:
            self._grids[image_size] = self._measure(image_size)
        return self._grids[image_size]

    @torch.no_grad()
    def _measure(self, image_size: tuple[int, int]) -> tuple[int, int]:
        pixels = self.processor(images=[Image.new("RGB", image_size)])["pixel_values"]
        sides = [max(1, round(side * self.scale)) for side in pixels.shape[-2:]]
        shown = [side if self.window is None else min(side, self.window) for side in sides]
        blank = pixels.new_zeros(1, 3, *shown).to(self.model.device, self.model.dtype)
        cells = self.model(pixel_values=blank, **self.text_inputs).logits.shape[-2:]
        return tuple(max(1, round(count * side / part)) for count, side, part in zip(cells, sides, shown, strict=True))


def score(
    model,
    processor,
    source,
    class_names: Sequence[ClassName] | None,
    num_classes: int,
    accelerator: Accelerator,
    options: dict | None = None,
    classifiers: dict[str, PatchClassifier] | None = None,
    on_sample: Callable[[dict, np.ndarray], None] | None = None,
) -> Scores:
    """Segments every image of `source` and compares it with its mask; the processes share the images.

    Args:
        source: `len()` and items `{"image": RGB PIL image, "mask": (H, W) int64, "key": str}`.
        class_names: passed to the model; None where its baked classes are those of the masks.
        num_classes: number of classes of the masks.
        options: further arguments of `hf_clipseg.processing.inference.segment`.
        classifiers: oracles to score on the model's dense features.
        on_sample: called with each item and its label map, in this process.

    Returns:
        Scores over all processes; the same object in each of them.
    """
    options, scores = options or {}, Scores(num_classes, classifiers or {})
    grid = LogitGrid(model, processor, class_names, options.get("window"), options.get("scales", (1.0,)))
    indices = range(accelerator.process_index, len(source), accelerator.num_processes)
    with tqdm(total=len(indices), desc="images", disable=not accelerator.is_main_process, mininterval=2) as bar:
        for samples in read_samples(source, indices, BATCHES_READ_AT_ONCE * options.get("batch_size", 8)):
            images = [sample["image"] for sample in samples]
            started = time.perf_counter()
            predictions = segment(model, processor, images, class_names, **options)
            scores.seconds += time.perf_counter() - started
            features = dense_features(model, processor, images) if classifiers else [None] * len(images)
            for sample, prediction, dense in zip(samples, predictions, features, strict=True):
                (extent,) = processor.image_processor.content_extents([sample["mask"].shape])
                scores.update(sample["mask"], prediction, grid(sample["image"].size), dense, extent)
                if on_sample is not None:
                    on_sample(sample, prediction)
            bar.update(len(samples))
    scores.reduce(accelerator)
    return scores


def read_samples(source, indices: Sequence[int], pool: int) -> Iterator[list[dict]]:
    """Items of `source` in lists of at most `pool`."""
    for first in range(0, len(indices), pool):
        yield [source[index] for index in indices[first : first + pool]]
