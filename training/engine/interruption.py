"""Ending a run between two steps: Slurm, Spaces and spot machines ask for it by SIGTERM, Ctrl-C by SIGINT."""

import signal
import threading
from types import FrameType

import torch
from accelerate import Accelerator

STOPPED = 75
"""Exit status of a run that was asked to stop, wrote a checkpoint and can go on; EX_TEMPFAIL of sysexits.h."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)
PATIENCE = 3  # so many SIGINT end the process at once; `accelerate launch` passes one on to processes that have it already


class StopSignal:
    """While it is entered, SIGTERM and SIGINT are noted in `received` and do nothing else.

    Outside of the main thread, where Python allows no signal handlers, it does nothing.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._count, self._previous = 0, {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._count += number == signal.SIGINT
        if self._count >= PATIENCE:
            raise KeyboardInterrupt


class Stopped(SystemExit):
    """Ends the process with the status `STOPPED`, silently: the message has been printed by then."""

    def __init__(self):
        super().__init__(STOPPED)


def any_process(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """For each flag, whether it is raised in any process: all of them then do the same thing between the same steps."""
    if accelerator.num_processes == 1:
        return list(flags)
    counts = accelerator.reduce(torch.tensor(flags, dtype=torch.int64, device=accelerator.device), "sum")
    return (counts > 0).tolist()


def ignore_stop_signals(*_) -> None:
    """For processes that load data, which get the signals of a whole group, too, but end with the run, not before it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
