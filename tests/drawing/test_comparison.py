import numpy as np
import pytest

from hf_clipseg.drawing.comparison import area_table, share_classes
from hf_clipseg.drawing.palette import class_color, hex_color


def test_maps_are_renumbered_by_name():
    lists = [["sky", "sea"], ["tree", "sea", "sky"]]
    maps = [np.array([[0, 1]]), np.array([[0, 1], [2, 2]])]
    names, shared = share_classes(lists, maps)
    assert names == ["sky", "sea", "tree"]
    for class_list, before, after in zip(lists, maps, shared, strict=True):
        assert after.shape == before.shape
        assert [names[i] for i in after.ravel()] == [class_list[i] for i in before.ravel()]


def test_more_classes_than_a_byte_counts():
    many = [f"class {i}" for i in range(1000)]
    names, (shared,) = share_classes([many], [np.array([[999, 255]])])
    assert names == many and shared.tolist() == [[999, 255]]


def test_rows_are_sorted_and_absent_classes_left_out():
    names = ["sky", "sea", "tree"]
    rows = area_table([np.array([[0, 0, 0, 2]]), np.array([[2, 2, 2, 2]])], names)
    assert [row[0] for row in rows] == ["tree", "sky"]
    assert [row[2] for row in rows] == [pytest.approx([0.25, 1.0]), pytest.approx([0.75, 0.0])]
    assert rows[0][1] == hex_color(class_color(2))
