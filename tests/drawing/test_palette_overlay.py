"""Colours that stay put and stay apart; pictures whose pixels can be predicted."""

import numpy as np
import pytest
from PIL import Image

from hf_clipseg.drawing.class_palette import class_colors, class_palette, usual_color
from hf_clipseg.drawing.fonts import font_files, font_for
from hf_clipseg.drawing.overlay import class_areas, contact_sheet, legend, overlay
from hf_clipseg.drawing.palette import DEFICIENCIES, MAX_COLORS, class_color, hex_color, palette, to_oklab
from hf_clipseg.toyscapes import CLASS_NAMES

RED = Image.new("RGB", (60, 40), (200, 0, 0))


def halves(left=0, right=1, height=40, width=60):
    mask = np.full((height, width), left)
    mask[:, width // 2 :] = right
    return mask


def test_the_first_colors_never_change():
    """Published pictures and saved legends depend on these very values."""
    expected = ["#4285d6", "#e1f000", "#870000", "#ff695a", "#d2d2ff", "#4b0fa5"]
    assert [hex_color(color) for color in palette(6).tolist()] == expected


@pytest.mark.parametrize("num_colors", [1, 7, 64, 65, 300, 1000])
def test_a_longer_palette_begins_with_the_shorter_one(num_colors):
    assert np.array_equal(palette(num_colors), palette(2 * num_colors)[:num_colors])
    assert class_color(num_colors - 1) == tuple(palette(num_colors)[-1].tolist())


@pytest.mark.parametrize(("num_colors", "distance"), [(10, 0.17), (30, 0.09), (171, 0.05), (1000, 0.02)])
def test_colors_are_well_apart(num_colors, distance):
    """0.02 in OKLab is about a just noticeable difference between patches side by side."""
    assert smallest_gap(palette(num_colors)) > distance


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
@pytest.mark.parametrize("names", [None, CLASS_NAMES, [f"class {index}" for index in range(30)]])
def test_thirty_colors_stay_apart_for_colour_blind_eyes(names, deficiency):
    colors = palette(30) if names is None else class_palette(names)
    assert len(colors) == 30 and smallest_gap(colors, deficiency) >= 0.05


def smallest_gap(colors, deficiency=None):
    lab = to_oklab(colors, deficiency)
    return (np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 9 * np.eye(len(colors))).min()


def test_a_deficiency_by_hand():
    """Deuteranopia of pure red: linear (0.367, 0.280, 0), as the published matrix says; grey stays grey."""
    linear = np.array([0.367322, 0.280085, 0])
    srgb = 255 * (1.055 * np.array([*linear[:2], 0.0]) ** (1 / 2.4) - 0.055).clip(0)
    np.testing.assert_allclose(to_oklab([255, 0, 0], "deuteranopia"), to_oklab(srgb), atol=1e-9)
    for kind in DEFICIENCIES:
        np.testing.assert_allclose(to_oklab([120, 120, 120], kind), to_oklab([120, 120, 120]), atol=1e-4)


def test_colours_mean_something():
    colors = class_colors(["sky", "grass", "sea", "road"])
    assert colors == {"sky": "#8ec7f2", "grass": "#6fb544", "sea": "#1f6fb5", "road": "#5f6270"}
    assert class_colors(["road", "my dog", "sky"])["sky"] == "#8ec7f2"  # whatever comes before it
    assert usual_color("wheat field") == usual_color("wheat") != usual_color("grass")
    assert usual_color("blue Car") == usual_color("car") and usual_color("thingamajig") is None


def test_one_usual_colour_for_two_classes_is_given_once():
    """Both are trees: the second one gets a colour apart from the first, and the first keeps its own."""
    first, second = class_palette(["oak tree", "pine tree"])
    assert tuple(first) == usual_color("tree") and smallest_gap(np.array([first, second])) > 0.05 / 0.6 - 1e-9


def test_a_longer_list_keeps_the_colours_of_a_shorter_one():
    names = [*CLASS_NAMES, *(f"class {index}" for index in range(300))]
    colors = class_palette(names)
    assert colors.shape == (330, 3) and len(np.unique(colors, axis=0)) == 330
    without_names = [f"class {index}" for index in range(40)]
    assert np.array_equal(class_palette(without_names)[:30], class_palette(without_names[:30]))
    assert np.array_equal(class_palette(without_names[:30]), palette(30))


def test_oklab_of_known_colors():
    np.testing.assert_allclose(to_oklab([255, 255, 255]), [1, 0, 0], atol=1e-4)
    np.testing.assert_allclose(to_oklab([255, 0, 0]), [0.62796, 0.22486, 0.12585], atol=1e-4)


def test_any_number_of_colors():
    assert palette(0).shape == (0, 3)
    assert np.array_equal(palette(MAX_COLORS + 5)[-5:], palette(5))
    with pytest.raises(ValueError, match="num_colors is -1"):
        palette(-1)


def test_class_colors_follow_the_position():
    assert class_colors(["a", "b"]) == {"a": hex_color(class_color(0)), "b": hex_color(class_color(1))}


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
    assert tuple(np.asarray(overlay(RED, mask, names, opacity=1))[2, 2]) == tuple(class_palette(names)[255])


def test_names_are_written_into_large_regions_only():
    mask = np.zeros((200, 300), dtype=int)
    mask[:4, :4] = 1
    image = Image.new("RGB", (300, 200))
    plain, named = (np.asarray(overlay(image, mask, names, opacity=0)) for names in (None, ["sky", "bird"]))
    rows, columns = (plain != named).any(-1).nonzero()
    assert len(rows) and abs(rows.mean() - 100) < 8 and abs(columns.mean() - 150) < 8
    assert rows.max() - rows.min() < 40  # one line of text, for one class


@pytest.mark.parametrize("corner", ["left", "right", "top", "bottom"])
def test_names_stay_within_the_picture(corner):
    """A region along one edge: the whole name is drawn, as it is amid the picture."""
    mask = np.zeros((240, 400), dtype=int)
    edges = {"left": np.s_[:, :12], "right": np.s_[:, -12:], "top": np.s_[:12], "bottom": np.s_[-12:]}
    mask[edges[corner]] = 1
    image = Image.new("RGB", (400, 240))
    names = ["", "a rather long name"]

    def letters(mask):
        without, written = (overlay(image, mask, list_, opacity=0, boundaries=False) for list_ in (["", ""], names))
        return (np.asarray(without) != np.asarray(written)).any(-1).nonzero()

    rows, columns = letters(mask)
    whole_rows, whole_columns = letters(np.ones_like(mask))
    assert np.ptp(rows) >= np.ptp(whole_rows) - 1 and np.ptp(columns) >= np.ptp(whole_columns) - 1


def test_unpainted_classes_are_left_alone():
    plain = overlay(RED, halves(), ["sky", "none of these"], opacity=1, boundaries=False, unpainted=(1,))
    pixels = np.asarray(plain)
    assert (pixels[:, 30:] == (200, 0, 0)).all()
    assert tuple(pixels[0, 0]) == tuple(class_palette(["sky"])[0])
    assert class_areas(halves(), ["sky", "rest"], ignored=(1,)) == {"sky": 1.0}


@pytest.mark.parametrize("text", ["élan", "Ångström", "شجرة", "天空", "дом"])
def test_letters_of_other_scripts_are_drawn(text):
    """With the first font of the machine that has them; a machine without such a font draws boxes, as always."""
    font = font_for(text, 20)
    missing = bytes(font.getmask("\uffff"))
    if all(bytes(font.getmask(letter)) == missing for letter in text if not letter.isascii()):
        pytest.skip(f"none of the {len(font_files())} fonts here has the letters of {text!r}")
    assert all(bytes(font.getmask(letter)) != missing for letter in text)


def test_class_areas_are_shares_of_the_labelled_pixels():
    mask = np.array([[0, 0, 0, 2], [255, 255, 255, 255]])
    assert list(class_areas(mask, ["sky", "sea", "boat"]).items()) == [("sky", 0.75), ("boat", 0.25)]
    assert class_areas(np.full((2, 2), 255), ["sky"]) == {}


def test_legend_has_one_row_per_present_class_in_its_color():
    names = [f"class {index}" for index in range(40)]
    picture = legend(halves(3, 5), names)
    assert picture.height == 2 * 26 + 8
    colors = class_palette(names)
    assert picture.getpixel((18, 17)) == tuple(colors[3]) and picture.getpixel((18, 43)) == tuple(colors[5])
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
