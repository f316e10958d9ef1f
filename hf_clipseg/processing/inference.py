"""From images to label maps with any method of this package: the one path that the app, the evaluator and users share.

A method needs `model(pixel_values=..., [input_ids, name_ids, class_ids]).logits` and a `SegmentationProcessor`; nothing
here knows which method it is.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..clip.text_bank import ClassName, normalise_class_names
from ..outputs import SegmentationOutput
from .image_io import ImageSource, batches_of_one_size, load_image
from .label_rules import LabelRule
from .sliding_window import multi_scale_logits, sliding_window_logits

OUTPUT_STRIDE = 4
"""Pixels of the model's input per cell of the canvas on which windows are averaged: fast. 1 is exact."""


def segment(
    model,
    processor,
    images: Sequence[ImageSource],
    class_names: Sequence[ClassName] | None = None,
    window: int | None = None,
    stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    refinement: str | None = None,
    batch_size: int = 8,
    templates: str | Sequence[str] | None = None,
    autocast_dtype: torch.dtype | None = None,
    output_stride: int = OUTPUT_STRIDE,
    rule: LabelRule | None = None,
) -> list[np.ndarray]:
    """Segments images of any sizes.

    Images of one size share a batch, so none is distorted; the class prompts are encoded once for all of them.

    Args:
        model: any `...ForSemanticSegmentation` of this package; it is run in eval mode and left in the mode it was in.
        processor: its `SegmentationProcessor`.
        images: paths, bytes, PIL images or arrays.
        class_names: one name, or a list of synonyms, per class; the model's baked classes where left out.
        window: side of sliding windows, in pixels of the model's input (after the processor's resizing), a multiple
            of `output_stride`. None shows the model the whole image.
        stride: distance of the windows, a multiple of `output_stride`; half a window where left out.
        scales: image sizes whose logits are averaged, as factors of the model's input size.
        flip: also average over the mirror images.
        refinement: as in `SegmentationProcessor.post_process_semantic_segmentation`.
        batch_size: images, or windows, per forward pass. On a CPU more than one costs memory and gains no time.
        templates: overrides the processor's own.
        autocast_dtype: run the model in `torch.bfloat16` or `torch.float16` where that is safe.
        output_stride: pixels per cell of the canvas on which windows are averaged: 4 is fast, 1 exact.
        rule: a background threshold, names that compete, PAMR on scores: see `LabelRule`. PAMR follows the picture as the model
            sees it, not the original. In place of `refinement`.

    Returns:
        One `(H, W)` int64 array of class ids per image, in the image's own size and in the order given.
    """
    segmenter = BatchSegmenter(
        model, processor, class_names, window, stride, scales, flip, refinement, batch_size, templates, autocast_dtype,
        output_stride, rule,
    )  # fmt: skip
    pictures = [load_image(image) for image in images]
    label_maps: list[Any] = [None] * len(pictures)
    with evaluating(model):
        for batch in batches_of_one_size(pictures, batch_size):
            for index, label_map in zip(batch, segmenter([pictures[index] for index in batch]), strict=True):
                label_maps[index] = label_map
    return label_maps


@contextmanager
def evaluating(model) -> Iterator[None]:
    """The model in eval mode, and afterwards in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class BatchSegmenter:
    """What `segment` does with one batch, the prompts tokenised once for all of them. Arguments as there; run it in eval mode.

    Several threads may call it at once: on a CPU they run side by side, on an accelerator they decode, prepare and collect
    beside the one that has the device, so that its memory is that of one batch.
    """

    def __init__(
        self,
        model,
        processor,
        class_names: Sequence[ClassName] | None = None,
        window: int | None = None,
        stride: int | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        refinement: str | None = None,
        batch_size: int = 8,
        templates: str | Sequence[str] | None = None,
        autocast_dtype: torch.dtype | None = None,
        output_stride: int = OUTPUT_STRIDE,
        rule: LabelRule | None = None,
    ):
        check_options(class_names, window, stride, batch_size, templates, rule)
        self.model, self.processor, self.rule, self.refinement = model, processor, rule, refinement
        self.window, self.batch_size, self.scales, self.flip = window, batch_size, tuple(scales), flip
        self.stride = stride or (None if window is None else default_stride(window, output_stride))
        self.autocast_dtype, self.output_stride = autocast_dtype, output_stride
        self.text_inputs: Any = {}
        self.class_ids = self.twins = None
        if class_names is not None:
            self.text_inputs = processor(class_names=class_names, templates=templates, return_tensors="pt").to(model.device)
            if rule is not None and rule.per_name:  # as if every name were a class: one channel each
                self.class_ids = self.text_inputs["class_ids"]
                self.text_inputs["class_ids"] = torch.arange(len(self.class_ids), device=self.class_ids.device)
                self.twins = first_of_each_name(class_names).to(model.device)
        self._device_turn: Any = nullcontext() if model.device.type == "cpu" else threading.Lock()

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[np.ndarray]:
        """Pictures of one size, as `load_image` gives them -> one `(H, W)` int64 array of class ids each."""
        pixel_values, extents = model_inputs(self.processor, pictures, None if self.window is None else self.output_stride)
        with self._device_turn:
            pixel_values = pixel_values.to(self.model.device, self.model.dtype)
            maps = self.processor.post_process_semantic_segmentation(
                SegmentationOutput(logits=multi_scale_logits(self._predict_windows, pixel_values, self.scales, self.flip)),
                target_sizes=[picture.size[::-1] for picture in pictures],
                refinement=self.refinement,
                images=pictures,
                rule=self.rule,
                class_ids=self.class_ids,
                extents=extents,
                guides=content(pixel_values, extents),
            )
            return [label_map.cpu().numpy() for label_map in maps]

    def _predict(self, pixel_values: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.model.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            logits = self.model(pixel_values=pixel_values, **self.text_inputs).logits
        return logits if self.twins is None else logits[:, self.twins]

    def _predict_windows(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.window is None:
            return self._predict(pixel_values)
        window, stride, output_stride = self.window, self.stride, self.output_stride
        return sliding_window_logits(self._predict, pixel_values, window, stride, self.batch_size, output_stride)


def model_inputs(processor, images: Sequence, output_stride: int | None) -> tuple[torch.Tensor, list[tuple[float, float]]]:
    """`pixel_values (batch, 3, height, width)` of images of one size, and the share of them that shows the image.

    Args:
        output_stride: of the canvas for windows, which fit the image without padding to the patch grid; None for whole images.
    """
    sizes = [image.size[::-1] for image in images]
    if output_stride is None or not processor.image_processor.do_pad:
        pixel_values = processor(images=images, return_tensors="pt")["pixel_values"]
        return pixel_values, processor.image_processor.content_extents(sizes)
    pixel_values = processor(images=images, size_divisor=1, return_tensors="pt")["pixel_values"]
    height, width = pixel_values.shape[-2:]
    below, right = -height % output_stride, -width % output_stride
    extents = [(height / (height + below), width / (width + right))] * len(images)
    return torch.nn.functional.pad(pixel_values, (0, right, 0, below)), extents


def content(pixel_values: torch.Tensor, extents: Sequence[tuple[float, float]]) -> list[torch.Tensor]:
    """The part of each image that is no padding, `(3, h, w)`."""
    height, width = pixel_values.shape[-2:]
    return [
        pixels[:, : round(height * rows), : round(width * columns)]
        for pixels, (rows, columns) in zip(pixel_values, extents, strict=True)
    ]


def first_of_each_name(class_names: Sequence[ClassName]) -> torch.Tensor:
    """`(names,)`: the first place of every name, so that a name of two classes scores the same in both, to the last bit.

    Otherwise rounding, and not the order of the classes, would decide between them.
    """
    names = [name.lower() for names in normalise_class_names(class_names) for name in names]
    return torch.tensor([names.index(name) for name in names])


def default_stride(window: int, output_stride: int = OUTPUT_STRIDE) -> int:
    """Half a window, on the canvas that windows are averaged on."""
    return max(1, window // 2 // output_stride) * output_stride


def check_options(class_names, window, stride, batch_size: int, templates, rule: LabelRule | None = None) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
    if stride is not None and window is None:
        raise ValueError(f"stride is {stride}, but there is no window; pass window=..., or leave stride out.")
    if templates is not None and class_names is None:
        raise ValueError("templates only matter for class_names of this call; pass class_names, or leave templates out.")
    if rule is not None and rule.per_name and class_names is None:
        raise ValueError("A rule with per_name=True lets names compete: pass class_names with the names of every class.")
