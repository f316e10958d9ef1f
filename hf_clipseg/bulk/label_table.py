"""Results as Parquet files that are whole or absent, and a journal, so that a killed run repeats nothing that was done.

Every result is appended to a journal at once; when it holds a file's worth, the journal becomes a Parquet file under its final
name. What a killed run left in its journal is turned into a file when the next one starts. Each process of a run has a
journal and files of its own, named by its rank, so that none waits for another.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from ..atomic import replace_file

FILE_ROWS = 1000
FILE_BYTES = 64 * 2**20
"""A file is closed at so many rows, or bytes of PNGs, whatever comes first: so much is held in memory once per file."""

SCHEMA = Features(
    key=Value("string"),
    label_map=Image(),
    height=Value("int32"),
    width=Value("int32"),
    ids=List(Value("int32")),
    names=List(Value("string")),
    areas=List(Value("float32")),
).arrow_schema
"""`datasets.load_dataset("parquet", ...)` shows the column `label_map` as pictures."""


class LabelTable:
    """Where the rows of one process go; close it, or use it as a context manager.

    Args:
        folder: of the Parquet files, `labels-RANK-NUMBER.parquet`.
        rank, world: this process among all of the run.
        resume: take over what an earlier run left; otherwise its files are an error.

    Raises:
        ValueError: results of another run are there and `resume` is not set.
    """

    def __init__(self, folder: str | Path, rank: int = 0, world: int = 1, resume: bool = False):
        self.folder, self.rank, self.world = Path(folder), rank, world
        self.folder.mkdir(parents=True, exist_ok=True)
        self._rows = self._bytes = 0
        self._sink: Any = None
        self._writer: Any = None
        mine = [path for path in [*self._files(), *self._journals()] if self._owner(path) == rank]
        if mine and not resume:
            raise ValueError(
                f"{folder} holds results of an earlier run ({mine[0].name}). Go on with it by --resume, or name another folder."
            )
        self.done = self._take_over()
        self._open()

    def add(self, row: dict[str, Any]) -> None:
        """Keeps a `label_row`; it survives a kill from here on."""
        stored = row | {"label_map": {"bytes": row["label_map"], "path": None}}
        self._writer.write_batch(pa.RecordBatch.from_pylist([stored], schema=SCHEMA))
        self._rows, self._bytes = self._rows + 1, self._bytes + len(row["label_map"])
        if self._rows >= FILE_ROWS or self._bytes >= FILE_BYTES:
            self.close()
            self._open()

    def close(self) -> None:
        self._writer.close()
        self._sink.close()
        self._to_file(self._journal, set())

    def __enter__(self) -> "LabelTable":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def _journal(self) -> Path:
        return self.folder / f".journal-{self.rank:05d}.arrows"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("labels-*-*.parquet"))

    def _journals(self) -> list[Path]:
        return sorted(self.folder.glob(".journal-*.arrows"))

    def _owner(self, path: Path) -> int:
        """Which process of this run takes over what a process of an earlier one left."""
        return int(path.stem.split("-")[1]) % self.world

    def _open(self) -> None:
        self._rows = self._bytes = 0
        self._sink = pa.OSFile(str(self._journal), "wb")
        self._writer = pa.ipc.new_stream(self._sink, SCHEMA)

    def _take_over(self) -> set[str]:
        """The keys of all results so far, of any process; own journals become files.

        Journals are read before files: one that another process turns into a file meanwhile is found in either place.
        """
        journals = self._journals()
        keys = {key for path in journals for batch in read_journal(path) for key in batch.column("key").to_pylist()}
        in_files = {key for path in self._files() for key in pq.read_table(path, columns=["key"])["key"].to_pylist()}
        for path in journals:
            if self._owner(path) == self.rank:
                self._to_file(path, in_files)
        return keys | in_files

    def _to_file(self, journal: Path, known: set[str]) -> None:
        """A journal as a Parquet file; rows that a kill between the two steps left in both places stay in one."""
        batches = [batch for batch in read_journal(journal) if batch.column("key")[0].as_py() not in known]
        if batches:
            numbers = [int(path.stem.split("-")[2]) for path in self._files() if int(path.stem.split("-")[1]) == self.rank]
            path = self.folder / f"labels-{self.rank:05d}-{max(numbers, default=-1) + 1:05d}.parquet"
            with replace_file(path) as partial:
                pq.write_table(pa.Table.from_batches(batches, SCHEMA), partial)
        journal.unlink(missing_ok=True)


def read_journal(path: Path) -> Iterable[pa.RecordBatch]:
    """The rows that were written whole, one per batch; a kill may have cut the last one."""
    batches: list[pa.RecordBatch] = []
    try:
        with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as reader:
            batches.extend(iter(reader.read_next_batch, None))
    except (StopIteration, OSError, pa.ArrowInvalid):
        pass
    return batches
