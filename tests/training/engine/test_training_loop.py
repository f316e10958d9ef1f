"""The training loop: exact resumption, accumulation, data order, checkpoints, optimiser groups and schedules."""

import json
import math

import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from training.engine.checkpoints import find_checkpoint, list_checkpoints
from training.engine.loop import StepSampler, TrainingSettings
from training.engine.optim import parameter_groups, schedule_factor

from ...tiny_run import Samples, compute_losses, dies_after, run


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


# ---- resuming


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"ema_decay": 0.5}, {"mixed_precision": "bf16"}])
def test_an_interrupted_run_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path, options):
    straight = run(tmp_path / "straight", **options)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", checkpointing_steps=3, on_step=dies_after(4), **options)  # last checkpoint at 3
    dataset = Samples()
    resumed = run(tmp_path / "broken", resume_from_checkpoint="latest", checkpointing_steps=3, dataset=dataset, **options)
    assert_same(straight, resumed)
    assert min(step for _, _, step in dataset.seen) == 3  # nothing that was already used is read again


def test_resuming_in_another_data_order_is_refused(tmp_path):
    run(tmp_path, steps=2, checkpointing_steps=1)
    for options in ({"seed": 4}, {"train_batch_size": 4}, {"dataset": Samples(9)}):
        with pytest.raises(ValueError, match="in the checkpoint"):
            run(tmp_path, steps=2, resume_from_checkpoint="latest", **options)


def test_resume_latest_without_a_checkpoint_starts_anew_and_a_wrong_path_is_an_error(tmp_path):
    assert find_checkpoint(tmp_path, "latest") is None
    with pytest.raises(ValueError, match="not a checkpoint"):
        find_checkpoint(tmp_path, str(tmp_path / "nowhere"))


# ---- checkpoints


def test_old_checkpoints_are_deleted_and_none_is_half_written(tmp_path):
    run(tmp_path, steps=5, checkpointing_steps=1, checkpoints_total_limit=2, logging_steps=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-5"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-4", "checkpoint-5", "metrics.jsonl"}
    assert (tmp_path / "checkpoint-5" / "model.safetensors").is_file()


def test_latest_is_by_number_and_ignores_incomplete_folders(tmp_path):
    for name, complete in (
        ("checkpoint-9", True),
        ("checkpoint-10", True),
        ("checkpoint-11", False),
        (".checkpoint-12.partial", True),
    ):
        (tmp_path / name).mkdir()
        if complete:
            (tmp_path / name / "training_state.json").write_text("{}")
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-10"


# ---- gradients and logs


def test_accumulated_gradients_equal_those_of_the_large_batch(tmp_path):
    small = run(tmp_path / "a", dropout=0.0, train_batch_size=2, gradient_accumulation_steps=3)
    large = run(tmp_path / "b", dropout=0.0, train_batch_size=6)
    for name in small:
        torch.testing.assert_close(small[name], large[name], rtol=1e-4, atol=1e-5)


def test_ema_is_the_average_by_hand(tmp_path):
    history = []

    def watch(model, batch):
        history.append({name: value.clone() for name, value in model.state_dict().items()})
        return compute_losses(model, batch)

    averaged = run(tmp_path, steps=3, ema_decay=0.75, losses=watch)
    last = run(tmp_path / "plain", steps=3)
    for name, value in averaged.items():  # AveragedModel starts from the weights after the first step
        expected = 2 / 11 * history[1][name] + 9 / 11 * history[2][name]  # a young average forgets faster than by 0.75
        expected = 3 / 12 * expected + 9 / 12 * last[name]
        torch.testing.assert_close(value, expected)


def test_metrics_are_logged_with_every_named_loss(tmp_path):
    run(tmp_path, steps=4, logging_steps=2)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert all(math.isclose(row["half"], row["loss"] / 2, rel_tol=1e-4) for row in rows)
    assert {"learning_rate", "gradient_norm", "images_per_second"} <= rows[0].keys()


def test_loss_that_is_not_finite_stops_the_run_or_skips_the_step(tmp_path):
    calls = []

    def sometimes_nan(model, batch):
        calls.append(0)
        losses = compute_losses(model, batch)
        return {"loss": losses["loss"] * (math.nan if len(calls) == 2 else 1.0)}

    with pytest.raises(ValueError, match="not finite at step 2"):
        run(tmp_path / "a", losses=sometimes_nan)
    calls.clear()
    weights = run(tmp_path / "b", losses=sometimes_nan, on_nonfinite_loss="skip")
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("field, value", [("max_train_steps", 0), ("train_batch_size", 0), ("ema_decay", 1.0)])
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        TrainingSettings(output_dir="x", **{field: value})


# ---- the order of the data


@given(
    items=st.integers(1, 30), batch=st.integers(1, 5), accumulation=st.integers(1, 3), world=st.integers(1, 3),
    steps=st.integers(2, 6), first=st.integers(0, 2),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_sampler_covers_epochs_and_does_not_depend_on_processes_or_resumption(items, batch, accumulation, world, steps, first):
    def batches(world, batch, first):
        config = TrainingSettings("x", 1, steps, batch, accumulation)
        ranks = [list(StepSampler(items, config, first, rank, world)) for rank in range(world)]
        assert all(len(StepSampler(items, config, first, rank, world)) == len(ranks[rank]) for rank in range(world))
        return [key for group in zip(*ranks, strict=True) for part in group for key in part]

    keys = batches(world, batch, 0)
    assert keys == batches(1, batch * world, 0)
    assert batches(world, batch, first) == keys[first * accumulation * world * batch :]
    assert [key.step for key in keys] == sorted(key.step for key in keys)
    for epoch in range(len(keys) // items):
        assert sorted(key.index for key in keys if key.epoch == epoch) == list(range(items))


def test_another_seed_gives_another_order():
    orders = [[key.index for keys in StepSampler(50, TrainingSettings("x", seed, 5, 10)) for key in keys] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


# ---- optimiser


def test_only_matrices_decay():
    model = nn.ModuleDict({"embedding": nn.Embedding(3, 2), "linear": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
    groups = {group["weight_decay"]: sum(p.numel() for p in group["params"]) for group in parameter_groups(model, 0.1, 0.3)}
    assert groups == {0.3: 4, 0.0: 6 + 2 + 4}


def test_learning_rate_factors_take_the_longest_prefix_and_skip_frozen_parameters():
    model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(1, 1, bias=False)}), "ab": nn.Linear(1, 2, bias=False)})
    groups = parameter_groups(model, 1.0, 0.0, {"a": 0.1, "a.b": 0.5})
    assert {group["lr"]: sum(p.numel() for p in group["params"]) for group in groups} == {0.5: 1, 1.0: 2}
    model["ab"].requires_grad_(False)
    assert [group["lr"] for group in parameter_groups(model, 1.0, 0.0, {"a": 0.1})] == [0.1]
    with pytest.raises(ValueError, match="ab"):
        parameter_groups(model, 1.0, 0.0, {"ab": 0.1})


def test_schedules_at_known_points():
    cosine = schedule_factor("cosine", 4, 12, final_factor=0.2)
    assert [cosine(step) for step in (0, 3, 4)] == [0.25, 1.0, 1.0]
    assert cosine(8) == pytest.approx(0.6) and cosine(12) == pytest.approx(0.2) and cosine(99) == pytest.approx(0.2)
    assert schedule_factor("poly", 0, 10)(5) == pytest.approx(0.5**0.9)
    assert schedule_factor("constant", 2, 10)(9) == 1.0
    with pytest.raises(ValueError, match="linear"):
        schedule_factor("linear", 0, 10)
    with pytest.raises(ValueError, match="warmup_steps"):
        schedule_factor("cosine", 11, 10)
