"""A cap on the pictures and results that visitors leave on the disk."""

import logging
import threading
import time
from pathlib import Path

LOOK_INTERVAL = 1.0  # seconds between two looks at a folder that is full

logger = logging.getLogger(__name__)


class StorageCap:
    """Deletes the oldest files of a folder while they take more than `max_bytes`; looks at most once in `interval` seconds.

    Files younger than `grace` seconds stay: somebody is looking at them. While those alone are too many, it is full.
    """

    def __init__(self, folder: str | Path, max_bytes: int, interval: float = 60.0, grace: float = 300.0):
        self.folder, self.max_bytes, self.interval, self.grace = Path(folder), max_bytes, interval, grace
        self._lock = threading.Lock()
        self._last = float("-inf")
        self._stored = 0

    def enforce(self) -> int:
        """How many files were deleted; 0 where it is not yet time to look again."""
        with self._lock:
            if time.monotonic() - self._last < self.interval:
                return 0
            return self._delete_oldest()

    def is_full(self, size: int) -> bool:
        """Whether `size` further bytes find no room, though old files were deleted; where they do, they count as stored."""
        with self._lock:
            since = time.monotonic() - self._last
            if since >= (LOOK_INTERVAL if self._stored + size > self.max_bytes else self.interval):
                self._delete_oldest(room=size)
            if self._stored + size > self.max_bytes:
                return True
            self._stored += size
            return False

    def _delete_oldest(self, room: int = 0) -> int:
        self._last = time.monotonic()
        files = []
        for path in self.folder.rglob("*"):
            try:
                if path.is_file():
                    files.append((path.stat().st_mtime, path.stat().st_size, path))
            except OSError:  # another thread was faster
                continue
        self._stored, deleted = sum(size for _, size, _ in files), 0
        for changed, size, path in sorted(files):
            if self._stored + room <= self.max_bytes or changed > time.time() - self.grace:
                break
            path.unlink(missing_ok=True)
            self._stored, deleted = self._stored - size, deleted + 1
        if deleted:
            logger.info("deleted %d stored files", deleted)
        return deleted
