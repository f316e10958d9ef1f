import http.server
import json
import shutil
import socket
import threading

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_clipseg import MaskClipForSemanticSegmentation
from hf_clipseg.checkpoint_cards import Checkpoint, distinguish
from hf_clipseg.checkpoints import (
    CheckpointError,
    describe_checkpoint,
    find_checkpoints,
    hub_answers,
    is_cached,
    load_checkpoint,
)

from .demo_checkpoints import CLOSED_CLASSES, OPEN_CLASSES, save_demo_checkpoints
from .tiny import save_tiny_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_demo_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def copy(folder, tmp_path):
    """A private copy of the open checkpoint, to damage."""
    return shutil.copytree(folder / "open", tmp_path / "open")


def test_finds_what_the_cards_say(folder):
    by_name = {checkpoint.name: checkpoint for checkpoint in find_checkpoints(folder)}
    assert list(by_name) == ["closed", "open", "with-groups", "without-weights"]
    assert by_name["open"].title == "Open words"
    assert by_name["open"].description == "Dense CLIP, at rest."
    assert by_name["open"].class_names == OPEN_CLASSES and by_name["open"].open_vocabulary
    assert by_name["closed"].class_names == CLOSED_CLASSES and not by_name["closed"].open_vocabulary
    assert by_name["without-weights"].class_names is None


def test_leaves_out_foreign_and_damaged_folders(folder, tmp_path):
    shutil.copytree(folder / "open", tmp_path / "good")
    for name, text in {
        "foreign": '{"model_type": "bert"}',
        "damaged": '{"model_type"',
        "bad": '{"model_type": "mask_clip", "attention_variant": 7}',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    assert [checkpoint.name for checkpoint in find_checkpoints(tmp_path)] == ["good"]
    assert find_checkpoints(tmp_path / "nowhere") == []


def test_title_falls_back_to_the_folder(copy):
    (copy / "README.md").unlink()
    assert (describe_checkpoint(copy).title, describe_checkpoint(copy).description) == ("open", "")


def test_loads_the_saved_weights(folder):
    loaded = load_checkpoint(folder / "open")
    saved = load_file(folder / "open" / "model.safetensors")
    assert not loaded.model.training
    assert all(torch.equal(value, loaded.model.state_dict()[name]) for name, value in saved.items())
    assert loaded.processor.unknown_words(["sky", "unicorn"]) == ["unicorn"]


def test_a_plain_clip_becomes_mask_clip(tmp_path):
    loaded = load_checkpoint(save_tiny_clip(tmp_path))
    assert isinstance(loaded.model, MaskClipForSemanticSegmentation)
    assert loaded.model.config.attention_variant == "naclip"


def test_attention_is_lent_for_one_run(folder):
    loaded = load_checkpoint(folder / "open")
    with pytest.raises(KeyError), loaded.running("sclip") as model:
        assert model.config.attention_variant == "sclip"
        raise KeyError
    with loaded.running() as model:
        assert model.config.attention_variant == "value"


def remove_weights(copy):
    (copy / "model.safetensors").unlink()


def put_lfs_pointer(copy):
    (copy / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def truncate_weights(copy):
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:5000])


def lose_a_tensor(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["clip.logit_scale"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})


def remove_config(copy):
    (copy / "config.json").unlink()


def break_config(copy):
    (copy / "config.json").write_text("{")


def make_foreign(copy):
    (copy / "config.json").write_text(json.dumps({"model_type": "bert"}))


def remove_processor(copy):
    for file in copy.glob("*process*"):
        file.unlink()
    for file in copy.glob("token*"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_weights, "has no weights"),
        (put_lfs_pointer, "git lfs pull"),
        (truncate_weights, "cannot be loaded"),
        (lose_a_tensor, "lack 1 tensors, clip.logit_scale"),
        (remove_config, "no config.json"),
        (break_config, "is no checkpoint of this package"),
        (make_foreign, "is a 'bert' model; this package runs clip, .*groupvit, mask_clip"),
        (remove_processor, "cannot be loaded"),
    ],
)
def test_damage_is_named(copy, damage, message):
    damage(copy)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(copy)


def test_neither_folder_nor_hub_id():
    with pytest.raises(CheckpointError, match="no folder /no/such/folder"):
        describe_checkpoint("/no/such/folder")
    with pytest.raises(CheckpointError, match="no folder /no/such/folder"):
        load_checkpoint("/no/such/folder")


def test_the_hub_is_not_asked_offline():
    assert describe_checkpoint("someone/model").title == "someone/model"
    assert not is_cached("someone/model")
    with pytest.raises(CheckpointError, match="did not answer within 2 s"):
        load_checkpoint("someone/model")


def test_a_silent_hub_is_given_up(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, then never says a word
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert not hub_answers(timeout=0.2)


@pytest.mark.parametrize("status", [200, 404])
def test_any_answer_of_the_hub_counts(monkeypatch, status):
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            """Keeps the test's output clean."""

    with http.server.HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert hub_answers(timeout=5)


def test_result_folders_are_named_after_their_run(folder, tmp_path):
    for run in ("run1", "run2"):
        shutil.copytree(folder / "open", tmp_path / run / "final")
    shutil.copytree(folder / "open", tmp_path / "run1" / "checkpoint-40")
    found = distinguish([describe_checkpoint(tmp_path / name) for name in ("run1/final", "run2/final", "run1/checkpoint-40")])
    assert [checkpoint.name for checkpoint in found] == ["run1", "run2", "run1/checkpoint-40"]
    assert [checkpoint.title for checkpoint in found] == [
        "Open words (run1)",
        "Open words (run2)",
        "Open words (run1/checkpoint-40)",
    ]


def test_names_grow_until_they_are_unique(folder, tmp_path):
    for place in ("a/x", "b/x", "c/y"):
        shutil.copytree(folder / "open", tmp_path / place)
    places = [tmp_path / place for place in ("a/x", "b/x", "c/y", "a/x")]
    found = distinguish(list(map(describe_checkpoint, places)))
    assert [checkpoint.name for checkpoint in found] == ["a/x", "b/x", "y"]  # the one given twice comes once


def test_one_model_under_two_attentions_is_two_entries():
    twice = [Checkpoint("someone/clip", f"clip-{name}", name, attention=name) for name in ("value", "sclip")]
    assert [checkpoint.name for checkpoint in distinguish([*twice, twice[0]])] == ["clip-value", "clip-sclip"]


def test_cards_of_strangers_become_plain_text(copy):
    (copy / "README.md").write_text(
        "# A [model](../x) ![pixel](https://spy.example/p.png)\n\n![a](https://spy.example/a.png)\n\n"
        "Reads **dense** [features](docs/x.md), <img src=https://spy.example/b.png> and `code`. [![b]][c]\n"
    )
    checkpoint = describe_checkpoint(copy)
    assert checkpoint.title == "A model"
    assert checkpoint.description == "Reads dense features, and code."


def test_a_check_ends_a_run_before_its_next_layer(folder):
    loaded = load_checkpoint(folder / "open")
    calls = []

    def check():
        calls.append(1)
        if len(calls) == 5:
            raise TimeoutError

    inputs = loaded.processor(images=Image.new("RGB", (32, 32)), class_names=["sky"], return_tensors="pt")
    with pytest.raises(TimeoutError), loaded.running(check=check) as model:
        model(**inputs)
    assert len(calls) == 5
    with loaded.running() as model:  # free again, and unchecked
        model(**inputs)
    assert len(calls) == 5


def test_waiting_for_a_model_can_be_given_up(folder):
    loaded = load_checkpoint(folder / "open")

    def give_up():
        raise TimeoutError

    with loaded.running(), pytest.raises(TimeoutError), loaded.running(check=give_up):
        pytest.fail("the model was taken twice")
