"""FSDP by the configuration file of the repository: two processes with halves of everything train what one trains."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from hf_clipseg import MtaClipForSemanticSegmentation
from training import export, train_mta_clip
from training.engine.sharding import CONFIG, configure_sharding, works_on_processors

from ...tiny_run import run
from ..test_train_mta_clip import data, options  # noqa: F401

ROOT = Path(__file__).parents[3]
STEPS = ("--max_train_steps", "3", "--validation_split", "train", "--validation_steps", "2")


def launch_sharded(arguments):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIG, "--num_processes", "2", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += ["training.train_mta_clip", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def logged(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [[line[name] for name in ("loss", "gradient_norm") if name in line] or line["mIoU"] for line in lines]


@pytest.mark.skipif(not works_on_processors(), reason="this torch shards on GPUs only")
def test_two_halves_train_resume_and_export_what_one_process_trains(clip_folder, data, tmp_path):  # noqa: F811
    """Two steps, a kill, the third: the last checkpoint of the first launch is deleted, as if it had never been written."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    AcceleratorState._reset_state(reset_partial_state=True)
    train_mta_clip.run(train_mta_clip.parse_arguments(options(clip_folder, data, whole, *STEPS)))
    AcceleratorState._reset_state(reset_partial_state=True)
    halves = options(clip_folder, data, parts, *STEPS, "--train_batch_size", "2")
    first = launch_sharded(halves)
    assert first.returncode == 0, first.stderr[-3000:]
    assert (parts / "checkpoint-2" / "pytorch_model_fsdp_0").is_dir()  # parts, no data-parallel run that looks alike
    for name in ("checkpoint-3", "final", "best.json"):
        shutil.rmtree(parts / name, ignore_errors=True)
    second = launch_sharded([*halves, "--resume_from_checkpoint", "latest"])
    assert second.returncode == 0, second.stderr[-3000:]

    assert logged(parts) == [pytest.approx(line, rel=1e-4) for line in logged(whole)]
    expected = load_file(whole / "final" / "model.safetensors")
    trained = load_file(parts / "final" / "model.safetensors")
    assert trained.keys() == expected.keys() and trained["clip.logit_scale"].shape == ()
    for name, value in expected.items():
        torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-5, msg=name)
    export.export(parts / "checkpoint-3", tmp_path / "exported")
    exported = MtaClipForSemanticSegmentation.from_pretrained(tmp_path / "exported").state_dict()
    for name, value in trained.items():  # the embeddings of the classes are baked anew
        torch.testing.assert_close(exported[name], value, rtol=0, atol=1e-6 if name == "class_embeds" else 0)
    with pytest.raises(ValueError, match="saved in parts: go on with accelerate launch --config_file"):
        train_mta_clip.run(train_mta_clip.parse_arguments([*halves, "--resume_from_checkpoint", "latest"]))
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    "fields, ema, message",
    [
        ({"fsdp_version": 1}, 0.0, "fsdp_version: 2.* has 1 and false"),
        ({"cpu_ram_efficient_loading": True}, 0.0, "cpu_ram_efficient_loading: false.* has 2 and true"),
        ({}, 0.9, "--ema_decay 0"),
    ],
)
def test_what_would_fail_later_is_refused(monkeypatch, fields, ema, message):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    plugin = SimpleNamespace(**{"fsdp_version": 2, "cpu_ram_efficient_loading": False} | fields)
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, state=SimpleNamespace(fsdp_plugin=plugin))
    with pytest.raises(ValueError, match=message):
        configure_sharding(accelerator, SimpleNamespace(ema_decay=ema))


def test_one_process_holds_the_whole_model_and_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    run(tmp_path, steps=1)
    assert "FSDP was asked for" in caplog.text and "one process, which holds the whole model" in caplog.text
    AcceleratorState._reset_state(reset_partial_state=True)
