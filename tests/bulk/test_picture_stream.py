"""Many pictures side by side against one picture at a time."""

import hashlib
import itertools
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from hf_clipseg import segment, segment_many
from hf_clipseg.bulk import picture_stream

from ..shipped_label_maps import load, one_thread
from ..tiny_segmenter import CLASS_NAMES, tiny_segmenter

SIZES = [(40, 30), (64, 64), (40, 30), (97, 31), (1, 1), (40, 30), (64, 64), (31, 97)]  # (width, height)


@pytest.fixture(scope="module")
def segmenter():
    return tiny_segmenter()


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]


def digests(label_maps) -> list[str]:
    return [hashlib.sha256(str(m.shape).encode() + np.ascontiguousarray(m).tobytes()).hexdigest() for m in label_maps]


def one_by_one(model, processor, images, class_names=None, **options):
    return [segment(model, processor, [image], class_names, **options)[0] for image in images]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("options", [{}, {"window": 24, "flip": True}, {"refinement": "pamr"}, {"scales": (0.5, 1.0)}])
def test_labels_are_those_of_one_picture_at_a_time(segmenter, images, workers, options):
    with one_thread():
        expected = one_by_one(*segmenter, images, CLASS_NAMES, **options)
        found = list(segment_many(*segmenter, enumerate(images), CLASS_NAMES, workers=workers, **options))
    assert [key for key, _ in found] == list(range(len(images)))
    assert digests(label_map for _, label_map in found) == digests(expected)
    assert len(set(digests(expected))) > 4


@pytest.mark.parametrize("name", ["mask-clip-toyscapes", "mta-clip-toyscapes"])
def test_labels_of_shipped_checkpoints_in_batches(name):
    """Pictures of two sizes, interleaved, in batches of both."""
    generator = np.random.default_rng(1)
    noise = [Image.fromarray(generator.integers(0, 255, (6, 6 + i % 2 * 2, 3), dtype=np.uint8)) for i in range(10)]
    images = [image.resize((128 + 40 * (i % 2), 128), Image.Resampling.BICUBIC) for i, image in enumerate(noise)]
    with one_thread():
        expected = one_by_one(*load(name), images)
        found = dict(segment_many(*load(name), enumerate(images), workers=2, batch_size=3))
    assert [found[i].shape for i in range(10)] == [label_map.shape for label_map in expected]
    assert np.mean([np.mean(found[i] == label_map) for i, label_map in enumerate(expected)]) > 0.999


def test_the_size_of_the_batches_is_kept_and_sizes_are_not_mixed(segmenter, images, monkeypatch):
    model, processor = segmenter
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(kwargs["pixel_values"].shape), with_kwargs=True
    )
    many = [(i, images[i % 2]) for i in range(16)]
    found = list(segment_many(model, processor, many, CLASS_NAMES, batch_size=4, workers=2))
    hook.remove()
    assert [key for key, _ in found] == list(range(16))
    assert sorted(len(shape) and shape[0] for shape in shapes) == [4, 4, 4, 4]
    assert len({shape[2:] for shape in shapes}) == 2


def test_few_are_read_ahead_and_the_source_may_be_endless(segmenter, images):
    taken = itertools.count()
    source = ((next(taken), images[0]) for _ in itertools.repeat(None))
    stream = segment_many(*segmenter, source, CLASS_NAMES, workers=2)
    first = [next(stream)[0] for _ in range(5)]
    stream.close()
    assert first == [0, 1, 2, 3, 4]
    assert next(taken) <= 5 + picture_stream.AHEAD * 2
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("segment")]


def test_a_broken_picture_is_told_and_the_others_go_on(segmenter, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    sources = [("a", images[0]), ("broken", tmp_path / "broken.png"), ("gone", tmp_path / "gone.png"), ("b", images[1])]
    found = dict(segment_many(*segmenter, sources, CLASS_NAMES, workers=2))
    assert list(found) == ["a", "broken", "gone", "b"]
    assert "broken.png is no image" in str(found["broken"]) and "There is no image file" in str(found["gone"])
    assert found["a"].shape == (30, 40) and found["b"].shape == (64, 64)


def test_finish_has_the_upright_picture_and_what_it_raises_ends_the_run(segmenter, images):
    found = list(segment_many(*segmenter, enumerate(images), CLASS_NAMES, finish=lambda *args: (args[0], args[1].size)))
    assert found == [(i, (i, size)) for i, size in enumerate(SIZES)]

    def full(key, picture, label_map):
        if key == 5:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        list(segment_many(*segmenter, enumerate(images), CLASS_NAMES, finish=full, workers=2))


def test_names_are_tokenised_and_encoded_once(images, monkeypatch):
    model, processor = tiny_segmenter()
    calls, tokenised = [], []
    model.clip.text_model.register_forward_hook(lambda *_: calls.append(1))
    plain = processor.tokenize_classes
    monkeypatch.setattr(processor, "tokenize_classes", lambda prompts: (tokenised.append(1), plain(prompts))[1])
    list(segment_many(model, processor, enumerate(images), CLASS_NAMES, workers=3))
    assert (len(calls), len(tokenised)) == (1, 1)


def test_the_model_and_the_threads_of_torch_are_left_as_they_were(images):
    model, processor = tiny_segmenter()
    model.train()
    before = torch.get_num_threads()
    for _ in segment_many(model, processor, enumerate(images), CLASS_NAMES, workers=2):
        assert not model.training
    assert model.training and torch.get_num_threads() == before
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start(), thread.join()
    assert seen == [before]


def test_no_pictures_and_options_that_exclude_each_other(segmenter):
    assert list(segment_many(*segmenter, [], CLASS_NAMES)) == []
    with pytest.raises(ValueError, match="workers is 0"):
        segment_many(*segmenter, [], CLASS_NAMES, workers=0)
    with pytest.raises(ValueError, match="there is no window"):
        segment_many(*segmenter, [], CLASS_NAMES, stride=4)
