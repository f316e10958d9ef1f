"""What each method sees, teaching and curating: what the demo's other tabs compute, without a server."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from demo import curate as curation
from demo.insight import METHODS, Look, feature_colours, see_groups, see_views
from demo.scenes import scene_picture
from demo.teach import Lesson, check_lesson, lesson_from, nearest, taught_iou, teach, toy_lesson
from hf_clipseg import toyscapes
from hf_clipseg.checkpoints import SHIPPED, find_checkpoints, load_checkpoint
from hf_clipseg.drawing.comparison import NO_TRUTH

from .demo_checkpoints import save_demo_checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_demo_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(toyscapes.render(0, 1, 48, 64).image)


SHIPPED_TYPES = {"mask_clip": 5, "mvp_seg": 1, "mvp_seg_plus": 2, "vpl": 3, "mta_clip": 2, "cocu": 2}


@pytest.mark.parametrize("model_type", METHODS)
def test_every_shipped_method_can_be_seen_through(model_type):
    """At least so many pictures of the picture's size, each with a caption of its own."""
    checkpoint = next(c for c in find_checkpoints(SHIPPED) if c.model_type == model_type)
    loaded = load_checkpoint(checkpoint.source)
    look = Look(scene_picture(7), None, [names[0] for names in checkpoint.class_names])
    views = METHODS[model_type].see(loaded, look, lambda: None)
    assert len(views) >= SHIPPED_TYPES[model_type]
    assert all(view.size == look.picture.size for view, _ in views) and len({caption for _, caption in views}) == len(views)


def test_views_are_the_cosines_of_the_model():
    """The brightest pixel of the first view is where that view's cosine is largest."""
    checkpoint = next(c for c in find_checkpoints(SHIPPED) if c.model_type == "mvp_seg")
    loaded = load_checkpoint(checkpoint.source)
    look = Look(scene_picture(7), None, [names[0] for names in checkpoint.class_names])
    view, caption = see_views(loaded, look, lambda: None)[0]
    name = caption.split(",")[0]
    with torch.no_grad():
        outputs = loaded.model(**loaded.processor(images=[look.picture], return_tensors="pt"), output_view_maps=True)
    cosines = outputs.view_maps[0, 1, look.names.index(name)]
    row, column = divmod(int(cosines.argmax()), cosines.shape[1])
    red = np.asarray(view)[..., 0].astype(int) - np.asarray(view)[..., 2]
    y, x = divmod(int(red.argmax()), view.width)
    assert abs(y / view.height - (row + 0.5) / cosines.shape[0]) < 0.06
    assert abs(x / view.width - (column + 0.5) / cosines.shape[1]) < 0.06
    assert re.search(r"present \d+%", caption)


def test_groups_carry_names(folder, picture):
    loaded = load_checkpoint(folder / "with-groups")
    views = see_groups(loaded, Look(picture, None, ["sky", "sea", "boat"]), lambda: None)
    assert [view.size for view, _ in views] == [picture.size] * 2


def test_similar_features_have_similar_colours():
    features = torch.zeros(1, 2, 8, 4)
    features[:, :, :4, 0] = 1.0
    features[:, :, 4:, 1] = 1.0
    pixels = np.asarray(feature_colours(features, Image.new("RGB", (8, 2)))).astype(int)
    assert (pixels[:, :3] == pixels[0, 0]).all() and np.abs(pixels[0, 0] - pixels[0, 7]).max() > 200


def test_a_lesson_from_the_page(picture):
    lesson = lesson_from([" red  kite ", "", "boat"], [[picture, picture], [], [picture]], "sky,\nsea")
    assert lesson.class_names == ["red kite", "boat"] and lesson.others == ["sky", "sea"]
    assert lesson.tags == [["red kite"], ["red kite"], ["boat"]]
    for names, pictures, message in (
        ([""], [[picture]], "without a name"),
        (["a"], [[]], "'a' has no picture"),
        (["a", "a"], [[picture], [picture]], "'a' is there twice"),
        ([""], [[]], "Name at least one class"),
    ):
        with pytest.raises(ValueError, match=message):
            check_lesson(lesson_from(names, pictures, ""))


def test_teaching_learns_from_pictures_what_the_words_do_not_say(folder):
    """Words of an untrained CLIP say nothing; its features tell two colours apart, and four pictures are enough."""
    loaded = load_checkpoint(folder / "open")
    colours = [Image.new("RGB", (48, 48), colour) for colour in ("red", "red", "navy", "navy")]
    lesson = Lesson(["boat", "sea"], colours, [["boat"], ["boat"], ["sea"], ["sea"]], [])
    test = Image.new("RGB", (64, 32), "red")
    test.paste("navy", (32, 0, 64, 32))
    rounds = list(teach(loaded, lesson, test, lambda: None, rounds=2))
    assert [taught.rounds for taught in rounds] == [1, 2]
    with torch.no_grad():
        features = loaded.model.dense_features(loaded.processor(images=[test], return_tensors="pt")["pixel_values"])[0]
    found = nearest(features, rounds[-1].prototypes.embeds, test)
    assert (found[:, :24] == 0).mean() > 0.9 and (found[:, 40:] == 1).mean() > 0.9
    text, vision = rounds[-1].gap
    assert vision < text


def test_the_score_of_a_lesson_counts_the_rest_as_one_class():
    truth = np.array([[0, 0, 2, NO_TRUTH]], np.uint16)
    assert taught_iou(np.array([[0, 3, 0, 5]]), truth, 2) == pytest.approx(1 / 3)
    assert taught_iou(np.array([[2, 3, 2, 5]]), np.full((1, 4), NO_TRUTH, np.uint16), 2) is None


def test_the_toy_lesson_is_one():
    lesson = toy_lesson()
    check_lesson(lesson)
    assert len(lesson.pictures) == 12 and set(lesson.class_names) == {"kite", "mushroom", "boat"}


def test_concepts_of_a_caption():
    names = list(toyscapes.CLASS_NAMES)
    found = curation.concepts_of("Two boats, a Wheat field and the ocean; a rocket", names)
    assert {names[index] for index in found} == {"boat", "wheat field", "sea"}


def test_curation_brings_what_neighbours_name(folder):
    """Two pictures alike and one apart: each of the two gets the other's concept first."""
    loaded = load_checkpoint(folder / "open")
    items = [
        curation.Captioned(Image.new("RGB", (48, 48), colour), caption)
        for colour, caption in (("red", "a boat"), ((250, 4, 4), "the sky"), ("navy", "a ship"))
    ]
    archives = curation.curate(loaded, items, ["boat", "sky", "ship"], None, lambda: None)
    assert [archive_.named for archive_ in archives] == [["boat"], ["sky"], ["ship"]]
    assert {name for name, _ in archives[0].found} == {"sky", "ship"}
    assert all(np.diff([score for _, score in archive_.found]).max() <= 0 for archive_ in archives)
    for broken, message in (([], "no captioned picture"), ([curation.Captioned(items[0].picture, " ")], "has no caption")):
        with pytest.raises(ValueError, match=message):
            curation.curate(loaded, broken, ["boat"], None, lambda: None)
