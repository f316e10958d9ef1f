"""The folder that curation works in: one file per shard and stage, each complete or absent, all tied to one manifest.

    manifest.json                     what the folder was made from; a run with other settings is refused
    embeddings/00000.npy              (rows, dim) fp16, L2-normalised image embeddings
    embeddings/00000.parquet          key, captions and source row of each embedding, in the same order
    skipped/00000.json                rows whose image cannot be read, with the reason
    vocabulary.json, text_embeds.npy  concepts, and (concepts, dim) fp32 embeddings of "a photo of a ..."
    matches/00000.values.npy          ids of the concepts that the captions name, row after row; .offsets.npy: where rows start
    neighbours/00000.npy              (rows, k) int64 numbers of the nearest images
    concepts/00000.parquet            the result: key, caption_concepts, concepts, scores, clusters

Images are numbered through all shards, without the skipped ones. The number never leaves this folder: results carry keys.
"""

import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from hf_clipseg.atomic import replace_file

from ..engine.provenance import write_json

MOST_OPEN_FILES = 256


class CurationStore:
    """Reading and writing the files of `folder`; arrays are memory-mapped, never read whole.

    Args:
        folder: as above.
        num_shards: how many shards the source is cut into.
    """

    def __init__(self, folder: str | Path, num_shards: int):
        self.folder, self.num_shards = Path(folder), num_shards
        self._mapped: dict[Path, np.ndarray] = {}

    def path(self, stage: str, shard: int, suffix: str) -> Path:
        return self.folder / stage / f"{shard:05d}{suffix}"

    def write(self, path: Path, write: Callable[[io.BufferedWriter], None]) -> None:
        """A file that exists is complete, whichever of the processes wrote it."""
        with replace_file(path, per_process=True) as partial, partial.open("wb") as file:
            write(file)

    def write_array(self, path: Path, array: np.ndarray) -> None:
        self.write(path, lambda file: np.save(file, array))

    def write_table(self, path: Path, columns: dict[str, pa.Array]) -> None:
        self.write(path, lambda file: parquet.write_table(pa.table(columns), file))

    def write_vocabulary(self, concepts: Sequence[Sequence[str]], origin: str) -> None:
        write_json(self.folder / "vocabulary.json", {"origin": origin, "concepts": [list(words) for words in concepts]})

    def read_vocabulary(self) -> list[list[str]]:
        return json.loads((self.folder / "vocabulary.json").read_text(encoding="utf-8"))["concepts"]

    def mapped(self, path: Path) -> np.ndarray:
        if path not in self._mapped:
            if len(self._mapped) >= MOST_OPEN_FILES:
                self._mapped.pop(next(iter(self._mapped)))
            self._mapped[path] = np.load(path, mmap_mode="r")
        return self._mapped[path]

    def embeddings(self, shard: int) -> np.ndarray:
        return self.mapped(self.path("embeddings", shard, ".npy"))

    def keys(self, shard: int) -> list[str]:
        return parquet.read_table(self.path("embeddings", shard, ".parquet"), columns=["key"])["key"].to_pylist()

    def captions(self, shard: int) -> list[list[str]]:
        return parquet.read_table(self.path("embeddings", shard, ".parquet"), columns=["captions"])["captions"].to_pylist()

    @cached_property
    def starts(self) -> np.ndarray:
        """`(num_shards + 1,)` number of the first image of each shard; the last entry is the number of images.

        Raises:
            ValueError: a shard's embeddings and keys do not belong together.
        """
        counts = []
        for shard in range(self.num_shards):
            embeddings = self.embeddings(shard)
            path = self.path("embeddings", shard, ".parquet")
            rows = parquet.read_metadata(path).num_rows
            if len(embeddings) != rows or embeddings.shape[1] != self.embeddings(0).shape[1]:
                raise ValueError(
                    f"{path} lists {rows} keys, but its embeddings are {embeddings.shape} (the first shard's have "
                    f"{self.embeddings(0).shape[1]} channels). Delete {path} and the .npy beside it to embed this shard again."
                )
            counts.append(rows)
        return np.concatenate([[0], np.cumsum(counts)])

    def vectors(self, numbers: np.ndarray) -> np.ndarray:
        """Embeddings `(..., dim)` float32 of the images `numbers (...)`, from whichever shards hold them."""
        flat = numbers.ravel()
        shards = np.searchsorted(self.starts, flat, side="right") - 1
        vectors = np.empty((len(flat), self.embeddings(0).shape[1]), np.float32)
        for shard in np.unique(shards):
            rows = shards == shard
            vectors[rows] = self.embeddings(shard)[flat[rows] - self.starts[shard]]
        return vectors.reshape(*numbers.shape, -1)

    def matches(self, number: int) -> list[int]:
        """Ids of the concepts that the captions of one image name."""
        shard = int(np.searchsorted(self.starts, number, side="right") - 1)
        row = number - int(self.starts[shard])
        offsets = self.mapped(self.path("matches", shard, ".offsets.npy"))
        return self.mapped(self.path("matches", shard, ".values.npy"))[offsets[row] : offsets[row + 1]].tolist()

    def skipped(self) -> list[dict]:
        """`row`, `key` and `error` of every image that could not be read."""
        paths = (self.path("skipped", shard, ".json") for shard in range(self.num_shards))
        return [entry for path in paths for entry in json.loads(path.read_text(encoding="utf-8"))["rows"]]

    def check_keys(self) -> None:
        """Stops where a key occurs twice: what is stored under it would be joined to the wrong sample.

        Raises:
            ValueError: names the first such keys.
        """
        counts = Counter(key for shard in range(self.num_shards) for key in self.keys(shard))
        repeated = [key for key, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(
                f"{len(repeated)} keys occur more than once, among them {repeated[:5]}. Concepts are joined to samples by key: "
                "make the key column unique, or remove the repeated rows."
            )


def claim_folder(folder: str | Path, manifest: dict) -> None:
    """Writes `manifest.json`, or checks that the one there says the same.

    Raises:
        ValueError: the folder holds the results of other settings; each difference is named.
    """
    path = Path(folder) / "manifest.json"
    manifest = json.loads(json.dumps(manifest))
    if not path.is_file():
        return write_json(path, manifest)
    existing = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in {**existing, **manifest} if existing.get(name) != manifest.get(name)]
    if changed:
        listed = "; ".join(f"{name}: {existing.get(name)} there, {manifest.get(name)} now" for name in changed)
        raise ValueError(f"{folder} was made from something else ({listed}). Use another --output_dir, or the same settings.")
