"""Image side of the processor: resize without cropping, normalise as CLIP does, treat label maps as labels, and turn logits
into label maps of the original size.

PIL backend only, so that torchvision is not needed and CLIP's published preprocessing is reproduced to the bit.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ChannelDimension, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from ..constants import IGNORE_INDEX
from ..refinement.refinements import Refinement, find_refinement
from .image_io import load_image
from .label_rules import LabelRule, rule_labels
from .resizing import output_size, pad_to, resize_unfiltered
from .upsampling import upsample, upsample_argmax

REFINEMENT_SIDE = 640
"""Refinement works at most at this size (longer side): its memory grows with the area, and photographs do not need more."""


class SegmentationImageKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]  # a TypedDict of transformers
    """
    size_divisor (`int`, *optional*): both sides become a multiple of it (the patch size), by padding or stretching.
    do_pad (`bool`, *optional*): pad below and on the right to that multiple; `False` stretches the image to it.
    round_size (`bool`, *optional*): sides to the nearest pixel, as mmsegmentation does; `False` rounds down, as CLIP does.
    antialias (`bool`, *optional*): `False` resizes as OpenCV's bilinear does, without a filter; needs `resample` bilinear.
    do_reduce_labels (`bool`, *optional*): label 0 becomes 255, every other label one less, 255 stays.
    """

    size_divisor: int | None
    round_size: bool | None
    antialias: bool | None
    do_reduce_labels: bool | None


class SegmentationImageProcessor(PilBackend):
    """Images -> `pixel_values (batch, 3, height, width)`; label maps -> `labels (batch, height, width)` int64.

    The short side is resized to `size["shortest_edge"]`, unless the long side would pass `size["longest_edge"]`. What is left
    to the patch grid, and to the largest image of the call, is padded with the mean colour (label maps: ignored), and
    post-processing leaves it out again. With `do_pad=False` images are stretched instead.
    To reproduce CLIP's own preprocessing, pass `do_center_crop=True, size_divisor=1`.
    """

    valid_kwargs = SegmentationImageKwargs
    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"shortest_edge": 336, "longest_edge": 1344}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    size_divisor = 16
    do_resize = True
    do_pad = True
    round_size = False
    antialias = True
    do_center_crop = False
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_reduce_labels = False

    def preprocess(self, images, segmentation_maps=None, **kwargs) -> BatchFeature:
        """Prepare images and, optionally, their label maps (2-D arrays or single-channel images of the same sizes)."""
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _preprocess_image_like_inputs(
        self, images, segmentation_maps, do_convert_rgb, input_data_format, do_reduce_labels, return_tensors, **kwargs
    ) -> BatchFeature:
        images = self._prepare_image_like_inputs(
            images=images, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format
        )
        data = {"pixel_values": self._preprocess(images, **kwargs)}
        if segmentation_maps is not None:
            maps = self._prepare_image_like_inputs(
                images=segmentation_maps,
                expected_ndims=2,
                do_convert_rgb=False,
                input_data_format=ChannelDimension.FIRST,
            )
            check_same_sizes(images, maps)
            data["labels"] = self._preprocess_maps(maps, do_reduce_labels, **kwargs)
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _preprocess_maps(self, maps, do_reduce_labels, **kwargs) -> list[np.ndarray]:
        kwargs.update(do_rescale=False, do_normalize=False, resample=PILImageResampling.NEAREST, antialias=True)
        # Centred nearest neighbour, which torch calls nearest-exact, is what PIL's NEAREST does.
        resized = [array[0].astype(np.int64) for array in self._preprocess(maps, fill_value=IGNORE_INDEX, **kwargs)]
        return [reduce_labels(array) for array in resized] if do_reduce_labels else resized

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling,
        size_divisor: int | None,
        do_center_crop: bool,
        crop_size: SizeDict,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
        do_pad: bool = True,
        round_size: bool = False,
        antialias: bool = True,
        fill_value: float = 0.0,
        **kwargs,
    ) -> list[np.ndarray]:
        do_pad = do_pad and not do_center_crop
        if do_resize:
            divisor = None if do_pad else size_divisor
            sizes = [output_size(image.shape[-2:], size, divisor, round_size) for image in images]
            if not do_center_crop and not do_pad:
                sizes = [largest(sizes)] * len(images)
            images = [
                self.resize(image, SizeDict(height=height, width=width), resample, antialias=antialias)
                for image, (height, width) in zip(images, sizes, strict=True)
            ]
        if do_center_crop:
            images = [self.center_crop(image, crop_size) for image in images]
        if do_rescale:
            images = [self.rescale(image, rescale_factor) for image in images]
        if do_normalize:
            images = [self.normalize(image, image_mean, image_std) for image in images]
        if do_pad:
            padded = padded_size([image.shape[-2:] for image in images], size_divisor)
            images = [pad_to(image, padded, fill_value) for image in images]
        return images

    def resize(self, image: np.ndarray, size: SizeDict, resample=None, antialias: bool = True, **kwargs) -> np.ndarray:
        """`(channels, h, w)` -> `(channels, size.height, size.width)`."""
        if antialias:
            return super().resize(image, size, resample, **kwargs)
        if resample != PILImageResampling.BILINEAR:
            raise ValueError(f"antialias=False is OpenCV's bilinear: pass resample={int(PILImageResampling.BILINEAR)} with it.")
        return resize_unfiltered(image, (size.height, size.width))

    def content_extents(self, image_sizes: Sequence[tuple[int, int]], size: dict | None = None) -> list[tuple[float, float]]:
        """The share of height and width of `pixel_values` that shows the image; the rest is padding.

        Args:
            image_sizes: `(height, width)` of the images of one call, in its order.
            size: where the call had a size of its own.
        """
        if not self._pads:
            return [(1.0, 1.0)] * len(image_sizes)
        sizes, (height, width) = self._content(image_sizes, size)
        return [(rows / height, columns / width) for rows, columns in sizes]

    @property
    def _pads(self) -> bool:
        return self.do_pad and not self.do_center_crop

    def _content(self, image_sizes, size: dict | None = None) -> tuple[list[tuple[int, int]], tuple[int, int]]:
        """Sizes of the images of one call before padding, and their common size after it."""
        sizes = [tuple(image_size) for image_size in image_sizes]
        if self.do_resize:
            target = size or self.size
            target = target if isinstance(target, SizeDict) else SizeDict(**target)
            sizes = [output_size(image_size, target, None, self.round_size) for image_size in sizes]
        return sizes, padded_size(sizes, self.size_divisor)

    def center_crop(self, image: np.ndarray, size: SizeDict, **kwargs) -> np.ndarray:
        """Crop as OpenAI's code does: transformers rounds half a pixel down, torchvision rounds it to even."""
        if image.shape[-2] < size.height or image.shape[-1] < size.width:
            return super().center_crop(image, size, **kwargs)
        top, left = (round((side - crop) / 2) for side, crop in zip(image.shape[-2:], (size.height, size.width), strict=True))
        return image[..., top : top + size.height, left : left + size.width]

    def post_process_semantic_segmentation(
        self,
        outputs,
        target_sizes: Sequence[tuple[int, int]] | None = None,
        refinement: str | None = None,
        images: Sequence | None = None,
        rule: LabelRule | None = None,
        class_ids: Sequence[int] | torch.Tensor | None = None,
        extents: Sequence[tuple[float, float]] | None = None,
        guides: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Label maps at the size of the images.

        Args:
            outputs: a model's output with `logits (batch, classes, h, w)`.
            target_sizes: `(height, width)` per image: the size of the original, or one of its aspect; the size of the logits,
                padding included, where left out.
            refinement: `"pamr"` or `"crf"` moves boundaries to image edges; needs `images`.
            images: the original images, one per row of the logits, for `refinement` and for a rule with PAMR.
            rule: background threshold, names that compete, PAMR on scores: see `LabelRule`. In place of `refinement`.
            class_ids: with a rule, the class of every channel of the logits; channel = class where left out.
            extents: the share of height and width of the logits that shows each image. By default what this processor pads
                images of `target_sizes` to; needed where the call that made the pixels had a `size` of its own.
            guides: `(batch, 3, any, any)`: pictures that PAMR on scores follows, in place of `images`.

        Returns:
            One `(height, width)` int64 tensor per image. Memory stays bounded for any number of classes.
        """
        refine = find_refinement(refinement)
        logits = outputs["logits"]
        if target_sizes is None:
            target_sizes, extents = [tuple(logits.shape[-2:])] * len(logits), [(1.0, 1.0)] * len(logits)
        if len(target_sizes) != len(logits):
            raise ValueError(f"Got {len(target_sizes)} target_sizes for a batch of {len(logits)} images.")
        if extents is None:
            extents = self._extents_of_grid(target_sizes, tuple(logits.shape[-2:]))
        if rule is not None and not rule.is_plain:
            if refine is not None:
                raise ValueError("A rule and a refinement exclude each other: the rule's pamr_iterations refine the scores.")
            if guides is None:
                guides = [None] * len(logits) if images is None else [_pixels(image).to(logits.device) for image in images]
            return [
                rule_labels(scores, class_ids, size, rule, guide, extent)
                for scores, size, guide, extent in zip(logits, target_sizes, guides, extents, strict=True)
            ]
        if refine is None:
            rows = zip(logits, target_sizes, extents, strict=True)
            return [upsample_argmax(logit, size, extent) for logit, size, extent in rows]
        if images is None or len(images) != len(logits):
            raise ValueError(f"refinement={refinement!r} needs the {len(logits)} original images: pass images=[...].")
        return [
            refined_labels(logit, size, image, refine, extent)
            for logit, size, image, extent in zip(logits, target_sizes, images, extents, strict=True)
        ]

    def _extents_of_grid(self, target_sizes, grid: tuple[int, int]) -> list[tuple[float, float]]:
        """Extents of padded images of these sizes; refuses a grid that this processor's padding cannot have led to."""
        if not self._pads or not target_sizes:
            return self.content_extents(target_sizes)
        aspect = (padded := self._content(target_sizes)[1])[1] / padded[0]
        if abs(grid[1] - grid[0] * aspect) > 1 + aspect:  # a cell of rounding along each axis
            raise ValueError(
                f"Logits of {grid[0]} x {grid[1]} cells do not come from images of (height, width) {list(target_sizes)[:4]}. "
                "Pass the sizes of the originals as target_sizes, or say with extents=[...] which part of the grid shows each."
            )
        return self.content_extents(target_sizes)


def largest(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    heights, widths = zip(*sizes, strict=True)
    return max(heights), max(widths)


def padded_size(sizes: Sequence[tuple[int, int]], size_divisor: int | None) -> tuple[int, int]:
    """The smallest multiple of `size_divisor` into which images of all `sizes` fit."""
    divisor = size_divisor or 1
    height, width = largest(sizes)
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def _pixels(image) -> torch.Tensor:
    """`(3, height, width)` uint8."""
    return torch.from_numpy(np.array(load_image(image))).permute(2, 0, 1)


def refined_labels(
    logits: torch.Tensor,
    size: tuple[int, int],
    image,
    refine: Refinement,
    extent: tuple[float, float] = (1.0, 1.0),
) -> torch.Tensor:
    """Refine the classes that win somewhere at the size of the work; refining the others would only cost time and memory."""
    shrink = min(1.0, REFINEMENT_SIDE / max(size))
    work_size = max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))
    pixels = torch.from_numpy(np.array(load_image(image).resize(work_size[::-1]))).permute(2, 0, 1).to(logits.device)
    present = upsample_argmax(logits, work_size, extent).unique()
    probabilities = upsample(logits[present], work_size, extent).softmax(dim=0)
    return present[upsample_argmax(refine(pixels[None], probabilities[None])[0], size)]


def check_same_sizes(images: list[np.ndarray], maps: list[np.ndarray]) -> None:
    if len(images) != len(maps):
        raise ValueError(f"Got {len(images)} images and {len(maps)} segmentation maps; every image needs exactly one map.")
    for index, (image, label_map) in enumerate(zip(images, maps, strict=True)):
        if image.shape[-2:] != label_map.shape[-2:]:
            raise ValueError(
                f"Image {index} is {image.shape[-2]} x {image.shape[-1]} (height x width), but its segmentation map is "
                f"{label_map.shape[-2]} x {label_map.shape[-1]}. Check that they belong together."
            )


def reduce_labels(label_map: np.ndarray) -> np.ndarray:
    """0 becomes `IGNORE_INDEX`, every other label one less, `IGNORE_INDEX` stays (ADE20K's "other" is no class)."""
    ignored = (label_map == 0) | (label_map == IGNORE_INDEX)
    return np.where(ignored, IGNORE_INDEX, label_map - 1)
