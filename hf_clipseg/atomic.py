"""Files and folders that exist are complete: written under a temporary name beside their place, then renamed.

A kill at any moment leaves what was there before, and a temporary name that the next write of the same thing takes over. So
does a disk that fills up, which is a `DiskFullError` whatever the library that wrote makes of it.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_SIGNS = ("No space left on device", "os error 28", "Disk quota exceeded", "PytorchStreamWriter", "inline_container")
"""What safetensors and torch say, whose errors carry no number."""


class DiskFullError(OSError):
    """There is no room for what was to be written."""


@contextmanager
def disk_full_named(path: str | os.PathLike) -> Iterator[None]:
    """Turns what the block raises on a full disk into one sentence about `path`; other errors pass."""
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if getattr(error, "errno", None) not in FULL and not any(sign in str(error) for sign in FULL_SIGNS):
            raise
        free = shutil.disk_usage(Path(path).parent).free / 2**20
        raise DiskFullError(
            f"{path} could not be written: the disk is full ({free:.1f} MB are free). Make room and try again."
        ) from error


def partial_name(path: Path, per_process: bool = False) -> Path:
    """Where `path` is written until it is complete: hidden, on the same file system."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial" if per_process else f".{path.name}.partial")


@contextmanager
def replace_file(path: str | os.PathLike, per_process: bool = False) -> Iterator[Path]:
    """The name to write to; it becomes `path` when the block ends without an error, and is removed when it does not.

    With `per_process` several processes may write the same file at once: each under a name of its own, and the last one stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path, per_process)
    try:
        with disk_full_named(path):
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: str | os.PathLike) -> Iterator[Path]:
    """An empty folder to write into; it takes the place of `path` when the block ends without an error.

    What `path` held before is gone afterwards. Between the two renames that this takes, a kill leaves the old content under
    `.<name>.old`, complete.
    """
    path = Path(path)
    partial, old = partial_name(path), path.with_name(f".{path.name}.old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with disk_full_named(path):
            yield partial
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)
        os.replace(partial, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def claim_folder(path: str | os.PathLike) -> Iterator[Path]:
    """An empty folder to write into; it becomes `path`, unless another process was first, whose equal content then stays."""
    path = Path(path)
    partial = partial_name(path, per_process=True)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with disk_full_named(path):
            yield partial
        try:
            os.replace(partial, path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
