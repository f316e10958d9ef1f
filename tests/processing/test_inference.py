"""`segment` against the steps a user would write out by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_clipseg.outputs import SegmentationOutput
from hf_clipseg.processing import image_processing_segmentation
from hf_clipseg.processing.image_io import batches_of_one_size
from hf_clipseg.processing.inference import first_of_each_name, segment
from hf_clipseg.processing.sliding_window import multi_scale_logits, sliding_window_logits
from hf_clipseg.refinement.refinements import REFINEMENTS

from ..tiny_segmenter import CLASS_NAMES, tiny_segmenter

SIZES = [(40, 30), (64, 64), (40, 30), (97, 31), (1, 1), (40, 30)]  # (width, height)


@pytest.fixture(scope="module")
def segmenter():
    return tiny_segmenter()


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]


def by_hand(model, processor, image, predict=None, refinement=None, **processor_options):
    """One image, step by step through the public contract."""
    inputs = processor(images=image, class_names=CLASS_NAMES, return_tensors="pt", **processor_options)
    pixel_values = inputs.pop("pixel_values")
    with torch.no_grad():
        if predict is None:
            logits = model(pixel_values=pixel_values, **inputs).logits
        else:
            logits = predict(lambda pixels: model(pixel_values=pixels, **inputs).logits, pixel_values)
    maps = processor.post_process_semantic_segmentation(
        SegmentationOutput(logits=logits), [image.size[::-1]], refinement, [image]
    )
    return maps[0].numpy()


def agreement(one, other):
    return np.mean([np.mean(a == b) for a, b in zip(one, other, strict=True)])


def test_mixed_sizes_in_batches_equal_one_image_at_a_time(segmenter, images):
    maps = segment(*segmenter, images, CLASS_NAMES, batch_size=2)
    assert [label_map.shape for label_map in maps] == [(height, width) for width, height in SIZES]
    assert all(label_map.dtype == np.int64 for label_map in maps)
    assert len(np.unique(np.concatenate([label_map.ravel() for label_map in maps]))) > 1
    assert agreement(maps, [by_hand(*segmenter, image) for image in images]) > 0.999


@pytest.mark.parametrize(
    ("options", "predict"),
    [
        ({"window": 24, "stride": 12}, lambda model, pixels: sliding_window_logits(model, pixels, 24, 12)),
        ({"window": 24}, lambda model, pixels: sliding_window_logits(model, pixels, 24, 12)),
        ({"scales": (0.5, 1.5)}, lambda model, pixels: multi_scale_logits(model, pixels, (0.5, 1.5))),
        ({"flip": True}, lambda model, pixels: multi_scale_logits(model, pixels, flip=True)),
    ],
)
def test_options_reach_the_tools(segmenter, images, options, predict):
    maps = segment(*segmenter, images[:2], CLASS_NAMES, **options)
    assert agreement(maps, [by_hand(*segmenter, image, predict) for image in images[:2]]) > 0.999
    assert agreement(maps, segment(*segmenter, images[:2], CLASS_NAMES)) < 1  # the option matters


def test_refinement_and_templates_reach_the_processor(segmenter, images):
    plain = segment(*segmenter, images[:1], CLASS_NAMES)
    refined = segment(*segmenter, images[:1], CLASS_NAMES, refinement="pamr")
    assert agreement(refined, [by_hand(*segmenter, images[0], refinement="pamr")]) > 0.999
    assert agreement(refined, plain) < 1
    other = segment(*segmenter, images[:1], CLASS_NAMES, templates="there is a {} in the scene")
    assert agreement(other, [by_hand(*segmenter, images[0], templates="there is a {} in the scene")]) > 0.999
    assert agreement(other, plain) < 1


def test_texts_are_encoded_once_for_all_images(segmenter, images):
    model, processor = tiny_segmenter()
    calls = []
    model.clip.text_model.register_forward_hook(lambda *_: calls.append(1))
    segment(model, processor, images, CLASS_NAMES, batch_size=1, flip=True)
    assert len(calls) == 1


def test_baked_classes_and_the_mode_of_the_model(images):
    model, processor = tiny_segmenter()
    expected = segment(model, processor, images, CLASS_NAMES)
    model.set_classes(CLASS_NAMES, processor)
    model.train()
    assert agreement(segment(model, processor, images), expected) == 1
    assert model.training


def test_half_precision_agrees_with_full(segmenter, images):
    full = segment(*segmenter, images, CLASS_NAMES)
    assert agreement(segment(*segmenter, images, CLASS_NAMES, autocast_dtype=torch.bfloat16), full) > 0.9
    model, processor = tiny_segmenter()
    assert agreement(segment(model.to(torch.bfloat16), processor, images, CLASS_NAMES), full) > 0.9


def test_anything_that_can_be_read_is_an_image(segmenter, images, tmp_path):
    images[1].save(tmp_path / "image.png")
    sources = [images[1], np.asarray(images[1]), str(tmp_path / "image.png"), (tmp_path / "image.png").read_bytes()]
    maps = segment(*segmenter, sources, CLASS_NAMES)
    assert all(np.array_equal(label_map, maps[0]) for label_map in maps)
    assert segment(*segmenter, [], CLASS_NAMES) == []


def test_batches_of_one_size(images):
    assert batches_of_one_size(images, 2) == [[0, 2], [5], [1], [3], [4]]


def test_refinement_of_a_large_image_works_at_a_bounded_size(segmenter, monkeypatch):
    sizes = []

    def remember(images, masks):
        sizes.append((images.shape, masks.shape[2:]))
        return masks

    monkeypatch.setitem(REFINEMENTS, "pamr", remember)
    wide = Image.effect_noise((2560, 800), 90)
    (label_map,) = segment(*segmenter, [wide], CLASS_NAMES, refinement="pamr")
    assert label_map.shape == (800, 2560)
    assert sizes == [((1, 3, 200, 640), (200, 640))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 8}, "there is no window"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"class_names": None, "templates": "photo"}, "pass class_names"),
        ({"class_names": None}, "no classes yet"),
        ({"class_names": []}, "non-empty list"),
        ({"window": 30, "stride": 8}, "try window 32"),
        ({"refinement": "magic"}, "refinement must be one of"),
    ],
)
def test_bad_options_are_refused(segmenter, images, options, message):
    with pytest.raises(ValueError, match=message):
        segment(*segmenter, images[:1], **{"class_names": CLASS_NAMES, **options})


def test_a_name_of_two_classes_ties_exactly():
    assert first_of_each_name([["sky", "bed"], "boat", ["Bed", "sofa"]]).tolist() == [0, 1, 2, 1, 4]


def test_which_classes_are_refined_is_seen_at_the_size_of_the_work(segmenter, monkeypatch):
    """A photograph of many megapixels is not passed through in full before it is refined at 640 pixels."""
    sizes = []
    plain = image_processing_segmentation.upsample_argmax
    monkeypatch.setattr(
        image_processing_segmentation,
        "upsample_argmax",
        lambda logits, size, *rest: (sizes.append(size), plain(logits, size, *rest))[1],
    )
    monkeypatch.setitem(REFINEMENTS, "pamr", lambda images, masks: masks)
    wide = Image.effect_noise((2560, 800), 90)
    (label_map,) = segment(*segmenter, [wide], CLASS_NAMES, refinement="pamr")
    assert label_map.shape == (800, 2560) and sizes == [(200, 640), (800, 2560)]
    assert agreement([label_map], segment(*segmenter, [wide], CLASS_NAMES)) > 0.95
