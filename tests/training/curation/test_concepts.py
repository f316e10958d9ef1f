"""The pure parts of curation: vocabulary, archive, ranking, clusters, sampling."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.curation.concepts import SMALLEST_COSINE, cluster, expand, random_for, rank, sample_clustered, sample_top, softmax
from training.curation.tokenization import NounVocabulary
from training.curation.vocabulary import mine_concepts


def test_vocabulary_is_mined_by_counting():
    captions = [
        "a picture of a red car and two boats",
        "A picture of the brick wall, a boat near the turquoise sea.",
        "several people beside a brick wall",
        "a person on the sea",
        "a red boat, a red sea and the blue cars",
        "a car standing on grass",
    ]
    concepts = mine_concepts(captions, min_count=2)
    assert concepts == [
        ["boat", "boats"],
        ["car", "cars"],
        ["sea"],
        ["brick wall"],
        ["person", "people"],
    ]
    vocabulary = NounVocabulary(concepts)
    assert [concepts[concept][0] for concept in sorted(vocabulary.find("Brick walls, PEOPLE and a car"))] == [
        "car",
        "brick wall",
        "person",
    ]


def test_nothing_frequent_enough():
    with pytest.raises(ValueError, match="--min_count"):
        mine_concepts(["a boat"], min_count=2)


def test_captions_of_any_kind_are_mined_and_matched():
    strange = ["", "\n\n", "\"quoted\" 'car'\nin two lines", "car " * 1250, "a car\x00", "車と船", "a" * 5000]
    concepts = mine_concepts([*strange, "a car", "the car"], min_count=2)
    assert concepts[0][0] == "car"
    found = [NounVocabulary(concepts).find(" ".join(caption.split())) for caption in strange]
    assert [0 in ids for ids in found] == [False, False, True, True, True, False, False]


def test_membership_is_exact():
    """By substring, "tea" would match "steak": concepts are ids."""
    archive, member = expand([1], [[1, 4], [], [2]])
    assert archive.tolist() == [1, 2, 4]
    assert member.astype(int).tolist() == [[1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, 0]]


def test_an_image_without_concepts_has_an_empty_archive():
    archive, member = expand([], [[], []])
    assert archive.shape == (0,) and member.shape == (0, 3)
    assert rank(np.zeros((0, 3)), member).shape == (0,) and cluster(np.zeros((0, 5)), random_for("k", 0)).shape == (0,)
    assert sample_clustered(np.zeros(0), np.zeros(0, int), 3, 1.0, random_for("k", 0)) == []


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_scores_from_the_formula(concepts, images, seed):
    random = np.random.default_rng(seed)
    cosines, member = random.uniform(-0.5, 1, (concepts, images)), random.random((concepts, images)) < 0.5
    member[:, 0] = True
    floored = np.maximum(cosines, SMALLEST_COSINE)
    largest = max(floored[c, j] for c in range(concepts) for j in range(images) if member[c, j])
    for c in range(concepts):
        r_c = [floored[c, j] for j in range(images) if member[c, j]]
        expected = floored[c, 0] / largest + floored[c, 0] / (sum(r_c) / len(r_c))
        assert rank(cosines, member)[c] == pytest.approx(expected, rel=1e-5)


def test_a_concept_that_fits_the_image_is_ranked_above_one_that_does_not():
    cosines = np.array([[0.30, 0.30, 0.28], [0.10, 0.30, 0.29]])
    scores = rank(cosines, np.array([[True, True, False], [True, True, True]]))
    assert scores[0] == pytest.approx(2.0) and scores[0] > 2 * scores[1]


def test_clusters_group_what_is_alike():
    random = np.random.default_rng(0)
    centres = np.eye(32)[[0, 1, 2]]
    points = np.repeat(centres, 2, axis=0) + 0.01 * random.normal(size=(6, 32))
    order = random.permutation(6)
    labels = cluster(points[order], random_for("image", 0))
    assert len(set(labels.tolist())) == 3 and labels[0] == 0  # ceil(6 / 2), numbered as they appear
    for first in range(6):
        for second in range(6):
            assert (labels[first] == labels[second]) == (order[first] // 2 == order[second] // 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 15), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_clusters_are_numbered_without_gaps(count, dim, seed):
    points = np.random.default_rng(seed).normal(size=(count, dim)).round(1)  # equal points occur
    labels = cluster(points, random_for("image", seed))
    assert labels.tolist() == cluster(points, random_for("image", seed)).tolist()
    first_seen = list(dict.fromkeys(labels.tolist()))
    assert first_seen == list(range(len(first_seen))) and len(first_seen) <= max(2, -(-count // 2))


def test_sampling_takes_one_concept_of_each_cluster():
    scores, clusters = np.array([3.0, 1.0, 2.0, 0.5]), np.array([0, 0, 1, 2])
    random = np.random.default_rng(0)
    draws = np.array([sample_clustered(scores, clusters, 2, 0.5, random) for _ in range(1500)])
    assert all(len(set(clusters[draw])) == 2 for draw in draws)
    means = softmax(np.array([2.0, 2.0, 0.5]))
    within = softmax(np.array([3.0, 1.0]) / 0.5)
    assert np.mean(clusters[draws[:, 0]] == 0) == pytest.approx(means[0], abs=0.05)
    in_first = draws[clusters[draws] == 0]
    assert np.mean(in_first == 0) == pytest.approx(within[0], abs=0.05)
    assert sorted(sample_clustered(scores, clusters, 9, 0.5, random), key=lambda p: clusters[p])[1:] == [2, 3]


def test_top_concepts_are_those_with_the_best_scores():
    assert sample_top(np.array([0.1, 0.9, 0.5]), 2) == [1, 2] and sample_top(np.array([0.1]), 3) == [0]
