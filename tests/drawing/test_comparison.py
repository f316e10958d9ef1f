"""What several methods make of one picture: shared ids, scores, agreement, and where they differ."""

import numpy as np
import pytest
from PIL import Image

from hf_clipseg.drawing.class_palette import class_colors
from hf_clipseg.drawing.comparison import (
    HEAT,
    NO_TRUTH,
    NONE_OF_THESE,
    Comparison,
    MethodResult,
    area_table,
    disagreement,
    heat_map,
    mean_iou,
    renumber,
    shared_names,
)
from hf_clipseg.evaluation.metrics import ConfusionMatrix

PICTURE = Image.new("RGB", (4, 1), (100, 100, 100))


def comparing(*maps, truth=None, names=("sky", "sea", "tree")):
    results = tuple(MethodResult(f"m{i}", f"M{i}", np.array([ids], np.uint16), 0.5) for i, ids in enumerate(maps))
    truth = None if truth is None else np.array([truth], np.uint16)
    return Comparison(PICTURE, list(names), [[name] for name in names], truth, results=results)


def test_maps_are_renumbered_by_name():
    lists = [["sky", "sea"], ["tree", "sea", "sky"]]
    maps = [np.array([[0, 1]]), np.array([[0, 1], [2, 2]])]
    names = shared_names(lists)
    assert names == ["sky", "sea", "tree"]
    for class_list, before in zip(lists, maps, strict=True):
        after = renumber(before, class_list, names)
        assert after.shape == before.shape
        assert [names[i] for i in after.ravel()] == [class_list[i] for i in before.ravel()]
    assert renumber(np.array([[0, 1]]), ["moon", "sky"], names).tolist() == [[NO_TRUTH, 0]]


def test_more_classes_than_a_byte_counts():
    many = [f"class {i}" for i in range(1000)]
    assert renumber(np.array([[999, 255]]), many, many).tolist() == [[999, 255]]


def test_rows_are_sorted_and_absent_classes_left_out():
    names = ["sky", "sea", "tree"]
    rows = area_table([np.array([[0, 0, 0, 2]]), np.array([[2, 2, 2, 2]])], names)
    assert [row[0] for row in rows] == ["tree", "sky"]
    assert [row[2] for row in rows] == [pytest.approx([0.25, 1.0]), pytest.approx([0.75, 0.0])]
    assert rows[0][1] == class_colors(names)["tree"]


def test_the_score_is_the_mean_iou_of_the_library():
    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 4, (2, 30, 40)).astype(np.uint16)
    predicted[:10] = truth[:10]
    truth[:, :5] = NO_TRUTH
    confusion = ConfusionMatrix(4)
    confusion.update(predicted.astype(np.int64), np.where(truth == NO_TRUTH, 255, truth).astype(np.int64))
    assert mean_iou(predicted, truth) == pytest.approx(confusion.mean_iou(), abs=1e-12)


def test_scores_and_the_best_method():
    """Method 0: sky 1/2, sea 2/3; method 1 is right everywhere."""
    comparison = comparing([0, 1, 1, 1], [0, 0, 1, 1], truth=[0, 0, 1, 1])
    assert comparison.scores() == pytest.approx([(1 / 2 + 2 / 3) / 2, 1.0]) and comparison.best() == 1
    assert comparing([0, 1, 1, 1], truth=[0, 0, 1, 1]).best() is None  # of one method
    unknown = comparing([0, 1, 1, 1], [0, 0, 0, 0], truth=[NO_TRUTH] * 4)
    assert unknown.scores() == [None, None] and unknown.best() is None
    assert [result["mIoU"] for result in comparison.numbers()["results"]] == [0.5833, 1.0]


def test_agreement_and_disagreement():
    maps = ([0, 0, 1, 2], [0, 0, 1, 1], [0, 1, 1, 0])
    comparison = comparing(*maps)
    assert comparison.scores() == [None] * 3
    assert comparison.agreements() == pytest.approx([(0.75 + 0.5) / 2, (0.75 + 0.5) / 2, 0.5])
    assert comparing(maps[0]).agreements() == [None]
    np.testing.assert_allclose(disagreement(comparison.label_maps), [[0, 1 / 3, 0, 2 / 3]])


def test_heat_glows_where_values_are_high():
    pixels = np.asarray(heat_map(PICTURE, np.array([[0.0, 1.0, 0.5, 0.0]])))
    assert tuple(pixels[0, 0]) == (50, 50, 50) and tuple(pixels[0, 1]) == HEAT
    assert tuple(pixels[0, 2]) == (152, 73, 25)


def test_none_of_these_is_never_painted():
    comparison = comparing([0, 2, 2, 0], truth=[0, NO_TRUTH, 0, 0], names=("sky", "sea", NONE_OF_THESE))
    assert comparison.unpainted == (2, NO_TRUTH)
    picture = Image.new("RGB", (60, 40), (100, 100, 100))  # names and lines are drawn, and nothing else
    comparison = Comparison(picture, ["sky", NONE_OF_THESE])
    pixels = np.asarray(comparison.overlay(np.repeat([[0] * 30 + [1] * 30], 40, axis=0).astype(np.uint16), 1.0))
    assert (pixels[:, 45:] == 100).all() and not (pixels[:5, :5] == 100).any()
    comparison = comparing([0, 2, 2, 0], truth=[0, NO_TRUTH, 0, 0], names=("sky", "sea", NONE_OF_THESE))
    assert comparison.areas(comparison.truth) == {"sky": 1.0}
    assert comparison.areas(comparison.label_maps[0]) == {"sky": 0.5, NONE_OF_THESE: 0.5}
