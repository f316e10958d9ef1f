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
from ..refinement.crf import dense_crf
from ..refinement.pamr import pamr
from .image_io import load_image
from .upsampling import upsample, upsample_argmax

REFINEMENTS = {"pamr": pamr, "crf": dense_crf}
"""Name -> function of `(images (1, 3, H, W), probabilities (1, C, H, W))` that returns refined probabilities."""

REFINEMENT_SIDE = 640
"""Refinement works at most at this size (longer side): its memory grows with the area, and photographs do not need more."""


class SegmentationImageKwargs(ImagesKwargs, total=False):
    """
    size_divisor (`int`, *optional*): both sides are rounded up to a multiple of it (the patch size).
    do_reduce_labels (`bool`, *optional*): label 0 becomes 255, every other label one less, 255 stays.
    """

    size_divisor: int | None
    do_reduce_labels: bool | None


class SegmentationImageProcessor(PilBackend):
    """Images -> `pixel_values (batch, 3, height, width)`; label maps -> `labels (batch, height, width)` int64.

    The short side is resized to `size["shortest_edge"]`, unless the long side would pass `size["longest_edge"]`. Images of one
    call that end at different sizes are stretched to a common one, so that they stack; post-processing stretches back. To
    reproduce CLIP's own preprocessing, pass `do_center_crop=True, size_divisor=1`.
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
        kwargs.update(do_rescale=False, do_normalize=False, resample=PILImageResampling.NEAREST)
        # Centred nearest neighbour, which torch calls nearest-exact, is what PIL's NEAREST does.
        resized = [array[0].astype(np.int64) for array in self._preprocess(maps, **kwargs)]
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
        **kwargs,
    ) -> list[np.ndarray]:
        if do_resize:
            sizes = [output_size(image.shape[-2:], size, size_divisor) for image in images]
            if not do_center_crop:
                sizes = [tuple(max(sides) for sides in zip(*sizes, strict=True))] * len(images)
            images = [
                self.resize(image, SizeDict(height=height, width=width), resample)
                for image, (height, width) in zip(images, sizes, strict=True)
            ]
        if do_center_crop:
            images = [self.center_crop(image, crop_size) for image in images]
        if do_rescale:
            images = [self.rescale(image, rescale_factor) for image in images]
        if do_normalize:
            images = [self.normalize(image, image_mean, image_std) for image in images]
        return images

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
    ) -> list[torch.Tensor]:
        """Label maps at the size of the images.

        Args:
            outputs: a model's output with `logits (batch, classes, h, w)`.
            target_sizes: `(height, width)` per image; the size of the logits where left out.
            refinement: `"pamr"` or `"crf"` moves boundaries to image edges; needs `images`.
            images: the original images, one per row of the logits, for `refinement`.

        Returns:
            One `(height, width)` int64 tensor per image. Memory stays bounded for any number of classes.
        """
        logits = outputs["logits"]
        if target_sizes is None:
            target_sizes = [tuple(logits.shape[-2:])] * len(logits)
        if len(target_sizes) != len(logits):
            raise ValueError(f"Got {len(target_sizes)} target_sizes for a batch of {len(logits)} images.")
        if refinement is None:
            return [upsample_argmax(logit, size) for logit, size in zip(logits, target_sizes, strict=True)]
        if refinement not in REFINEMENTS:
            raise ValueError(f"refinement must be one of {sorted(REFINEMENTS)} or None, got {refinement!r}.")
        if images is None or len(images) != len(logits):
            raise ValueError(f"refinement={refinement!r} needs the {len(logits)} original images: pass images=[...].")
        return [
            refined_labels(logit, size, image, refinement)
            for logit, size, image in zip(logits, target_sizes, images, strict=True)
        ]


def refined_labels(logits: torch.Tensor, size: tuple[int, int], image, refinement: str) -> torch.Tensor:
    """Refine the classes that win somewhere; refining the others would only cost time and memory."""
    shrink = min(1.0, REFINEMENT_SIDE / max(size))
    work_size = tuple(max(1, round(side * shrink)) for side in size)
    pixels = load_image(image).resize(work_size[::-1])
    pixels = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).to(logits.device)
    present = upsample_argmax(logits, size).unique()
    probabilities = upsample(logits[present], work_size).softmax(dim=0)
    return present[upsample_argmax(REFINEMENTS[refinement](pixels[None], probabilities[None])[0], size)]


def output_size(image_size: tuple[int, int], size: SizeDict, size_divisor: int | None) -> tuple[int, int]:
    """`(height, width)` after resizing: aspect kept, both sides at least one patch and a multiple of it."""
    height, width = image_size
    divisor = size_divisor or 1
    if size.height and size.width:
        target = (size.height, size.width)
    else:
        short, long = min(height, width), max(height, width)
        new_short, new_long = size.shortest_edge, int(size.shortest_edge * long / short)  # int() as CLIP does
        if size.longest_edge and new_long > size.longest_edge:
            new_short, new_long = int(size.longest_edge * short / long), size.longest_edge
        target = (new_short, new_long) if height <= width else (new_long, new_short)
    return tuple(max(1, -(-side // divisor)) * divisor for side in target)


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
