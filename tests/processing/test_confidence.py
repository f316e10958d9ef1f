"""Pixels that a method is not sure of."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_clipseg.processing.confidence import best_probability, segment_if_sure
from hf_clipseg.processing.inference import segment

from ..tiny_segmenter import tiny_segmenter

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8))
NAMES = ["sky", "sea", "boat"]


def test_unsure_pixels_get_the_id_after_the_last():
    """The probabilities are those of an independent softmax over the up-sampled logits; all other pixels stay as they were."""
    model, processor = tiny_segmenter()
    plain = segment(model, processor, [IMAGE], NAMES)[0]
    inputs = processor(images=IMAGE, class_names=NAMES, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    (extent,) = processor.image_processor.content_extents([(40, 56)])
    assert extent == (1.0, 1.0)  # so that plain interpolation is the reference
    probability = torch.nn.functional.interpolate(logits, (40, 56), mode="bilinear").softmax(1).amax(1)[0].numpy()
    threshold = float(np.median(probability))
    found = segment_if_sure(model, processor, IMAGE, NAMES, threshold)
    clear = np.abs(probability - threshold) > 1e-5
    assert np.array_equal(found[clear], np.where(probability < threshold, 3, plain)[clear])
    assert 0.3 < (found == 3).mean() < 0.7
    assert np.array_equal(segment_if_sure(model, processor, IMAGE, NAMES), plain)
    with pytest.raises(ValueError, match="threshold is 7"):
        segment_if_sure(model, processor, IMAGE, NAMES, 7)


def test_shares_are_no_logits():
    shares = torch.tensor([[[0.7, 0.2]], [[0.2, 0.3]]])
    torch.testing.assert_close(best_probability(shares, (1, 2)), torch.tensor([[0.7, 0.3]]))
    logits = torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]]])
    expected = torch.tensor([[np.exp(2) / (np.exp(2) + 1), 0.5]], dtype=torch.float32)
    torch.testing.assert_close(best_probability(logits, (1, 2)), expected)


def test_many_classes_and_every_option():
    model, processor = tiny_segmenter()
    names = [f"name {index}" for index in range(70)]
    found = segment_if_sure(model, processor, IMAGE, names, 0.02, window=16, refinement="pamr")
    assert found.shape == (40, 56) and found.min() >= 0 and found.max() <= 70
