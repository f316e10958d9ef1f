"""Files and folders that exist are complete: written under a temporary name beside their place, then renamed.

A kill at any moment leaves what was there before, and a temporary name that the next write of the same thing takes over.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def partial_name(path: Path) -> Path:
    """Where `path` is written until it is complete: hidden, on the same file system."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def replace_file(path: str | os.PathLike) -> Iterator[Path]:
    """The name to write to; it becomes `path` when the block ends without an error, and is removed when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    try:
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
        yield partial
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)
        os.replace(partial, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
