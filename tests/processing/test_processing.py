"""The processor: CLIP's own preprocessing to the bit, sizes, label maps, prompts, and images as people have them."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import SizeDict

from hf_clipseg import SegmentationProcessor
from hf_clipseg.processing import processing_segmentation
from hf_clipseg.processing.image_io import load_image
from hf_clipseg.processing.image_processing_segmentation import SegmentationImageProcessor, output_size, reduce_labels

from ..tiny import tiny_tokenizer


@pytest.fixture
def processor() -> SegmentationProcessor:
    size = {"shortest_edge": 32, "longest_edge": 128}
    return SegmentationProcessor(SegmentationImageProcessor(size=size, size_divisor=8), tiny_tokenizer(), templates="photo")


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_published_preprocessing_is_reproduced_exactly(real_data):
    """Seven published tensors of OpenAI's preprocessing: resize 224 bicubic, centre crop, normalise. No difference at all."""
    reference = np.load(real_data / "clip_refs/clip_retrieval/expected.npz")
    processor = SegmentationImageProcessor(
        size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}, do_center_crop=True, size_divisor=1
    )
    for name, expected in zip(reference["names"], reference["preprocessed"], strict=True):
        image = load_image(real_data / f"clip_refs/clip_retrieval/images/{name}.jpg")
        own = processor(image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(own, expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000))
def test_output_size_keeps_aspect_and_bounds(height, width):
    size = SizeDict(shortest_edge=336, longest_edge=1344)
    new_height, new_width = output_size((height, width), size, 16)
    assert new_height % 16 == 0 and new_width % 16 == 0
    assert 16 <= min(new_height, new_width) <= 336 and max(new_height, new_width) <= 1344
    if max(height, width) <= 4 * min(height, width):
        assert min(new_height, new_width) == 336
        assert abs(max(new_height, new_width) - 336 * max(height, width) / min(height, width)) <= 16
    assert output_size((width, height), size, 16) == (new_width, new_height)


def test_label_maps_follow_the_image_without_new_values(processor):
    label_map = np.zeros((64, 96), dtype=np.uint8)
    label_map[:, 48:], label_map[0, 0] = 7, 255
    inputs = processor(images=picture(64, 96), segmentation_maps=label_map)
    assert inputs["labels"].dtype == torch.int64 and inputs["labels"].shape == (*inputs["pixel_values"].shape[:1], 32, 48)
    assert set(inputs["labels"].unique().tolist()) <= {0, 7, 255}
    assert (inputs["labels"][0, :, 24:] == 7).all() and (inputs["labels"][0, 1:, :24] == 0).all()


def test_label_map_resize_is_nearest_exact():
    label_map = np.random.default_rng(0).integers(0, 20, (1, 37, 53), dtype=np.uint8)
    processor = SegmentationImageProcessor(size={"height": 16, "width": 24}, size_divisor=8)
    own = processor(picture(37, 53), label_map[0], return_tensors="pt")["labels"]
    expected = torch.nn.functional.interpolate(torch.from_numpy(label_map)[None].float(), (16, 24), mode="nearest-exact")
    assert torch.equal(own, expected[0].long())


def test_reduce_labels_keeps_the_ignored():
    np.testing.assert_array_equal(reduce_labels(np.array([[0, 1, 150, 255]])), [[255, 0, 149, 255]])
    processor = SegmentationImageProcessor(size={"height": 8, "width": 8}, size_divisor=8)
    labels = processor(picture(8, 8), np.full((8, 8), 0, dtype=np.uint8), do_reduce_labels=True, return_tensors="pt")["labels"]
    assert (labels == 255).all()


def test_sizes_that_differ_are_reported(processor):
    with pytest.raises(ValueError, match="Image 0 is 20 x 30 .* map is\\s+30 x 20"):
        processor(images=picture(20, 30), segmentation_maps=np.zeros((30, 20), dtype=np.uint8))
    with pytest.raises(ValueError, match="2 images and 1 segmentation maps"):
        processor(images=[picture(8, 8)] * 2, segmentation_maps=[np.zeros((8, 8), dtype=np.uint8)])


def test_prompt_tokens_are_as_short_as_the_names_allow(processor):
    inputs = processor(class_names=["sky", ["boat", "ship"]])
    assert inputs["input_ids"].shape == (3, 7)  # start a photo of a NAME end
    assert inputs["name_ids"].tolist() == [0, 1, 2] and inputs["class_ids"].tolist() == [0, 1, 1]
    assert "pixel_values" not in inputs


def test_overlong_names_are_refused(processor):
    with pytest.raises(ValueError, match="'a photo of a red red.*26 tokens and the text encoder reads 16"):
        processor(class_names=["sky", "red " * 20])


def test_unknown_words_are_found(processor):
    assert processor.unknown_words(["sky", ["Boat", "zeppelin ship"], "<b>"]) == ["zeppelin", "<b>"]


def test_nothing_to_do(processor):
    with pytest.raises(ValueError, match="images, class_names, or both"):
        processor()


def test_post_processing_checks_its_arguments(processor):
    outputs = {"logits": torch.randn(2, 3, 4, 4)}
    post_process = processor.post_process_semantic_segmentation
    assert post_process(outputs)[0].shape == (4, 4)
    with pytest.raises(ValueError, match="1 target_sizes for a batch of 2"):
        post_process(outputs, [(8, 8)])
    with pytest.raises(ValueError, match="refinement must be one of"):
        post_process(outputs, [(8, 8)] * 2, refinement="sharpen", images=[picture(8, 8)] * 2)
    with pytest.raises(ValueError, match="needs the 2 original images"):
        post_process(outputs, [(8, 8)] * 2, refinement="pamr")


def test_refinement_follows_image_edges(processor):
    """Logits that put a boundary in the wrong place are pulled to the edge in the image."""
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:, 18:] = 255
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 0, :, :2], logits[:, 1, :, 2:] = 2.0, 2.0  # the boundary of the logits lies at column 16
    truth = torch.from_numpy((pixels[..., 0] > 0).astype(np.int64))
    plain, refined = (
        processor.post_process_semantic_segmentation({"logits": logits}, [(32, 32)], refinement, [Image.fromarray(pixels)])[0]
        for refinement in (None, "pamr")
    )
    assert (refined == truth).float().mean() > (plain == truth).float().mean()
    assert (refined == truth).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "HSV", "LAB"])
def test_every_mode_becomes_rgb(mode):
    grey = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1)))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    elif mode == "LAB":
        image = Image.merge("LAB", [grey] * 3)
    else:
        image = grey.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr", "HSV", "RGBA") else grey.convert(mode)
    loaded = load_image(image)
    assert loaded.mode == "RGB" and loaded.size == (64, 48)
    if mode in ("L", "P", "RGB", "RGBA", "CMYK", "I;16", "I"):
        np.testing.assert_allclose(np.asarray(loaded)[..., 0], np.asarray(grey), atol=2)


def test_orientation_tag_is_applied(tmp_path):
    image = picture(20, 30)
    exif = image.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees to display
    image.save(tmp_path / "rotated.png", exif=exif)
    assert load_image(tmp_path / "rotated.png").size == (20, 30)


def test_transparent_pixels_become_white():
    assert np.asarray(load_image(Image.new("RGBA", (2, 2), (0, 0, 0, 0)))).min() == 255


def test_broken_files_are_named(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    buffer = io.BytesIO()
    picture(200, 200).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:5000])
    for name, message in [("empty.jpg", "empty.jpg is no image"), ("text.png", "no image"), ("cut.png", "damaged")]:
        with pytest.raises(ValueError, match=message):
            load_image(tmp_path / name)
    with pytest.raises(ValueError, match="no image file"):
        load_image(tmp_path / "missing.png")


def test_gigantic_images_are_refused_before_decoding():
    with pytest.raises(ValueError, match="20000 x 20000"):
        load_image(Image.new("1", (20_000, 20_000)))


def test_tokens_are_remembered_per_tokenizer_and_stay_right(monkeypatch):
    first, second = (SegmentationProcessor(SegmentationImageProcessor(), tiny_tokenizer()) for _ in range(2))
    calls = []
    plain = type(first.tokenizer).__call__
    monkeypatch.setattr(type(first.tokenizer), "__call__", lambda *a, **k: (calls.append(1), plain(*a, **k))[1])
    tokens = first(class_names=["sky", "boat"])["input_ids"]
    expected = tokens.clone()
    tokens.zero_()  # what the caller does with them is not remembered
    assert torch.equal(first(class_names=["sky", "boat"])["input_ids"], expected) and len(calls) == 1
    assert not torch.equal(first(class_names=["sky", "car"])["input_ids"], expected)
    second(class_names=["sky", "boat"])
    assert len(calls) == 3
    assert first.tokenizer.unk_token_id in first(class_names=["zeppelin"])["input_ids"]
    first.tokenizer.add_tokens(["zeppelin"])
    assert len(first.tokenizer) - 1 in first(class_names=["zeppelin"])["input_ids"]
    for name in ("tree", "sea", "grass", "ship"):
        first(class_names=[name])
    assert len(processing_segmentation._kept_tokens[first.tokenizer]) == processing_segmentation.TOKENS_KEPT
