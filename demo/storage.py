"""A cap on the pictures and results that visitors leave on the disk."""

import logging
import threading
import time
from pathlib import Path

logger = logging.getLogger(__name__)


class StorageCap:
    """Deletes the oldest files of a folder while they take more than `max_bytes`; looks at most once in `interval` seconds.

    Files younger than `grace` seconds stay: somebody is looking at them.
    """

    def __init__(self, folder: str | Path, max_bytes: int, interval: float = 60.0, grace: float = 300.0):
        self.folder, self.max_bytes, self.interval, self.grace = Path(folder), max_bytes, interval, grace
        self._lock = threading.Lock()
        self._last = float("-inf")

    def enforce(self) -> int:
        """How many files were deleted; 0 where it is not yet time to look again."""
        with self._lock:
            if time.monotonic() - self._last < self.interval:
                return 0
            self._last = time.monotonic()
            return self._delete_oldest()

    def _delete_oldest(self) -> int:
        files = []
        for path in self.folder.rglob("*"):
            try:
                if path.is_file():
                    files.append((path.stat().st_mtime, path.stat().st_size, path))
            except OSError:  # another thread was faster
                continue
        excess, deleted = sum(size for _, size, _ in files) - self.max_bytes, 0
        for changed, size, path in sorted(files):
            if excess <= 0 or changed > time.time() - self.grace:
                break
            path.unlink(missing_ok=True)
            excess, deleted = excess - size, deleted + 1
        if deleted:
            logger.info("deleted %d stored files", deleted)
        return deleted
