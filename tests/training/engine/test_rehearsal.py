"""What is said before the first step, and that a rehearsed run is the run without it; the moving average of the weights."""

import logging
import shutil

import pytest
import torch
from torch import nn

from training.engine.averaging import decay_after
from training.engine.rehearsal import Estimate, announce_estimate, duration, unchanged
from training.settings.training_settings import TrainingSettings

from ...tiny_run import compute_losses, run


class Normed(nn.Sequential):
    """Dropout draws from the global random state, and the batch norm has buffers: both would betray a rehearsal."""

    def __init__(self):
        torch.manual_seed(1)
        super().__init__(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))


def test_a_rehearsed_run_is_the_run_without_it(tmp_path, caplog):
    plain = run(tmp_path / "plain", model=Normed(), ema_decay=0.9)
    with caplog.at_level(logging.INFO):
        rehearsed = run(tmp_path / "rehearsed", model=Normed(), ema_decay=0.9, rehearsal_steps=3)
    for name, value in plain.items():
        assert torch.equal(value, rehearsed[name]), name
    (said,) = [record.getMessage() for record in caplog.records if "this will take about" in record.getMessage()]
    assert "6 steps of" in said and "measured on 3 steps that were thrown away" in said and " GB" in said


def test_no_more_steps_are_rehearsed_than_are_left(tmp_path, caplog):
    """A short run, and the last step of a resumed one, would read beyond the end of their data."""
    with caplog.at_level(logging.INFO):
        run(tmp_path, steps=2, checkpointing_steps=1, rehearsal_steps=3, checkpoints_total_limit=9)
    assert "measured on 2 steps that were thrown away" in caplog.text
    shutil.rmtree(tmp_path / "checkpoint-2")
    with caplog.at_level(logging.INFO):
        run(tmp_path, steps=2, rehearsal_steps=3, resume_from_checkpoint="latest")
    assert "1 steps of" in caplog.text and "measured on 1 steps" in caplog.text


def test_validations_are_counted(tmp_path, caplog):
    class Validates:
        def __call__(self, step, model):
            return None

        def ahead(self, step, model):
            return 2, 90.0

    with caplog.at_level(logging.INFO):
        run(tmp_path, steps=4, on_step=Validates(), rehearsal_steps=1)
    assert "this will take about 3 min: 4 steps of" in caplog.text and "2 validations of 90 s" in caplog.text


def test_memory_that_will_not_do(tmp_path, caplog):
    announce_estimate(Estimate(1.0, 95, 100, 3), TrainingSettings(str(tmp_path)), 0, (0, 0.0))
    assert "memory will be short: lower --train_batch_size" in caplog.text


def test_a_step_that_does_not_fit_is_one_sentence(tmp_path):
    def out_of_memory(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ValueError, match="2 images does not fit into memory: lower --train_batch_size"):
        run(tmp_path, losses=out_of_memory, rehearsal_steps=1)


def test_random_states_and_buffers_are_restored():
    network = Normed().eval()
    with unchanged(network):
        compute_losses(network, {"x": torch.randn(5, 4), "y": torch.randn(5)})
        assert network.training and network[1].num_batches_tracked == 1
    assert network[1].num_batches_tracked == 0 and not network.training
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    with unchanged(network):
        torch.rand(9)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("seconds", "said"), [(7.4, "7 s"), (99, "99 s"), (708, "12 min"), (12_000, "3 h 20 min")]
)  # fmt: skip
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_a_young_average_forgets_faster():
    assert [decay_after(count, 0.9) for count in (1, 10, 80, 81, 1000)] == pytest.approx([2 / 11, 0.55, 0.9, 0.9, 0.9])
