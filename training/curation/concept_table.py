"""The concepts of curation, joined to training samples by key and sampled anew in each epoch."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet

from .concepts import SAMPLING, sample_clustered, sample_top

COLUMNS = ("key", "caption_concepts", "concepts", "scores", "clusters")


class ConceptTable:
    """Sidecars of `curate_concepts` in memory (Arrow: about 20 bytes a concept), found by key.

    Args:
        folder: what curation wrote (`<output_dir>`), or a folder of Parquet files with `COLUMNS`.

    Raises:
        ValueError: there are no sidecars, a curation that is not finished, a missing column, or a key that occurs twice.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        paths = sorted((self.folder / "concepts").glob("*.parquet")) or sorted(self.folder.glob("*.parquet"))
        if not paths:
            raise ValueError(f"{folder} holds no concepts: no *.parquet there, nor in its folder 'concepts'.")
        if (self.folder / "manifest.json").is_file() and not (self.folder / "summary.json").is_file():
            raise ValueError(f"The curation in {folder} is not finished: start curate_concepts again, it goes on where it was.")
        missing = [name for name in COLUMNS if name not in parquet.read_schema(paths[0]).names]
        if missing:
            raise ValueError(f"{paths[0]} lacks the columns {missing}.")
        self.rows = pa.concat_tables([parquet.read_table(path, columns=list(COLUMNS)) for path in paths]).combine_chunks()
        keys = self.rows["key"].to_pylist()
        self.row_of = {key: row for row, key in enumerate(keys)}
        if len(self.row_of) != len(keys):
            raise ValueError(f"{len(keys) - len(self.row_of)} keys occur more than once in {folder}.")
        self.id_of_name = {name: number for number, name in enumerate(self.names())}

    def skipped_rows(self) -> list[int]:
        """Rows of the source whose image curation could not read."""
        path = self.folder / "summary.json"
        return [entry["row"] for entry in json.loads(path.read_text())["skipped"]] if path.is_file() else []

    def check(self, keys: Iterable[str], source_description: dict) -> None:
        """Stops where the samples are not those that were curated.

        Raises:
            ValueError: keys without concepts, or keys that are row numbers of another data set.
        """
        keys = list(keys)
        unknown = [key for key in keys if key not in self.row_of]
        if unknown:
            raise ValueError(
                f"{len(unknown)} of {len(keys)} samples have no concepts in {self.folder}, among them {unknown[:5]}. "
                "Curate the data set that you train on, with the same split and number of samples."
            )
        path = self.folder / "manifest.json"
        curated = json.loads(path.read_text()) if path.is_file() else {"keyed_by": "key"}
        if curated["keyed_by"] == "row number" and curated["source"] != json.loads(json.dumps(source_description)):
            raise ValueError(
                f"The data set has no key column, so concepts are joined by row number, and {self.folder} was made from "
                f"{curated['source']}, not from {source_description}. Add a key column, or curate again."
            )

    def sample(self, key: str, mode: str, count: int, temperature: float, random: np.random.Generator) -> list[str]:
        """At most `count` concepts of a sample.

        Args:
            mode: `clustered` or `top` of the curated archive; `none`: those of the caption itself, at random, as GroupViT.
            temperature: of `clustered`.
        """
        names, row = self.archive(key, mode), self.row_of[key]
        if mode == "none":
            return [names[position] for position in random.permutation(len(names))[:count]]
        scores = np.array(self.rows["scores"][row].as_py(), np.float64)
        if mode == "top":
            return [names[position] for position in sample_top(scores, count)]
        clusters = np.array(self.rows["clusters"][row].as_py(), np.int64)
        return [names[position] for position in sample_clustered(scores, clusters, count, temperature, random)]

    def archive(self, key: str, mode: str) -> list[str]:
        """The concepts that `sample` draws from."""
        if mode not in SAMPLING:
            raise ValueError(f"sampling must be one of {SAMPLING}, got {mode!r}.")
        return self.rows["caption_concepts" if mode == "none" else "concepts"][self.row_of[key]].as_py()

    def longest_archive(self) -> int:
        return max(compute.max(compute.list_value_length(self.rows[name])).as_py() or 0 for name in COLUMNS[1:3])

    def names(self) -> list[str]:
        """All concepts in the table, sorted."""
        columns = (compute.unique(compute.list_flatten(self.rows[name])) for name in ("concepts", "caption_concepts"))
        return sorted(set().union(*(column.to_pylist() for column in columns)))

    def id_of(self, concept: str) -> int:
        """A number that all processes agree on: the position of `concept` in `names`."""
        return self.id_of_name[concept]
