"""Running a function in processes of their own that share what this one has imported."""

import os
import signal
import socket
import traceback
from collections.abc import Callable

TIME_LIMIT = 600  # seconds


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def run_forked(function: Callable[[int], None], count: int = 1) -> list[int]:
    """Runs `function(rank)` in `count` forked processes at once; returns exit statuses, negative ones for signals."""
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            status = 1
            signal.alarm(TIME_LIMIT)  # a process that waits for ever fails the test instead of stopping the suite
            try:
                single_threaded()
                function(rank)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def single_threaded() -> None:
    """A forked process has lost the threads of its parent: it must not wait for them."""
    import faiss
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def as_rank(rank: int, world: int, port: int) -> None:
    """Makes the next `Accelerator` of this process the `rank`-th of `world` on the CPU."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
