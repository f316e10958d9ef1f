"""Checkpoints that are damaged, wrong or hostile: one sentence, and nothing of them is run."""

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hf_clipseg.checkpoints import CheckpointError, load_checkpoint

from .demo_checkpoints import save_demo_checkpoints


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_demo_checkpoints(tmp_path_factory.mktemp("checkpoints")) / "open"


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "open")


class Hostile:
    """Unpickling one writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def transpose_a_matrix(folder):
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2 and tensor.shape[0] != tensor.shape[1])
    save_file(tensors | {name: tensors[name].T.contiguous()}, folder / "model.safetensors", metadata={"format": "pt"})


def widen_the_configuration(folder):
    config = json.loads((folder / "config.json").read_text())
    config["clip_config"]["vision_config"]["hidden_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))


def impossible_configuration(folder):
    config = json.loads((folder / "config.json").read_text())
    config["clip_config"]["vision_config"]["patch_size"] = 0
    (folder / "config.json").write_text(json.dumps(config))


def pickle_under_the_name_of_safetensors(folder):
    torch.save({"weights": Hostile(folder / "was-run")}, folder / "model.safetensors")


def pickle_that_runs_code(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Hostile(folder / "was-run")}, folder / "pytorch_model.bin")


def empty_file(folder):
    (folder / "model.safetensors").write_bytes(b"")


@pytest.mark.parametrize(
    "damage",
    [
        transpose_a_matrix,
        widen_the_configuration,
        impossible_configuration,
        pickle_under_the_name_of_safetensors,
        pickle_that_runs_code,
        empty_file,
    ],
)
def test_refused_in_one_sentence(copy, damage):
    damage(copy)
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(copy)
    assert str(copy) in str(refused.value) and "\n" not in str(refused.value)
    assert not (copy / "was-run").exists()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_to_the_header_is_refused_or_does_no_harm(whole, tmp_path, data):
    """A file whose header was changed, or that was cut anywhere, gives the true weights or a CheckpointError."""
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    content = bytearray((whole / "model.safetensors").read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, header - 1))] ^= data.draw(st.integers(1, 255))
    (folder / "model.safetensors").write_bytes(content)
    try:
        loaded = load_checkpoint(folder)
    except CheckpointError:
        return
    expected = load_file(whole / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.model.state_dict().items() if name in expected)
