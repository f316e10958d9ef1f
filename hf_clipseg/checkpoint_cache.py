"""Models in memory, shared by threads: each is loaded once, nobody waits for another's download, and memory is bounded."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

import torch

from .checkpoints import CheckpointError, LoadedCheckpoint, fetch_checkpoint, load_checkpoint

CAPACITY = 3 * 2**30
LOOK_INTERVAL = 0.1  # seconds between two looks at whether a waiting caller still wants to wait

logger = logging.getLogger(__name__)


class CheckpointCache:
    """Keeps the checkpoints used last, as many as fit into `capacity` bytes of weights. Failures are not remembered.

    Args:
        capacity: bytes of weights; the checkpoint loaded last stays, however large it is.
        device: that models are put on.
    """

    def __init__(self, capacity: int = CAPACITY, device: str | torch.device = "cpu"):
        self.capacity, self.device = capacity, device
        self._lock = threading.Lock()  # of the two tables; never held while something is loaded
        self._building = threading.Lock()  # transformers builds models under process-wide settings: one at a time
        self._loaded: OrderedDict[str, LoadedCheckpoint] = OrderedDict()
        self._loading: dict[str, Future] = {}

    def get(self, source: str, check: Callable[[], None] = lambda: None) -> LoadedCheckpoint:
        """The checkpoint, loaded where it is not in memory; callers that ask at the same time share one load.

        Args:
            check: called now and then while waiting; what it raises ends the waiting, and the load goes on for the others.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        with self._lock:
            if source in self._loaded:
                self._loaded.move_to_end(source)
                return self._loaded[source]
            future = self._loading.get(source)
            if future is None:
                future = self._loading[source] = Future()
                threading.Thread(target=self._load, args=(source, future), daemon=True).start()
        while True:
            check()
            try:
                return future.result(timeout=LOOK_INTERVAL)
            except FutureTimeout:
                if future.done():  # just now, or the load itself timed out
                    return future.result()

    def preload(self, sources: Iterable[str]) -> threading.Thread:
        """Loads checkpoints in the background, one after the other, until memory is full; failures are logged."""
        thread = threading.Thread(target=self._preload, args=(list(sources),), daemon=True)
        thread.start()
        return thread

    def _preload(self, sources: list[str]) -> None:
        for source in sources:
            if self.bytes_in_use() >= self.capacity:
                return
            try:
                self.get(source)
            except CheckpointError as error:
                logger.warning("not preloaded: %s", error)

    def bytes_in_use(self) -> int:
        with self._lock:
            return sum(loaded.num_bytes for loaded in self._loaded.values())

    def _load(self, source: str, future: Future) -> None:
        try:
            fetch_checkpoint(source)  # the network, which may stall
            with self._building:
                loaded = load_checkpoint(source, self.device)
            with self._lock:
                self._loaded[source] = loaded
                self._drop_oldest()
                del self._loading[source]
            future.set_result(loaded)
        except BaseException as error:  # whatever it was, those who wait must hear of it
            with self._lock:
                self._loading.pop(source, None)
            future.set_exception(error)

    def _drop_oldest(self) -> None:
        used = sum(loaded.num_bytes for loaded in self._loaded.values())
        while used > self.capacity and len(self._loaded) > 1:
            _, oldest = self._loaded.popitem(last=False)
            used -= oldest.num_bytes
