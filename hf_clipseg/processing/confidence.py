"""Label maps with a class "none of these": where a method is not sure enough of any class it was asked for."""

from typing import Any

import numpy as np
import torch

from .image_io import ImageSource, load_image
from .inference import segment
from .label_rules import NAMES_AT_ONCE, compete
from .upsampling import upsample

ROUNDING = 1e-3


def segment_if_sure(model, processor, image: ImageSource, class_names=None, threshold: float = 0.0, **options) -> np.ndarray:
    """`inference.segment` of one image, `(H, W)` int64, where pixels below `threshold` get the id after the last class.

    Unlike `LabelRule.min_probability` it needs no class that stands for the background, and goes with every refinement.

    Args:
        threshold: probability, 0 to 1, that the best class needs; 0 gives every pixel a class.
        options: of `segment`.

    Raises:
        ValueError: a threshold outside 0..1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected a probability, 0 to 1.")
    image = load_image(image)
    if not threshold:
        return segment(model, processor, [image], class_names, **options)[0]
    recorder = _Recorder(processor)
    (label_map,) = segment(model, recorder, [image], class_names, **options)
    sure = best_probability(recorder.logits[0], image.size[::-1], recorder.extent).cpu().numpy()
    return np.where(sure < threshold, len(recorder.logits[0]), label_map)


def best_probability(logits: torch.Tensor, size: tuple[int, int], extent: tuple[float, float] = (1.0, 1.0)) -> torch.Tensor:
    """`(height, width)` probability of the best class of `logits (classes, h, w)`; `extent` as in `upsampling.upsample`.

    Logits that are shares of a whole already, such as those of GroupViT, stay as they are; others pass a softmax. With a single
    class there is nothing to choose from, and a softmax is 1 everywhere.
    """
    are_shares = bool(logits.min() >= 0 and logits.sum(0).max() <= 1 + ROUNDING)
    parts = torch.arange(len(logits), device=logits.device).split(NAMES_AT_ONCE)
    best, _, log_total = compete((part, upsample(logits[part].float(), size, extent)) for part in parts)
    return best if are_shares else (best - log_total).exp()


class _Recorder:
    """A processor that keeps the logits it post-processes."""

    def __init__(self, processor):
        self.processor = processor
        self.logits: Any = None
        self.extent = (1.0, 1.0)

    def __getattr__(self, name: str):
        return getattr(self.processor, name)

    def __call__(self, *args, **kwargs):
        return self.processor(*args, **kwargs)

    def post_process_semantic_segmentation(self, outputs, **kwargs):
        self.logits, self.extent = outputs.logits, (kwargs.get("extents") or [self.extent])[0]
        return self.processor.post_process_semantic_segmentation(outputs, **kwargs)
