"""`segment` over sizes, classes, precisions and batches drawn at random: shapes, ids, and the same labels in any company."""

import functools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_clipseg import segment, segment_many

from ..tiny_segmenter import tiny_segmenter

NAMES = ["sky", "sea", "boat", ["grass", "tree"], "car", "person", "ship", "red car", "photo", "many"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@functools.cache
def segmenter(dtype: torch.dtype):
    model, processor = tiny_segmenter()
    return model.to(dtype), processor


@st.composite
def pictures(draw):
    sizes = draw(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=4))
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    modes = draw(st.sampled_from(["RGB", "L", "RGBA", "P", "1", "CMYK"]))
    return [
        Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8)).convert(modes)
        for width, height in sizes
    ]


@settings(max_examples=25, deadline=None)
@given(
    pictures(),
    st.integers(1, len(NAMES)),
    st.sampled_from(DTYPES),
    st.integers(1, 5),
    st.sampled_from(
        [{}, {"window": 16}, {"window": 24, "stride": 8, "output_stride": 1}, {"flip": True}, {"scales": (0.5, 1.5)}]
    ),
)
def test_labels_of_anything(images, classes, dtype, batch_size, options):
    names = NAMES[:classes]
    maps = segment(*segmenter(dtype), images, names, batch_size=batch_size, **options)
    for image, label_map in zip(images, maps, strict=True):
        assert label_map.shape == image.size[::-1] and label_map.dtype == np.int64
        assert label_map.min() >= 0 and label_map.max() < classes
    alone = [segment(*segmenter(dtype), [image], names, **options)[0] for image in images]
    streamed = dict(segment_many(*segmenter(dtype), enumerate(images), names, workers=2, **options))
    for place, label_map in enumerate(alone):
        assert streamed[place].shape == label_map.shape
        if dtype in (torch.float32, torch.float64):  # half precision rounds otherwise in other batches, and other threads
            assert np.array_equal(streamed[place], label_map)
            assert np.mean(maps[place] == label_map) > 0.99
