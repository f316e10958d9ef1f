"""An output folder belongs to one run: what it refuses, prunes, drops and keeps."""

import json
import os
import shutil
import signal
import subprocess

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from hf_clipseg.atomic import DiskFullError, disk_full_named
from training.engine.checkpoints import checkpoint_step, list_checkpoints, read_state
from training.engine.run_identity import describe_changes, schedule_points

from ...forked import run_forked
from ...tiny_run import Samples, dies_after, run


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def names(folder):
    return [path.name for path in list_checkpoints(folder)]


# ---- an older run


@pytest.mark.parametrize("left", ["checkpoint-5", "metrics.jsonl", "final"])
def test_an_output_folder_that_holds_an_older_run_is_refused(tmp_path, left):
    run(tmp_path, steps=5, checkpointing_steps=5, logging_steps=1)
    (tmp_path / "final").mkdir()
    for path in tmp_path.iterdir():
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=rf"older run \({left}\).*--resume_from_checkpoint latest.*--overwrite_output_dir"):
        run(tmp_path, steps=2)
    assert [path.name for path in tmp_path.iterdir()] == [left]


def test_other_files_in_an_output_folder_are_nobodys_run(tmp_path):
    (tmp_path / "prototypes.safetensors").write_text("stage 1")
    run(tmp_path, steps=1)
    assert names(tmp_path) == ["checkpoint-1"] and (tmp_path / "prototypes.safetensors").read_text() == "stage 1"


def test_overwriting_deletes_the_older_run_and_nothing_else(tmp_path):
    run(tmp_path, steps=5, checkpointing_steps=1, logging_steps=1, on_step=lambda step, _: {"mIoU": 0.5})
    (tmp_path / "final").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    run(tmp_path, steps=2, overwrite_output_dir=True, logging_steps=1)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "metrics.jsonl", "notes.txt"}
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_checkpoints_after_the_resumed_one_are_not_mixed_in(tmp_path):
    run(tmp_path, steps=6, checkpointing_steps=2, checkpoints_total_limit=None, logging_steps=1)
    resume = {"resume_from_checkpoint": str(tmp_path / "checkpoint-2"), "logging_steps": 1}
    with pytest.raises(ValueError, match="checkpoint-4, checkpoint-6"):
        run(tmp_path, steps=6, **resume)
    run(tmp_path, steps=6, checkpointing_steps=3, checkpoints_total_limit=None, overwrite_output_dir=True, **resume)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3", "checkpoint-6"]
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_only_this_runs_checkpoints_are_pruned(tmp_path):
    run(tmp_path, steps=3, checkpointing_steps=3)
    other = json.loads((tmp_path / "checkpoint-3" / "training_state.json").read_text())
    shutil.copytree(tmp_path / "checkpoint-3", tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1" / "training_state.json").write_text(json.dumps(other | {"run": "another", "step": 1}))
    run(
        tmp_path, steps=6, checkpointing_steps=1, checkpoints_total_limit=1, resume_from_checkpoint="latest", allow_changes=True
    )
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-6"]


# ---- metrics


def test_metrics_after_the_resumed_step_are_dropped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, checkpointing_steps=3, logging_steps=1, on_step=dies_after(4))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # a row that the kill cut short
    run(tmp_path, logging_steps=1, resume_from_checkpoint="latest")
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_died_before_its_first_checkpoint_starts_with_empty_metrics(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, logging_steps=1, on_step=dies_after(2))
    (tmp_path / ".checkpoint-3.partial").mkdir()
    run(tmp_path, logging_steps=1, resume_from_checkpoint="latest")
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / ".checkpoint-3.partial").exists()


# ---- identity


CHANGES = {
    "class order": ({"identity": {"class_names": ["sea", "sky"]}}, r"class_names \(from place 0 on\): sky in the checkpoint"),
    "data": ({"identity": {"data": {"fingerprint": "b"}}}, "data.fingerprint: a in the checkpoint, b now"),
    "method": ({"identity": {"sampling": "uniform"}}, "sampling: ranked in the checkpoint, uniform now"),
    "learning rate": ({"learning_rate": 0.1}, "learning_rate: 0.05 in the checkpoint, 0.1 now"),
    "warm-up": ({"warmup": 1}, "schedule"),
    "schedule": ({"schedule": "poly"}, "schedule"),
    "steps": ({"steps": 8}, "max_train_steps: 4 in the checkpoint, 8 now"),
    "average": ({"ema_decay": 0.5}, "ema_decay"),
}  # fmt: skip
IDENTITY = {"class_names": ["sky", "sea"], "data": {"fingerprint": "a"}, "sampling": "ranked"}


@pytest.mark.parametrize("options, message", CHANGES.values(), ids=CHANGES)
def test_a_changed_run_is_not_resumed_unless_the_change_is_meant(tmp_path, options, message):
    run(tmp_path, steps=4, checkpointing_steps=2, checkpoints_total_limit=None, identity=IDENTITY)
    shutil.rmtree(tmp_path / "checkpoint-4")
    options = {"steps": 4, **options, "identity": IDENTITY | options.get("identity", {}), "resume_from_checkpoint": "latest"}
    with pytest.raises(ValueError, match=rf"cannot resume .*checkpoint-2: {message}.*--allow_changes"):
        run(tmp_path, **options)
    run(tmp_path, **options, allow_changes=True)
    assert read_state(list_checkpoints(tmp_path)[-1])["step"] == options["steps"]


def test_an_allowed_learning_rate_is_used(tmp_path):
    run(tmp_path, steps=4, checkpointing_steps=2, checkpoints_total_limit=None, schedule="constant", logging_steps=1)
    shutil.rmtree(tmp_path / "checkpoint-4")
    options = {"resume_from_checkpoint": "latest", "allow_changes": True, "learning_rate": 0.2, "logging_steps": 1}
    run(tmp_path, steps=4, schedule="constant", **options)
    assert [row["learning_rate"] for row in rows(tmp_path)] == [0.05, 0.05, 0.2, 0.2]


def test_the_model_s_configuration_is_part_of_the_identity():
    old = {"model": {"id2label": {"0": "sky", "1": "sea"}, "num_views": 3}}
    new = {"model": {"id2label": {"0": "sea", "1": "sky"}, "num_views": 3}}
    assert describe_changes(old, old) == ""
    assert describe_changes(old, new) == (
        "model.id2label.0: sky in the checkpoint, sea now; model.id2label.1: sea in the checkpoint, sky now"
    )
    assert describe_changes({}, {"a": 1}) == "a: nothing in the checkpoint, 1 now"
    assert describe_changes({"a": [1, 2]}, {"a": [1]}) == "a: [1, 2] in the checkpoint, [1] now"
    assert describe_changes(dict.fromkeys("abcdef", 0), dict.fromkeys("abcdef", 1)).endswith("; and 2 more")


def test_schedules_are_told_apart():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    linear = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 100)
    assert schedule_points(linear, 100) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert schedule_points(torch.optim.lr_scheduler.StepLR(optimizer, 5), 100) == "StepLR"


# ---- the best checkpoint


def test_the_best_checkpoint_is_kept_beside_the_last_and_named(tmp_path):
    scores = {1: 0.1, 2: 0.4, 3: 0.3, 4: float("nan"), 5: 0.4, 6: 0.2}
    validate = lambda step, _: {"mIoU": scores[step]}  # noqa: E731
    run(tmp_path, checkpointing_steps=1, checkpoints_total_limit=1, on_step=validate)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"]
    expected = {"checkpoint": "checkpoint-2", "step": 2, "metric": "mIoU", "value": 0.4}
    assert json.loads((tmp_path / "best.json").read_text()) == read_state(tmp_path / "checkpoint-6")["best"] == expected


def test_the_best_checkpoint_is_written_between_the_others_and_survives_resuming(tmp_path):
    scores = {2: 0.2, 4: 0.5, 6: 0.4}
    validate = lambda step, _: {"mIoU": scores[step]} if step in scores else None  # noqa: E731

    def dies_later(step, model):
        dies_after(4)(step, model)
        return validate(step, model)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, checkpointing_steps=100, checkpoints_total_limit=1, on_step=dies_later)
    assert names(tmp_path) == ["checkpoint-4"]
    run(tmp_path, checkpointing_steps=100, checkpoints_total_limit=1, on_step=validate, resume_from_checkpoint="latest")
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-6"]
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 4


# ---- a disk that fills up


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("free_kb", [8, 40, 100])  # too little for the weights, for the optimiser, for the last file
def test_a_full_disk_is_one_sentence_and_leaves_the_last_checkpoint(small_disk, free_kb):
    wide = lambda: torch.nn.Sequential(torch.nn.Linear(4, 2000), torch.nn.Linear(2000, 1))  # noqa: E731
    run(small_disk, steps=2, checkpointing_steps=2, model=wide())
    size = sum(file.stat().st_size for file in (small_disk / "checkpoint-2").iterdir())
    assert size > 100 * 1024, "the disk would not fill up"
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * (shutil.disk_usage(small_disk).free - free_kb * 1024))
    resume = {"resume_from_checkpoint": "latest", "allow_changes": True, "checkpointing_steps": 2}
    with pytest.raises(DiskFullError, match=r"checkpoint-4 could not be written: the disk is full.*checkpoint-2 is intact"):
        run(small_disk, steps=4, model=wide(), **resume)
    assert names(small_disk) == ["checkpoint-2"] and not list(small_disk.glob(".*"))
    filler.unlink()
    run(small_disk, steps=4, model=wide(), **resume)
    assert names(small_disk) == ["checkpoint-2", "checkpoint-4"]


FULL = [
    OSError(28, "No space left on device"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
]


@pytest.mark.parametrize("error", FULL)
def test_what_libraries_say_of_a_full_disk_is_understood(tmp_path, error):
    said = r"a could not be written: the disk is full \(\d+\.\d MB"
    with pytest.raises(DiskFullError, match=said), disk_full_named(tmp_path / "a"):
        raise error


def test_other_errors_pass_through(tmp_path):
    for error in (OSError(13, "Permission denied"), RuntimeError("something else")):
        with pytest.raises(type(error)) as raised, disk_full_named(tmp_path / "a"):
            raise error
        assert raised.value is error


# ---- killed at any moment


def test_killed_at_twenty_moments_and_resumed_each_time_it_ends_like_the_unbroken_run(tmp_path):
    """SIGKILL comes before any of the writes, deletions, renames and reads of data that a run does, chosen at random."""
    validate = lambda step, _: {"mIoU": [0.1, 0.3, 0.2][step % 3] + step / 100}  # noqa: E731
    options = {"steps": 40, "checkpointing_steps": 1, "checkpoints_total_limit": 1, "logging_steps": 1}
    options |= {"ema_decay": 0.5, "on_step": validate}
    straight = run(tmp_path / "straight", **options)

    def killed_at(moment):
        moments = iter(range(moment))

        def dying(function):
            def call(*arguments, **keywords):
                if next(moments, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **keywords)

            return call

        for owner, names in (
            (os, ("replace", "mkdir", "unlink")),
            (shutil, ("rmtree",)),
            (json, ("dumps",)),
            (torch, ("save",)),
        ):
            for name in names:
                setattr(owner, name, dying(getattr(owner, name)))
        Samples.__getitem__ = dying(Samples.__getitem__)
        run(tmp_path / "killed", resume_from_checkpoint="latest", **options)

    moments = np.random.default_rng(0).integers(5, 60, 20).tolist()
    statuses = [run_forked(lambda rank, moment=moment: killed_at(moment))[0] for moment in moments]
    assert statuses == [-signal.SIGKILL] * 20
    resumed_from = list_checkpoints(tmp_path / "killed")[-1]
    assert 0 < checkpoint_step(resumed_from) < 40
    weights = run(tmp_path / "killed", resume_from_checkpoint="latest", **options)
    assert all(torch.equal(weights[name], straight[name]) for name in straight)
    values = [[{**row, "images_per_second": 0} for row in rows(tmp_path / name)] for name in ("killed", "straight")]
    assert values[0] == values[1]
    left = [{path.name for path in (tmp_path / name).iterdir()} for name in ("killed", "straight")]
    assert left[0] == left[1]
