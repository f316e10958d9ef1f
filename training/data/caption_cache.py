"""Decoded, small, square copies of a captioned image set in one memory-mapped file, so that reading is never the slow part.

The file is keyed on everything that decides its content (the source's own description and the size), written under a temporary
name and renamed when complete. Processes and later runs share it.
"""

import hashlib
import json
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from hf_clipseg.atomic import claim_folder

VERSION = 2  # raise when the content of a cache would change for the same key
MIN_PER_PROCESS = 500  # a process takes seconds to start


def fit_square(image: Image.Image, size: int) -> np.ndarray:
    """(size, size, 3) uint8: the centre square of an RGB image, resized (box filter down, bicubic up)."""
    method = Image.Resampling.BOX if min(image.size) > size else Image.Resampling.BICUBIC
    return np.asarray(ImageOps.fit(image, (size, size), method=method))


class CachedCaptions:
    """Images (uint8 memory map, (N, size, size, 3)), captions and keys of `source`, items `{"image", "captions", "key"}`.

    Args:
        source: has `__len__`, `__getitem__` and `description` (a JSON-able dict that identifies its content).
        folder: where cache files live.
    """

    def __init__(self, source, size: int, folder: str | Path, num_processes: int = 2):
        self.size = size
        description = {"version": VERSION, "size": size, "length": len(source), **source.description}
        self.description = description
        key = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]
        self.path = Path(folder) / f"captions-{key}"
        if not self.path.is_dir():
            self._build(source, description, num_processes)
        self.captions: list[list[str]] = json.loads((self.path / "captions.json").read_text())
        self.images = np.load(self.path / "images.npy", mmap_mode="r")

    @cached_property
    def keys(self) -> list[str]:
        return json.loads((self.path / "keys.json").read_text())

    def __len__(self) -> int:
        return len(self.captions)

    def _build(self, source, description: dict, num_processes: int) -> None:
        with claim_folder(self.path) as partial:
            self._fill_folder(partial, source, description, num_processes)

    def _fill_folder(self, folder: Path, source, description: dict, num_processes: int) -> None:
        shape = (len(source), self.size, self.size, 3)
        np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        ranges = np.array_split(np.arange(len(source)), max(1, min(num_processes, len(source) // MIN_PER_PROCESS)))
        jobs = [(source, self.size, str(folder / "images.npy"), int(r[0]), int(r[-1]) + 1) for r in ranges]
        if len(jobs) == 1:
            texts = _fill(*jobs[0])
        else:
            with get_context("spawn").Pool(len(jobs)) as pool:
                texts = [text for part in pool.starmap(_fill, jobs) for text in part]
        for name, values in zip(("captions", "keys"), zip(*texts, strict=True), strict=True):
            (folder / f"{name}.json").write_text(json.dumps(values))
        (folder / "description.json").write_text(json.dumps(description, indent=2))


def _fill(source, size: int, path: str, start: int, stop: int) -> list[tuple[list[str], str]]:
    """Writes the images of some rows; returns their captions and keys."""
    images = np.load(path, mmap_mode="r+")
    texts = []
    for index in tqdm(range(start, stop), desc="reading images", mininterval=5, disable=start > 0):
        sample = source[index]
        images[index] = fit_square(sample["image"], size)
        texts.append((sample["captions"], sample["key"]))
    images.flush()
    return texts
