"""The nearest images of every image, by inner product with FAISS: exact by default, IVF with exact re-scoring by option.

Exact search streams the database shard by shard past a block of queries, so that its memory does not depend on the number of
images: 4 * dim * (query block + one shard) bytes, 43 MB at 512 channels and shards of 10,000. IVF keeps its index in memory:
about 68 bytes an image with PQ64, 2 * dim + 8 with fp16 vectors.
Both return numbers of `CurationStore`, best first; ties are broken by number, so that the order of work does not matter.
"""

from pathlib import Path

import faiss
import numpy as np

from hf_clipseg.atomic import replace_file

from .curation_store import CurationStore

EXACT = "flat"


def nearest(store: CurationStore, shard: int, count: int, index: faiss.Index | None, over_fetch: int = 4) -> np.ndarray:
    """Numbers `(rows, count)` of the images nearest to each image of a shard, without itself; -1 where there are no more.

    Args:
        index: None searches exactly; otherwise an inner-product index of all embeddings from `build_index`.
        over_fetch: candidates taken from the index, as a multiple of `count`, before they are scored exactly.
    """
    queries = np.ascontiguousarray(store.embeddings(shard), np.float32)
    own = np.arange(len(queries)) + store.starts[shard]
    if not len(queries):
        return np.empty((0, count), np.int64)
    if index is None:
        scores, numbers = exact_search(store, queries, count + 1)
    else:
        numbers = index.search(queries, count * over_fetch + 1)[1]
        scores = rescore(store, queries, numbers)
    scores[numbers == own[:, None]] = -np.inf
    numbers[numbers == own[:, None]] = -1
    return best(scores, numbers, count)[1]


def exact_search(store: CurationStore, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and numbers `(queries, count)` of the nearest among all embeddings."""
    scores = np.full((len(queries), count), -np.inf, np.float32)
    numbers = np.full((len(queries), count), -1, np.int64)
    for shard in range(store.num_shards):
        database = np.ascontiguousarray(store.embeddings(shard), np.float32)
        if not len(database):
            continue
        found_scores, found = faiss.knn(queries, database, min(count, len(database)), metric=faiss.METRIC_INNER_PRODUCT)
        scores, numbers = best(
            np.concatenate([scores, found_scores], axis=1),
            np.concatenate([numbers, found + store.starts[shard]], axis=1),
            count,
        )
    return scores, numbers


def rescore(store: CurationStore, queries: np.ndarray, numbers: np.ndarray, block: int = 256) -> np.ndarray:
    """Exact scores of candidates `(queries, candidates)`; -inf for the -1 that FAISS pads with."""
    scores = np.empty(numbers.shape, np.float32)
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        scores[rows] = np.einsum("qd,qcd->qc", queries[rows], store.vectors(np.maximum(numbers[rows], 0)))
    scores[numbers < 0] = -np.inf
    return scores


def best(scores: np.ndarray, numbers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` best of each row, best first, the lower number first where scores are equal."""
    order = np.lexsort((numbers, -scores), axis=1)[:, :count]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(numbers, order, axis=1)


def build_index(store: CurationStore, factory: str, num_probes: int, train_size: int, seed: int = 0) -> faiss.Index:
    """An approximate index of all embeddings, filled shard by shard.

    Args:
        factory: FAISS's description, e.g. `IVF1024,SQfp16` or `OPQ64,IVF65536,PQ64`.
        num_probes: cells searched per query; more is slower and nearer to exact.
        train_size: images that the cells are learnt from, drawn by `seed`.

    Raises:
        ValueError: FAISS does not understand `factory`.
    """
    total, dim = int(store.starts[-1]), store.embeddings(0).shape[1]
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(f"--index {factory!r} is neither 'flat' nor an index that FAISS can build: {error}") from error
    sample = np.random.default_rng(seed).permutation(total)[:train_size]
    index.train(store.vectors(np.sort(sample)))
    for shard in range(store.num_shards):
        if len(store.embeddings(shard)):
            index.add(np.ascontiguousarray(store.embeddings(shard), np.float32))
    faiss.extract_index_ivf(index).nprobe = num_probes
    return index


def save_index(index: faiss.Index, path: Path) -> None:
    """A file that exists is complete."""
    with replace_file(path, per_process=True) as partial:
        faiss.write_index(index, str(partial))


def load_index(path: Path) -> faiss.Index:
    """The index, memory-mapped: processes of one machine share it."""
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
