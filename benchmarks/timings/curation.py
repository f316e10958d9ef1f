"""Time and memory of concept curation's search on synthetic embeddings.

    OMP_NUM_THREADS=2 python -m benchmarks.timings.curation --images 1000000 --dim 512 --output curation.json

Embeddings are unit vectors around random centres (image embeddings cluster; uniform noise would make any IVF look bad). Exact
search is timed on some query shards and scaled to all, as every shard costs the same; `batched_speedup` compares one call for a
block of queries with one call per query, against the same vectors, in this run. Peak memory is the largest of the process's own
memory, sampled 20 times a second: embeddings are mapped files, which the kernel counts as resident but can drop at any time.
"""

import argparse
import json
import re
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np

from training.curation.concept_search import build_index, load_index, nearest, save_index
from training.curation.curation_store import CurationStore
from training.engine.provenance import provenance, write_json


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--shard_size", type=int, default=10_000)
    parser.add_argument("--num_neighbours", type=int, default=8)
    parser.add_argument("--index", default="IVF1024,SQfp16")
    parser.add_argument("--num_probes", type=int, default=32)
    parser.add_argument("--train_size", type=int, default=50_000)
    parser.add_argument("--query_shards", type=int, default=1, help="shards that search is timed on")
    parser.add_argument("--single_queries", type=int, default=50, help="queries searched one at a time")
    parser.add_argument("--folder", help="where the embeddings go (kept); default: a temporary folder")
    parser.add_argument("--output", help="JSON file of the figures")
    return parser.parse_args(arguments)


def write_embeddings(store: CurationStore, args: argparse.Namespace) -> None:
    """Shards of unit vectors around `images / 100` centres, as curation stores them."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(max(1, args.images // 100), args.dim)).astype(np.float32)
    for shard in range(store.num_shards):
        count = min(args.shard_size, args.images - shard * args.shard_size)
        vectors = centres[random.integers(len(centres), size=count)] + random.standard_normal((count, args.dim), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        store.write_array(store.path("embeddings", shard, ".npy"), vectors.astype(np.float16))
        keys = [str(shard * args.shard_size + row) for row in range(count)]
        store.write_table(store.path("embeddings", shard, ".parquet"), {"key": keys})


class PeakMemory:
    """`with PeakMemory() as memory: ...` leaves the largest anonymous memory of this process, in GiB, in `memory.gigabytes`."""

    def __enter__(self) -> "PeakMemory":
        self.gigabytes, self.stopped = 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.stopped.set()
        self.thread.join()

    def watch(self) -> None:
        while not self.stopped.wait(0.05):
            kilobytes = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]
            self.gigabytes = max(self.gigabytes, int(kilobytes) / 2**20)


def search_all(store: CurationStore, args: argparse.Namespace, index) -> tuple[np.ndarray, float]:
    """Neighbours of the first `--query_shards` shards, and seconds per query."""
    started = time.perf_counter()
    found = [nearest(store, shard, args.num_neighbours, index) for shard in range(args.query_shards)]
    found = np.concatenate(found)
    return found, (time.perf_counter() - started) / len(found)


def batched_speedup(store: CurationStore, args: argparse.Namespace) -> dict[str, float]:
    """Seconds per query of exact search, in a block and one at a time, against vectors that are in memory already."""
    shards = range(min(store.num_shards, -(-200_000 // args.shard_size)))
    database = np.concatenate([np.asarray(store.embeddings(shard), np.float32) for shard in shards])
    queries = np.ascontiguousarray(database[: max(args.single_queries, 1024)])
    seconds = {}
    for name, blocks in (("one_by_one", np.split(queries[: args.single_queries], args.single_queries)), ("batched", [queries])):
        started = time.perf_counter()
        for block in blocks:
            faiss.knn(block, database, args.num_neighbours + 1, metric=faiss.METRIC_INNER_PRODUCT)
        seconds[name] = (time.perf_counter() - started) / sum(len(block) for block in blocks)
    return {f"seconds_per_query_{name}": value for name, value in seconds.items()} | {
        "vectors": len(database), "batched_speedup": seconds["one_by_one"] / seconds["batched"],
    }  # fmt: skip


def measure(store: CurationStore, args: argparse.Namespace) -> dict:
    """Exact search, an index and its recall, and what batching gains."""
    with PeakMemory() as exact_memory:
        exact, exact_seconds = search_all(store, args, None)
    path = store.folder / "index.faiss"
    with PeakMemory() as build_memory:
        started = time.perf_counter()
        save_index(build_index(store, args.index, args.num_probes, args.train_size), path)
        build_seconds = time.perf_counter() - started
    with PeakMemory() as index_memory:
        found, seconds = search_all(store, args, load_index(path))
    recall = np.mean([len(np.intersect1d(a, b)) for a, b in zip(exact, found, strict=True)]) / args.num_neighbours
    hours = args.images / 3600
    return {
        "threads": faiss.omp_get_max_threads(),
        "flat": {
            "seconds_per_query": exact_seconds, "hours_for_all": exact_seconds * hours, "peak_gb": exact_memory.gigabytes,
        },
        "ivf": {
            "build_seconds": build_seconds, "build_peak_gb": build_memory.gigabytes, "index_gb": path.stat().st_size / 2**30,
            "seconds_per_query": seconds, "hours_for_all": seconds * hours, "peak_gb": index_memory.gigabytes,
            "recall": float(recall),
        },
        "batching": batched_speedup(store, args),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> dict:
    args = parse_arguments(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        store = CurationStore(args.folder or temporary, -(-args.images // args.shard_size))
        if not store.path("embeddings", store.num_shards - 1, ".parquet").is_file():
            write_embeddings(store, args)
        figures = {"arguments": vars(args), **measure(store, args)}
    print(json.dumps(figures, indent=2))
    if args.output:
        write_json(Path(args.output), figures | provenance("benchmarks.timings.curation", arguments or []))
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
