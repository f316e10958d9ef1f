"""Scores against independent implementations: scikit-learn, and loops over single pixels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from hf_clipseg.evaluation import edge_pixels
from hf_clipseg.evaluation.metrics import BoundaryF, ConfusionMatrix, harmonic_mean, summarise


def random_maps(seed, num_classes=5, shape=(2, 17, 23), ignored=0.2):
    generator = np.random.default_rng(seed)
    prediction = generator.integers(0, num_classes, shape)
    target = generator.integers(0, num_classes, shape)
    return prediction, np.where(generator.random(shape) < ignored, 255, target)


@pytest.mark.parametrize("seed", range(5))
def test_matrix_equals_scikit_learn(seed):
    prediction, target = random_maps(seed)
    confusion = ConfusionMatrix(5)
    for pair in zip(prediction, target, strict=True):  # numpy first, then tensors: both are accepted
        confusion.update(*pair)
    valid = target != 255
    expected = confusion_matrix(target[valid], prediction[valid], labels=range(5))
    assert np.array_equal(confusion.matrix.numpy(), expected)
    again = ConfusionMatrix(5)
    again.update(torch.from_numpy(prediction), torch.from_numpy(target).to(torch.uint8))
    assert torch.equal(again.matrix, confusion.matrix)


@pytest.mark.parametrize("seed", range(3))
def test_iou_equals_loops_over_pixels(seed):
    prediction, target = random_maps(seed)
    confusion = ConfusionMatrix(5)
    confusion.update(prediction, target)
    for class_id, iou in enumerate(confusion.iou().tolist()):
        pairs = [(p == class_id, t == class_id) for p, t in zip(prediction.flat, target.flat, strict=True) if t != 255]
        assert iou == pytest.approx(sum(p and t for p, t in pairs) / sum(p or t for p, t in pairs), abs=1e-12)
    right = [p == t for p, t in zip(prediction.flat, target.flat, strict=True) if t != 255]
    assert confusion.pixel_accuracy() == pytest.approx(sum(right) / len(right), abs=1e-12)


def test_a_class_outside_the_ground_truth_is_not_averaged_but_costs_the_class_it_replaced():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([0, 0, 0, 2]), torch.tensor([0, 0, 1, 0]))  # 2 is only ever predicted
    iou = confusion.iou()
    assert iou[:2].tolist() == [0.5, 0.0] and math.isnan(iou[2])
    assert confusion.mean_iou() == 0.25
    assert confusion.present().tolist() == [True, True, False]


def test_summarise_with_unseen_classes():
    confusion = ConfusionMatrix(4)
    confusion.update(torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 1, 2, 2, 2]))  # IoU 1, 1/2, 2/3, absent
    figures = summarise(confusion, unseen=[2, 3])
    assert figures["mIoU"] == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)
    assert figures["mIoU_seen"] == pytest.approx(0.75) and figures["mIoU_unseen"] == pytest.approx(2 / 3)
    assert figures["hIoU"] == pytest.approx(2 * 0.75 * (2 / 3) / (0.75 + 2 / 3))
    assert figures["per_class_iou"] == [1.0, 0.5, pytest.approx(2 / 3), None]
    assert summarise(confusion)["hIoU"] is None
    assert summarise(ConfusionMatrix(2))["mIoU"] is None


def test_harmonic_mean():
    assert harmonic_mean(0.25, 0.75) == pytest.approx(0.375)
    assert harmonic_mean(0.0, 0.0) == 0.0
    assert math.isnan(harmonic_mean(math.nan, 0.5))


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        ([0, 1], [0, 7], "target holds the label 7; expected 0..2"),
        ([0, -1], [0, 1], "prediction holds the label -1"),
        ([0, 1, 2], [0, 1], r"prediction has shape \(3,\), target \(2,\)"),
        ([0.0, 1.0], [0, 1], "take the argmax"),
    ],
)
def test_bad_maps_are_named(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(3).update(torch.tensor(prediction), torch.tensor(target))


@given(st.integers(0, 2**16), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_matrix_properties(seed, num_classes):
    prediction, target = random_maps(seed, num_classes, shape=(11, 7))
    confusion, perfect = ConfusionMatrix(num_classes), ConfusionMatrix(num_classes)
    confusion.update(prediction, target)
    perfect.update(np.where(target == 255, 0, target), target)
    assert confusion.matrix.sum() == (target != 255).sum()
    assert perfect.pixel_accuracy() == 1.0 and perfect.mean_iou() == 1.0
    assert 0 <= confusion.mean_iou() <= confusion.iou().nan_to_num().max() + 1e-12
    parts = ConfusionMatrix(num_classes), ConfusionMatrix(num_classes)
    parts[0].update(prediction[:4], target[:4])
    parts[1].update(prediction[4:], target[4:])
    assert torch.equal(parts[0].matrix + parts[1].matrix, confusion.matrix)


def boundary_f_by_loops(prediction, target, num_classes, radius):
    """Mean over classes of F, computed pixel pair by pixel pair."""
    height, width = target.shape

    def edge(labels, class_id):
        pixels = []
        for y in range(height):
            for x in range(width):
                if labels[y, x] != class_id or target[y, x] == 255:
                    continue
                around = [(y + dy, x + dx) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))]
                around = [(j, i) for j, i in around if 0 <= j < height and 0 <= i < width and target[j, i] != 255]
                if any(labels[place] != class_id for place in around):
                    pixels.append((y, x))
        return pixels

    def share_near(pixels, others):
        return np.mean([min(math.dist(a, b) for b in others) <= radius for a in pixels])

    scores = []
    for class_id in range(num_classes):
        predicted, true = edge(prediction, class_id), edge(target, class_id)
        if not (target == class_id).any() or not (predicted or true):
            continue
        if predicted and true:
            scores.append(harmonic_mean(share_near(predicted, true), share_near(true, predicted)))
        else:
            scores.append(0.0)
    return np.mean(scores)


@pytest.mark.parametrize(("seed", "tolerance"), [(0, 0.01), (1, 0.08), (2, 0.13), (3, 0.2)])
def test_boundary_f_equals_loops(seed, tolerance):
    generator = np.random.default_rng(seed)
    target = generator.integers(0, 3, (6, 5)).repeat(4, 0).repeat(4, 1)
    target[generator.random(target.shape) < 0.05] = 255
    prediction = np.roll(np.where(target == 255, 0, target), (1, 2), (0, 1))
    boundary = BoundaryF(3, tolerance)
    boundary.update(prediction, target)
    radius = max(1.0, tolerance * math.hypot(*target.shape))
    assert boundary.score() == pytest.approx(boundary_f_by_loops(prediction, target, 3, radius), abs=1e-12)


@pytest.mark.parametrize(("num_classes", "shape", "tolerance"), [(40, (19, 31), 0.1), (200, (40, 7), 0.06), (3, (1, 25), 0.2)])
def test_boundary_f_of_many_classes_equals_loops(num_classes, shape, tolerance):
    """Every class has pixels everywhere, also at the ends of rows: none may find its partner in the row or class beside."""
    prediction, target = random_maps(7, num_classes, shape, ignored=0.1)
    boundary = BoundaryF(num_classes, tolerance)
    boundary.update(prediction, target)
    radius = max(1.0, tolerance * math.hypot(*shape))
    assert boundary.score() == pytest.approx(boundary_f_by_loops(prediction, target, num_classes, radius), abs=1e-12)


@pytest.mark.parametrize("num_squares", [1, 120, 2**22])  # one class at a time, two, all
@pytest.mark.parametrize(("tolerance", "ignore_index"), [(0.1, -1), (0.3, 2), (0.45, 300)])
def test_boundary_f_within_many_squares_equals_distances(monkeypatch, num_squares, tolerance, ignore_index):
    """Disks of several rings of 8 x 8 squares, classes in turns, and every kind of label that is ignored."""
    monkeypatch.setattr(edge_pixels, "MAX_SQUARES", num_squares)
    generator = np.random.default_rng(3)
    blocks = generator.integers(0, 5, (2, 5, 9)).repeat(7, 1).repeat(5, 2)
    prediction, target = (np.where(generator.random(each.shape) < 0.01, 0, each) for each in blocks)
    target[generator.random(target.shape) < 0.05] = ignore_index
    boundary = BoundaryF(5, tolerance, ignore_index)
    boundary.update(prediction, target)
    radius = tolerance * math.hypot(*target.shape)
    assert boundary.score() == pytest.approx(boundary_f_by_distances(prediction, target, 5, radius, ignore_index), abs=1e-12)


def boundary_f_by_distances(prediction, target, num_classes, radius, ignore_index):
    """All distances of all pixels of a class at once."""
    valid = np.pad(target != ignore_index, 1)

    def edge(labels, class_id):
        labels, found = np.pad(labels, 1), np.zeros_like(valid)
        for shift, axis in ((1, 0), (-1, 0), (1, 1), (-1, 1)):
            found |= np.roll((labels != class_id) & valid, shift, axis)
        return np.argwhere(found & valid & (labels == class_id))

    scores = []
    for class_id in set(range(num_classes)) - {ignore_index}:
        predicted, true = edge(prediction, class_id), edge(target, class_id)
        if (target == class_id).any() and len(predicted) + len(true):
            near = np.linalg.norm(predicted[:, None] - true[None], axis=2) <= radius
            shares = [near.any(axis=axis).mean() if near.size else 0.0 for axis in (0, 1)]
            scores.append(harmonic_mean(*shares))
    return np.mean(scores)


def test_boundary_f_refuses_labels_that_are_no_class():
    labels = torch.zeros(6, 6, dtype=torch.int64)
    for prediction, target, name in ((labels + 3, labels, "prediction"), (labels, labels + 4, "target")):
        with pytest.raises(ValueError, match=f"{name} holds the label"):
            BoundaryF(3).update(prediction, target)
    boundary = BoundaryF(3)
    boundary.update(labels + 9, torch.full_like(labels, 255))  # what is ignored may hold anything
    assert boundary.totals.sum() == 0


def square(left, size=40):
    labels = torch.zeros(size, size, dtype=torch.int64)
    labels[10:20, left : left + 10] = 1
    return labels


def test_boundary_f_falls_with_the_distance_of_the_contour():
    scores = []
    for shift in (0, 1, 3, 8):
        boundary = BoundaryF(2)
        boundary.update(square(10 + shift), square(10))
        scores.append(boundary.score())
    assert scores[0] == scores[1] == 1.0  # one pixel is always tolerated
    assert scores[1] > scores[2] > scores[3]


def test_boundary_f_of_a_missing_class_is_zero_and_of_a_full_image_undefined():
    boundary = BoundaryF(2)
    boundary.update(torch.zeros(8, 8, dtype=torch.int64), torch.zeros(8, 8, dtype=torch.int64))
    assert math.isnan(boundary.score())
    boundary.update(torch.zeros(40, 40, dtype=torch.int64), square(10))
    assert boundary.per_class().tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="one image at a time"):
        boundary.update(torch.zeros(1, 8, 8, dtype=torch.int64), torch.zeros(1, 8, 8, dtype=torch.int64))


@given(st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_boundary_f_properties(seed):
    prediction, target = random_maps(seed, 3, shape=(9, 13))
    boundary, swapped, perfect = BoundaryF(3), BoundaryF(3), BoundaryF(3)
    boundary.update(prediction, target)
    swapped.update(prediction[:, ::-1].copy(), target[:, ::-1].copy())
    perfect.update(np.where(target == 255, 0, target), target)
    assert 0 <= boundary.score() <= 1
    assert boundary.score() == pytest.approx(swapped.score(), abs=1e-12)
    assert perfect.score() == 1.0
