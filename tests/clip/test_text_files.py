"""Embeddings on disk: found again by another process's model, never for other weights, words or settings, and bounded."""

import os

import pytest
import torch

from hf_clipseg.clip import text_bank
from hf_clipseg.clip.text_files import FOLDER_VARIABLE, TextFiles, content_key

from ..tiny_segmenter import CLASS_NAMES, tiny_segmenter


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "texts"))
    monkeypatch.setattr(text_bank, "FEWEST_PROMPTS", 2)
    return tmp_path / "texts"


def encoded(model, processor, class_names=CLASS_NAMES):
    """Name embeddings, and how often the text encoder ran for them."""
    calls = []
    handle = model.clip.text_model.register_forward_hook(lambda *_: calls.append(1))
    inputs = processor(class_names=class_names, return_tensors="pt")
    embeds = model.encode_names(inputs["input_ids"], inputs["name_ids"])
    handle.remove()
    return embeds, len(calls)


def test_another_model_with_the_same_weights_reads_what_the_first_wrote(folder):
    first, runs = encoded(*tiny_segmenter())
    assert runs == 1 and len(list(folder.iterdir())) == 1
    second, runs = encoded(*tiny_segmenter())
    assert runs == 0 and torch.equal(first, second)


def test_whatever_the_embeddings_depend_on_makes_another_file(folder):
    plain, _ = encoded(*tiny_segmenter())
    model, processor = tiny_segmenter()
    other_words, runs = encoded(model, processor, ["boat", "sea", "sky"])
    assert runs == 1 and not torch.equal(other_words, plain)
    with torch.no_grad():
        model.clip.text_projection.weight[0, 0] += 1
    other_weights, runs = encoded(model, processor)
    assert runs == 1 and not torch.equal(other_weights, plain)
    model, processor = tiny_segmenter()
    model.config.clip_config.text_config.hidden_act = "gelu"  # no weight tells it from quick_gelu
    assert encoded(model, processor)[1] == 1
    assert len(list(folder.iterdir())) == 4


def test_small_vocabularies_and_switched_off_caches_leave_no_file(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(text_bank, "FEWEST_PROMPTS", 4)
    assert encoded(*tiny_segmenter())[1] == 1
    monkeypatch.setattr(text_bank, "FEWEST_PROMPTS", 2)
    monkeypatch.setenv(FOLDER_VARIABLE, "off")
    assert encoded(*tiny_segmenter())[1] == 1
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_read_are_computed_again_and_replaced(folder):
    first, _ = encoded(*tiny_segmenter())
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:40])
    again, runs = encoded(*tiny_segmenter())
    assert runs == 1 and torch.equal(first, again)
    assert encoded(*tiny_segmenter())[1] == 0


def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(tmp_path, monkeypatch, folder):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "file"))
    assert encoded(*tiny_segmenter())[1] == 1


def test_the_files_used_longest_ago_go_first(tmp_path):
    files = TextFiles(tmp_path, most_bytes=1000)  # a file holds 400 bytes and a header
    for age, key in enumerate("ab"):
        files.put(key, torch.zeros(100))
        os.utime(tmp_path / f"{key}.safetensors", (age, age))
    assert files.get("a") is not None  # used just now, so b is the oldest
    files.put("c", torch.ones(100))
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "c"]
    files.put("d", torch.ones(10000))
    assert [path.stem for path in tmp_path.iterdir()] == ["d"]
    assert torch.equal(files.get("d"), torch.ones(10000)) and files.get("a") is None


def test_keys_tell_shapes_and_types_apart():
    tensors = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(8, dtype=torch.float16), torch.ones(4)]
    keys = {content_key([tensor], [], "x") for tensor in tensors} | {content_key([], [tensors[0]], "y")}
    assert len(keys) == 5
