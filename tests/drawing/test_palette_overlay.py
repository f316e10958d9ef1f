"""Colours that stay put and stay apart; pictures whose pixels can be predicted."""

import numpy as np
import pytest
from PIL import Image

from hf_clipseg.drawing.overlay import class_areas, contact_sheet, legend, overlay
from hf_clipseg.drawing.palette import MAX_COLORS, class_color, class_colors, hex_color, palette, to_oklab

RED = Image.new("RGB", (60, 40), (200, 0, 0))


def halves(left=0, right=1, height=40, width=60):
    mask = np.full((height, width), left)
    mask[:, width // 2 :] = right
    return mask


def test_the_first_colors_never_change():
    """Published pictures and saved legends depend on these very values."""
    expected = ["#4285d6", "#e1f000", "#870000", "#ff695a", "#1ea500", "#d2d2ff"]
    assert [hex_color(color) for color in palette(6).tolist()] == expected


@pytest.mark.parametrize("num_colors", [1, 7, 64, 65, 300, 1000])
def test_a_longer_palette_begins_with_the_shorter_one(num_colors):
    assert np.array_equal(palette(num_colors), palette(2 * num_colors)[:num_colors])
    assert class_color(num_colors - 1) == tuple(palette(num_colors)[-1].tolist())


@pytest.mark.parametrize(("num_colors", "distance"), [(10, 0.2), (30, 0.11), (171, 0.05), (1000, 0.02)])
def test_colors_are_well_apart(num_colors, distance):
    """0.02 in OKLab is about a just noticeable difference between patches side by side."""
    lab = to_oklab(palette(num_colors))
    gaps = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 9 * np.eye(num_colors)
    assert gaps.min() > distance


def test_oklab_of_known_colors():
    np.testing.assert_allclose(to_oklab([255, 255, 255]), [1, 0, 0], atol=1e-4)
    np.testing.assert_allclose(to_oklab([255, 0, 0]), [0.62796, 0.22486, 0.12585], atol=1e-4)


def test_any_number_of_colors():
    assert palette(0).shape == (0, 3)
    assert np.array_equal(palette(MAX_COLORS + 5)[-5:], palette(5))
    with pytest.raises(ValueError, match="num_colors is -1"):
        palette(-1)


def test_class_colors_follow_the_position():
    assert class_colors(["sky", "boat"]) == {"sky": hex_color(class_color(0)), "boat": hex_color(class_color(1))}


def test_overlay_blends_and_leaves_ignored_pixels_alone():
    result = np.asarray(overlay(RED, halves(1, 255), opacity=0.25, boundaries=False))
    expected = np.array([200, 0, 0]) * 0.75 + np.array(class_color(1)) * 0.25
    assert np.abs(result[:, :30] - expected).max() <= 1
    assert (result[:, 30:] == (200, 0, 0)).all()


@pytest.mark.parametrize("opacity", [0, 1])
def test_overlay_extremes(opacity):
    result = np.asarray(overlay(RED, halves(), opacity=opacity, boundaries=False))
    assert tuple(result[5, 5]) == (class_color(0) if opacity else (200, 0, 0))


@pytest.mark.parametrize("side", [60, 1600])
@pytest.mark.parametrize("transposed", [False, True])
def test_boundaries_are_white_lines_that_grow_with_the_image(side, transposed):
    mask = halves(height=side, width=side)
    mask = mask.T if transposed else mask
    white = (np.asarray(overlay(Image.new("RGB", (side, side), (200, 0, 0)), mask)) == 255).all(-1)
    white = white.T if transposed else white
    assert white[:, side // 2 - 1].all()
    assert white.sum() == side * max(1, side // 400)


def test_label_255_is_a_class_where_there_are_more_than_255_names():
    names = [f"class {index}" for index in range(300)]
    mask = halves(255, 299)
    assert class_areas(mask, names) == {"class 255": 0.5, "class 299": 0.5}
    assert tuple(np.asarray(overlay(RED, mask, names, opacity=1))[2, 2]) == class_color(255)


def test_names_are_written_into_large_regions_only():
    mask = np.zeros((200, 300), dtype=int)
    mask[:4, :4] = 1
    image = Image.new("RGB", (300, 200))
    plain, named = (np.asarray(overlay(image, mask, names)) for names in (None, ["sky", "bird"]))
    rows, columns = (plain != named).any(-1).nonzero()
    assert len(rows) and abs(rows.mean() - 100) < 8 and abs(columns.mean() - 150) < 8
    assert rows.max() - rows.min() < 40  # one line of text, for one class


def test_class_areas_are_shares_of_the_labelled_pixels():
    mask = np.array([[0, 0, 0, 2], [255, 255, 255, 255]])
    assert list(class_areas(mask, ["sky", "sea", "boat"]).items()) == [("sky", 0.75), ("boat", 0.25)]
    assert class_areas(np.full((2, 2), 255), ["sky"]) == {}


def test_legend_has_one_row_per_present_class_in_its_color():
    names = [f"class {index}" for index in range(40)]
    picture = legend(halves(3, 5), names)
    assert picture.height == 2 * 26 + 8
    assert picture.getpixel((18, 17)) == class_color(3) and picture.getpixel((18, 43)) == class_color(5)
    ink = (np.asarray(picture)[:, 120:] < 100).all(-1).nonzero()[1] + 120  # the shares, flush right
    assert ink.min() > 170 and 229 <= ink.max() < 232
    assert legend(np.arange(40)[None], names, max_rows=10).height == 10 * 26 + 8


@pytest.mark.parametrize("name", ["<b onclick='x'>" * 20, "two\nlines", "éß漢", ""])
def test_names_are_only_ever_pixels(name):
    assert legend(halves(), [name, "sea"]).height == 2 * 26 + 8
    assert overlay(RED, halves(), [name, "sea"]).size == RED.size


def test_contact_sheet_layout():
    images = [Image.new("RGB", (50, 25), color) for color in ("red", "lime", "blue")]
    sheet = contact_sheet(images, columns=2, cell_width=100)
    assert sheet.size == (8 + 2 * 108, 8 + 2 * 58)
    assert sheet.getpixel((10, 10)) == (255, 0, 0) and sheet.getpixel((118, 10)) == (0, 255, 0)
    assert sheet.getpixel((10, 68)) == (0, 0, 255) and sheet.getpixel((118, 68)) == (255, 255, 255)
    captioned = contact_sheet(images, ["a", "b", "a long caption " * 9], columns=9, cell_width=100)
    assert captioned.size == (8 + 3 * 108, 8 + 24 + 58)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: overlay(RED, halves(width=50)), r"image is \(40, 60\) and mask \(40, 50\)"),
        (lambda: overlay(RED, halves(0, 7), ["sky", "sea"]), "the mask holds ids 0..7, but there are 2 class names"),
        (lambda: overlay(RED, halves(-1)), "ids -1..1"),
        (lambda: overlay(RED, halves(), opacity=50), "opacity is 50"),
        (lambda: contact_sheet([]), "got 0 images"),
        (lambda: contact_sheet([RED], ["a", "b"]), "2 captions"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
