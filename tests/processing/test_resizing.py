"""Sizes by both conventions, OpenCV's bilinear, and padding that post-processing leaves out again."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import SizeDict

from hf_clipseg import SegmentationProcessor
from hf_clipseg.processing.image_processing_segmentation import SegmentationImageProcessor
from hf_clipseg.processing.resizing import output_size, resize_unfiltered

from ..tiny import tiny_tokenizer


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def processor() -> SegmentationImageProcessor:
    return SegmentationImageProcessor(size={"shortest_edge": 32, "longest_edge": 128}, size_divisor=8)


def test_opencv_is_reproduced():
    """Made once with `cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)` of OpenCV 5.0."""
    image = (np.arange(5 * 7 * 3).reshape(5, 7, 3) * 37 % 251).astype(np.uint8).transpose(2, 0, 1)
    smaller = [
        [[49, 212, 187, 130], [90, 33, 227, 170], [129, 73, 47, 106]],
        [[86, 30, 151, 167], [127, 70, 45, 207], [166, 110, 84, 90]],
        [[124, 67, 41, 152], [164, 107, 82, 88], [109, 126, 100, 127]],
    ]
    red = [
        [12, 142, 166, 150, 91, 158],
        [42, 148, 142, 180, 121, 188],
        [72, 139, 80, 118, 112, 218],
        [102, 169, 110, 93, 118, 46],
    ]
    np.testing.assert_array_equal(resize_unfiltered(image, (3, 4)), smaller)
    np.testing.assert_array_equal(resize_unfiltered(image, (4, 6))[0], red)
    assert resize_unfiltered(image, (5, 7)).tolist() == image.tolist()
    with pytest.raises(ValueError, match="8-bit"):
        resize_unfiltered(image.astype(np.float32), (3, 4))


@pytest.mark.parametrize(
    ("image_size", "expected"),
    # int(side * factor + 0.5) with factor = min(336 / short, 2048 / long), as mmsegmentation has it
    [((375, 500), (336, 448)), ((500, 334), (503, 336)), ((333, 500), (336, 505)), ((100, 1000), (205, 2048))],
)
def test_sides_are_rounded_as_mmsegmentation_does(image_size, expected):
    size = SizeDict(shortest_edge=336, longest_edge=2048)
    assert output_size(image_size, size, None, round_size=True) == expected


def test_the_setting_reaches_the_pixels():
    settings = {"size": {"shortest_edge": 16}, "do_normalize": False, "do_rescale": False, "size_divisor": 1, "resample": 2}
    image = noise(40, 60)
    own = SegmentationImageProcessor(**settings, antialias=False)(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(own, resize_unfiltered(np.asarray(image).transpose(2, 0, 1), (16, 24)))
    assert np.abs(own - SegmentationImageProcessor(**settings)(image, return_tensors="np")["pixel_values"][0]).max() > 20
    with pytest.raises(ValueError, match="pass resample=2"):
        SegmentationImageProcessor(**settings | {"resample": 3}, antialias=False)(image)


def test_images_are_padded_and_not_stretched(processor):
    image = noise(40, 50)  # 32 x 40, a multiple of 8 both ways
    wide = noise(40, 47)  # 32 x 37
    labels = np.full((40, 47), 3, dtype=np.uint8)
    alone = processor(wide, labels, return_tensors="pt")
    unpadded = processor(wide, size_divisor=1, return_tensors="pt")["pixel_values"]
    assert alone["pixel_values"].shape == (1, 3, 32, 40) and unpadded.shape == (1, 3, 32, 37)
    assert torch.equal(alone["pixel_values"][..., :37], unpadded) and not alone["pixel_values"][..., 37:].any()
    assert (alone["labels"][..., :37] == 3).all() and (alone["labels"][..., 37:] == 255).all()
    both = processor([image, wide], return_tensors="pt")["pixel_values"]
    assert torch.equal(both[0], processor(image, return_tensors="pt")["pixel_values"][0])
    assert torch.equal(both[1], alone["pixel_values"][0])
    stretched = processor(wide, do_pad=False, return_tensors="pt")["pixel_values"]
    assert stretched.shape == (1, 3, 32, 40) and stretched[..., 37:].any()


def test_a_crop_is_not_padded():
    crop = {"height": 20, "width": 20}
    pixels = SegmentationImageProcessor(size={"shortest_edge": 20}, do_center_crop=True, crop_size=crop)(noise(30, 40))
    assert pixels["pixel_values"][0].shape == (3, 20, 20)


def test_post_processing_leaves_the_padding_out(processor):
    """A grid whose value is its position: after resizing, a pixel reads the position that it has in the padded input."""
    height, width = 80, 94  # 32 x 37 (rounded down), padded to 32 x 40: 4 x 5 cells
    assert processor.content_extents([(height, width)]) == [(1.0, 37 / 40)]
    columns = torch.arange(5.0).expand(4, 5)
    for threshold in (0.9, 2.1, 3.9):  # class 1 wins right of this column of the grid
        (label_map,) = processor.post_process_semantic_segmentation(
            {"logits": torch.stack([torch.full((4, 5), threshold), columns])[None]}, [(height, width)]
        )
        positions = ((torch.arange(width) + 0.5) / width * 37 / 8 - 0.5).clamp(0, 4)
        assert torch.equal(label_map, (positions > threshold).long().expand(height, width)), threshold
    with pytest.raises(ValueError, match="do not come from images"):
        processor.post_process_semantic_segmentation({"logits": torch.zeros(1, 2, 4, 9)}, [(height, width)])


def test_images_of_one_call_share_their_padding(processor):
    sizes = [(64, 64), (64, 80), (100, 64)]  # 32 x 32, 32 x 40, 50 x 32: padded to 56 x 40
    assert processor([noise(*size) for size in sizes], return_tensors="pt")["pixel_values"].shape == (3, 3, 56, 40)
    assert processor.content_extents(sizes) == [(32 / 56, 32 / 40), (32 / 56, 1.0), (50 / 56, 32 / 40)]


def test_settings_survive_saving(processor, tmp_path):
    processor.do_pad, processor.round_size, processor.antialias = False, True, False
    SegmentationProcessor(processor, tiny_tokenizer()).save_pretrained(tmp_path)
    loaded = SegmentationProcessor.from_pretrained(tmp_path).image_processor
    assert (loaded.do_pad, loaded.round_size, loaded.antialias) == (False, True, False)
