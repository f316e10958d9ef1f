"""Concept curation for one image at a time: archive, ranking, clusters, and the draw for a training step. Pure functions.

Paper: CoCu, Xing et al., NeurIPS 2023, arXiv 2309.13505, sections 3.2 to 3.4. Symbols: A_i archive, t_c text embedding of
concept c, v_i image embedding, R_c the image and those of its neighbours whose captions name c.
Deviations: membership in R_c is by concept, not by substring ("tea" is not in "steak"); the image counts once; clusters are
drawn without replacement; cosines are floored at a small positive value, since ratios of negative ones mean nothing.
"""

import hashlib
from collections.abc import Collection, Sequence

import numpy as np

SMALLEST_COSINE = 1e-3
RESTARTS, ITERATIONS = 5, 100
SAMPLING = ("clustered", "top", "none")


def expand(own: Collection[int], neighbours: Sequence[Collection[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Vision-driven expansion: all concepts that the image's caption or a neighbour's caption names.

    Args:
        own: concepts of the image's own caption.
        neighbours: concepts of the captions of its k nearest images.

    Returns:
        `archive (A,)`, sorted ids, and `member (A, 1 + k)` bool: which images belong to R_c, the image itself (always) first.
    """
    archive = np.array(sorted(set(own).union(*neighbours)), np.int64)
    member = np.ones((len(archive), 1 + len(neighbours)), bool)
    for column, concepts in enumerate(neighbours, start=1):
        member[:, column] = np.isin(archive, np.fromiter(concepts, np.int64, len(concepts)))
    return archive, member


def rank(cosines: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Text-to-vision-guided ranking.

    score(c) = s(c, i) / max over A and R of s + s(c, i) / mean over R_c of s(c, j): how well the concept fits the image beside
    the best fit around, and beside the images that brought it.

    Args:
        cosines: `(A, 1 + k)`, s(c, j) = <t_c, v_j>, the image itself in column 0.
        member: `(A, 1 + k)`, from `expand`.

    Returns:
        `(A,)` float32 scores, positive.
    """
    if not len(cosines):
        return np.zeros(0, np.float32)
    cosines = np.maximum(cosines.astype(np.float64), SMALLEST_COSINE)
    largest = cosines[member].max()
    means = (cosines * member).sum(axis=1) / member.sum(axis=1)
    return (cosines[:, 0] / largest + cosines[:, 0] / means).astype(np.float32)


def cluster(text_embeds: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """k-means of an archive's concepts into ceil(A / 2) clusters; two concepts or fewer are not clustered.

    Args:
        text_embeds: `(A, dim)`.

    Returns:
        `(A,)` int16 cluster ids, numbered in order of first appearance.
    """
    count = len(text_embeds)
    if count <= 2:
        return np.arange(count, dtype=np.int16)
    # Distances are all that matters: an orthonormal basis of the A points makes the arithmetic independent of `dim`.
    points = np.asarray(np.linalg.qr(text_embeds.astype(np.float64).T, mode="r")).T
    best_labels, best_cost = np.zeros(count, dtype=np.int64), np.inf
    for _ in range(RESTARTS):
        labels, cost = lloyd(points, points[random.choice(count, -(-count // 2), replace=False)])
        if cost < best_cost - 1e-12:
            best_labels, best_cost = labels, cost
    _, first, labels = np.unique(best_labels, return_index=True, return_inverse=True)
    return first.argsort().argsort()[labels].astype(np.int16)


def lloyd(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """Labels and summed squared distance of k-means from the given centres; an empty cluster keeps its centre."""
    labels: np.ndarray = np.full(len(points), -1)
    for _ in range(ITERATIONS):
        distances = ((points[:, None] - centres) ** 2).sum(axis=2)
        new_labels = distances.argmin(axis=1)
        if (new_labels == labels).all():
            break
        labels = new_labels
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, points)
        sizes = np.bincount(labels, minlength=len(centres))[:, None]
        centres = np.where(sizes > 0, sums / np.maximum(sizes, 1), centres)
    return labels, float(distances.min(axis=1).sum())


def sample_top(scores: np.ndarray, count: int) -> list[int]:
    """Positions of the `count` best concepts, best first; the released loader does this."""
    return np.argsort(-scores, kind="stable")[:count].tolist()


def sample_clustered(
    scores: np.ndarray, clusters: np.ndarray, count: int, temperature: float, random: np.random.Generator
) -> list[int]:
    """Cluster-guided sampling: `count` clusters without replacement by softmax of their mean scores, one concept of each.

    Args:
        scores, clusters: `(A,)`.
        temperature: of the softmax over the scores within a cluster.

    Returns:
        Positions in the archive; fewer than `count` where there are fewer clusters.
    """
    if not len(scores):
        return []
    sizes = np.bincount(clusters)
    means = np.bincount(clusters, weights=scores) / sizes
    drawn = random.choice(len(means), min(count, len(means)), replace=False, p=softmax(means))
    positions = [np.flatnonzero(clusters == number) for number in drawn]
    return [int(random.choice(members, p=softmax(scores[members] / temperature))) for members in positions]


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values.astype(np.float64) - values.max())
    return exponentials / exponentials.sum()


def random_for(key: str, seed: int) -> np.random.Generator:
    """A generator that depends on the sample's key alone: not on its row, its shard or the process that handles it."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "little")])
