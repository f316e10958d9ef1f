"""What a data set leaves open: names of pixels that belong to no class, and captions that are not there."""

import datasets
import pytest
from PIL import Image

from training.data.class_sources import choose_class_names
from training.data.layouts import Layout
from training.data.source_types import CaptionSource


@pytest.mark.parametrize("first", ["other", "Unlabeled", "void"])
def test_reducing_labels_leaves_out_the_name_of_a_0_that_means_unlabelled(first):
    """ADE20K's list starts with "other": kept, it would shift every name by one class."""
    rows = datasets.Dataset.from_dict({"image": [0]})
    for reduce_labels, expected in ((True, [["wall"], ["sky"]]), (False, [[first], ["wall"], ["sky"]])):
        assert choose_class_names("nowhere", rows, f"{first}, wall, sky", Layout(rows), reduce_labels) == expected
    assert choose_class_names("nowhere", rows, "wall, sky", Layout(rows), True) == [["wall"], ["sky"]]


def test_captions_of_none_are_left_out_and_an_image_without_any_is_named():
    captions = [[None, "a sea"], [None], None, []]
    image = Image.new("RGB", (4, 4))
    rows = datasets.Dataset.from_dict({"image": [image] * 4, "captions": captions, "key": ["a", "b", "c", "d"]})
    source = CaptionSource(rows, None, None, {})
    assert source[0]["captions"] == ["a sea"]
    for index, key in ((1, "b"), (2, "c"), (3, "d")):
        with pytest.raises(ValueError, match=f"image '{key}' has no caption"):
            source[index]
