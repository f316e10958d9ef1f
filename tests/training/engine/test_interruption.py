"""SIGTERM and SIGINT end a run between two steps, with a checkpoint, a message and a status of their own."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from safetensors.torch import load_file

from training.engine.checkpoints import list_checkpoints
from training.engine.interruption import SIGNALS, STOPPED, StopSignal

from ...forked import as_rank, free_port, run_forked
from ...tiny_run import compute_losses, run, sends_itself

ROOT = Path(__file__).parents[3]


def stopped_process(folder):
    """A run in a process of its own, whose whole group gets SIGTERM in the third step, as a cluster ends jobs."""
    command = [sys.executable, "-m", "tests.tiny_run", str(folder), "--signal", "SIGTERM", "--workers", "2"]
    options = {"cwd": ROOT, "capture_output": True, "text": True, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    return subprocess.run(command, start_new_session=True, timeout=300, **options)


def test_a_signal_ends_the_run_with_a_checkpoint_from_which_it_goes_on(tmp_path):
    stopped = stopped_process(tmp_path / "stopped")
    assert stopped.returncode == STOPPED, stopped.stderr
    message = f"stopped by SIGTERM after step 3 of 6; the work is in {tmp_path}/stopped/checkpoint-3. Go on by the same command"
    assert message in stopped.stderr and "Traceback" not in stopped.stderr
    assert [path.name for path in list_checkpoints(tmp_path / "stopped")] == ["checkpoint-3"]

    run(tmp_path / "stopped", resume_from_checkpoint="latest", logging_steps=1)
    run(tmp_path / "straight", logging_steps=1)
    rows = [[json.loads(line) for line in (tmp_path / each / "metrics.jsonl").open()] for each in ("stopped", "straight")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    ends = [load_file(tmp_path / each / "checkpoint-6" / "model.safetensors") for each in ("stopped", "straight")]
    assert all((ends[0][name] == ends[1][name]).all() for name in ends[0])


def test_an_interrupt_by_hand_is_a_stop_too(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run(tmp_path, losses=sends_itself(signal.SIGINT, 2))
    assert end.value.code == STOPPED
    assert "stopped by SIGINT after step 2 of 6" in capsys.readouterr().err
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2"]


def test_a_signal_to_one_process_stops_all_of_them(tmp_path):
    port = free_port()

    def run_rank(rank):
        as_rank(rank, 2, port)
        try:
            run(tmp_path, losses=sends_itself(signal.SIGTERM, 3) if rank == 1 else compute_losses, reset=False)
        except SystemExit as end:
            os._exit(end.code)

    assert run_forked(run_rank, 2) == [STOPPED, STOPPED]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-3"]


def test_handlers_are_put_back_and_the_third_interrupt_ends_at_once():
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopSignal() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received is signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_outside_of_the_main_thread_signals_are_left_alone(tmp_path):
    errors = []

    def in_thread():
        try:
            with StopSignal() as stop:
                assert stop.received is None
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert not errors
