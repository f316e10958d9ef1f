"""What the demo computes, without a server: the workbench, tiles, the page's events, downloads."""

import dataclasses
import importlib.machinery
import io
import json
import re
import sys
import types
import zipfile

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image

from demo.class_lists import CLASS_LISTS
from demo.desk import PHOTOGRAPH, TRUTH, Desk, read_options
from demo.download import archive
from demo.gpu import on_gpu
from demo.limits import RunEnded, Ticket
from demo.page import hub_checkpoints
from demo.scenes import SCENES, photographs, scene, scene_picture, truth_of
from demo.tiles import LEGEND_ROWS, ids_picture, legend_html, tiles_html
from demo.workbench import Options, Workbench
from hf_clipseg import toyscapes
from hf_clipseg.checkpoints import find_checkpoints, load_checkpoint
from hf_clipseg.clip.text_bank import parse_class_names
from hf_clipseg.drawing.comparison import NO_TRUTH, NONE_OF_THESE, Comparison, MethodResult
from hf_clipseg.processing.image_io import load_image
from hf_clipseg.processing.inference import segment

from .demo_checkpoints import save_demo_checkpoints

CLASSES = "sky, sea, boat"
EVIL = '<img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_demo_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def bench(folder):
    return Workbench([*find_checkpoints(folder), *hub_checkpoints()], device="cpu")


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(toyscapes.render(0, 1, 48, 64).image)


def compare(bench, picture, classes=CLASSES, names=("open",), **options) -> Comparison:
    *_, (comparison, failed) = bench.compare(bench.question(picture, classes, names, Options(**options)), Ticket(600))
    assert not failed
    return comparison


def made_up(*maps, names=("sky", "sea"), truth=None) -> Comparison:
    maps = [np.array(ids, np.uint16) for ids in maps]
    height, width = maps[0].shape
    results = tuple(MethodResult(f"m{i}", f"Method {i}", label_map, 0.25) for i, label_map in enumerate(maps))
    return Comparison(
        Image.new("RGB", (width, height), "grey"), list(names), [[name] for name in names], truth, results=results
    )


def test_the_workbench_runs_what_the_library_runs(bench, folder, picture):
    comparison = compare(bench, picture, names=["open", "closed"], window=16, refinement="pamr")
    loaded = load_checkpoint(folder / "open")
    (expected,) = segment(loaded.model, loaded.processor, [picture], parse_class_names(CLASSES), window=16, refinement="pamr")
    assert comparison.class_names == ["sky", "sea", "boat", "tree"]
    assert np.array_equal(comparison.label_maps[0], expected)
    assert set(np.unique(comparison.label_maps[1])) <= {0, 3}  # the closed one knows sky and tree


def test_a_checkpoint_may_bring_its_own_attention(folder, picture):
    """One model in memory, two entries with different answers; an option of the visitor goes first."""
    (found,) = [checkpoint for checkpoint in find_checkpoints(folder) if checkpoint.name == "open"]
    pair = [dataclasses.replace(found, name=name, attention=name) for name in ("value", "clearclip")]
    bench = Workbench(pair, device="cpu")
    maps = compare(bench, picture, names=["value", "clearclip"]).label_maps
    assert (maps[0] != maps[1]).any()
    overridden = compare(bench, picture, names=["value", "clearclip"], attention="clearclip").label_maps
    assert np.array_equal(overridden[0], maps[1]) and np.array_equal(overridden[1], maps[1])


def test_a_tokenizer_is_used_by_one_thread_at_a_time(folder, picture, monkeypatch):
    """It keeps its padding as state: two threads at once got rows of different lengths."""
    bench = Workbench([c for c in find_checkpoints(folder) if c.name == "open"], device="cpu")
    loaded, calls = bench.cache.get(bench.checkpoint("open").source), []
    real = type(loaded.processor.tokenizer).__call__

    def watched(self, *args, **kwargs):
        calls.append(loaded._lock.locked())
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(loaded.processor.tokenizer), "__call__", watched)
    comparison = compare(bench, picture, "boat, sky, sea ship")
    desk = Desk(bench)
    desk.see("mask_clip", comparison, types.SimpleNamespace(session_hash="a"))
    assert calls and all(calls)


def test_the_truth_of_a_scene_is_found_by_its_pixels(bench):
    index = next(iter(SCENES))
    picture, names = scene_picture(index), list(toyscapes.CLASS_NAMES)
    assert np.array_equal(truth_of(picture, names), scene(index).mask)
    shorter = truth_of(picture, ["heavens", "moon"])  # a synonym counts; what is not asked for has no truth
    assert np.array_equal(shorter == 0, scene(index).mask == names.index("sky"))
    assert set(np.unique(shorter)) == {0, NO_TRUTH}
    changed = picture.copy()
    changed.putpixel((0, 0), (1, 2, 3))
    assert truth_of(changed, names) is None
    assert compare(bench, picture, "sky").scores()[0] is not None


def test_every_scene_has_at_least_two_classes_and_a_name():
    for index, title in SCENES.items():
        assert len(scene(index).image_labels) >= 2 and title


def test_class_lists_are_what_they_say():
    for title, text in CLASS_LISTS.items():
        assert len(parse_class_names(text)) == int(re.search(r"\((\d+)\)", title)[1])


def test_photographs_come_with_packages_and_are_never_copied():
    for photograph in photographs():
        assert load_image(photograph.path).width > 100 and "site-packages" in photograph.path
        assert parse_class_names(photograph.class_text)


def test_a_run_that_ends_keeps_what_is_finished(bench, picture):
    question = bench.question(picture, CLASSES, ["open", "closed", "with-groups"])
    ticket = Ticket(600)
    answers = bench.compare(question, ticket)
    comparison, _ = next(answers)
    ticket.stop()
    assert len(comparison.results) == 1
    with pytest.raises(RunEnded, match="Stopped"):
        next(answers)


def test_stop_shows_what_is_finished(bench, picture):
    question, ticket, desk = bench.question(picture, CLASSES, ["open", "closed", "with-groups"]), Ticket(600), Desk(bench)
    shown = []
    for values in desk.stream(question, ticket, 0.5):
        shown.append(values)
        if len(values[3].results) == 2:
            ticket.stop()
    assert "Stopped. 2 of 3 methods are shown." in shown[-1][4] and len(shown[-1][3].results) == 2
    assert "Running Open words" in shown[0][4] and shown[0][0].count("waiting") >= 3


def test_groups_are_shown_where_there_are_any(bench, folder, picture):
    """One more picture for the GroupViT, none for the other; every pixel lies in the group with the largest share there."""
    comparison = compare(bench, picture, names=["open", "with-groups"], show_groups=True)
    (grouping,) = comparison.groupings
    html = tiles_html(comparison, 0.5)
    assert html.count("<figure") == 4 and "With groups: groups" in html  # two methods, groups, disagreement
    loaded = load_checkpoint(folder / "with-groups")
    inputs = loaded.processor(images=[picture], class_names=parse_class_names(CLASSES), return_tensors="pt")
    with torch.no_grad():
        outputs = loaded.model(**inputs)
    shares = torch.nn.functional.interpolate(outputs.assignments, size=grouping.label_map.shape, mode="bilinear")[0]
    assert (grouping.label_map == shares.argmax(dim=0).numpy()).mean() > 0.99


def test_tiles_and_legend_are_escaped():
    comparison = made_up([[0, 1]], [[0, 0]], names=(EVIL, "{{value}}"))
    html = tiles_html(comparison, 0.5, waiting=[EVIL], failed={EVIL: EVIL}) + legend_html(comparison)
    assert "<img src=x" not in html and "&lt;img src=x" in html
    assert json.loads(
        re.search(r'data-names="([^"]*)"', html)[1].replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">")
    )


def test_tiles_show_truth_scores_and_the_best():
    comparison = made_up([[0, 1, 1, 1]], [[0, 0, 1, 1]], truth=np.array([[0, 0, 1, 1]], np.uint16))
    html = tiles_html(comparison, 0.5)
    assert html.index("Ground truth") < html.index("Method 0") < html.index("Method 1") < html.index("Where they disagree")
    assert html.count("best here") == 1 and html.index("Method 0") < html.index("best here")
    assert "mIoU 0.58" in html and "mIoU 1.00" in html and "25% of the pixels" in html
    without = tiles_html(made_up([[0, 1, 1, 1]], [[0, 0, 1, 1]]), 0.5)
    assert "mIoU" not in without and "75% as the others" in without
    waiting = tiles_html(made_up([[0, 1, 1, 1]]), 0.5, waiting=["Other"])
    assert "waiting" in waiting and "disagree" not in waiting


def test_the_script_can_read_ids_from_a_tile():
    ids = np.array([[0, 255, 256, 999]], np.uint16)
    pixels = np.asarray(ids_picture(ids)).astype(int)
    assert np.array_equal(pixels[..., 0] + 256 * pixels[..., 1], ids)


def test_the_legend_has_a_button_per_class_and_headed_rows():
    many = made_up(np.arange(60).reshape(6, 10), names=[f"class {i}" for i in range(60)])
    html = legend_html(many)
    assert html.count("<button") == LEGEND_ROWS and "and 20 smaller ones" in html
    assert html.count('<th scope="col">') == 2 and html.count('<th scope="row"') == LEGEND_ROWS + 1
    assert 'tabindex="0"' in html and html.count('aria-pressed="false"') == LEGEND_ROWS


def test_the_archive_holds_what_it_promises():
    comparison = made_up([[0, 1, 2, 1]], names=("sky", "sea", NONE_OF_THESE))
    with zipfile.ZipFile(io.BytesIO(archive(comparison, "sea"))) as contents:
        assert set(contents.namelist()) == {
            "README.txt", "picture.png", "numbers.json", "m0/labels.png", "m0/colours.png", "m0/classes.json",
            "cut-outs/m0.sea.png",
        }  # fmt: skip
        labels, colours, cut_out = (
            np.asarray(Image.open(contents.open(name))) for name in ("m0/labels.png", "m0/colours.png", "cut-outs/m0.sea.png")
        )
        record = json.loads(contents.read("m0/classes.json"))
    assert labels.tolist() == [[0, 1, 255, 1]]
    assert colours[0, 2].tolist() == [0, 0, 0] and colours[0, 0].tolist() == [0x8E, 0xC7, 0xF2]
    assert cut_out[..., 3].tolist() == [[0, 255, 0, 255]]
    assert [entry["name"] for entry in record["classes"]] == ["sky", "sea"] and record["classes"][1]["area"] == 0.666667
    with pytest.raises(ValueError, match="no class 'moon'"):
        archive(comparison, "moon")
    with pytest.raises(ValueError, match="no result"):
        archive(Comparison(comparison.picture, ["sky"]))


def test_opacity_and_slider_need_no_model(bench, picture):
    desk, comparison = Desk(bench), compare(bench, picture)
    left, right, cut_out = desk.sides(comparison)
    assert left["value"] == PHOTOGRAPH and right["value"] == "Open words" and set(cut_out["choices"]) <= {"sky", "sea", "boat"}
    shown = desk.slide(comparison, PHOTOGRAPH, "Open words", 1.0)
    assert shown[0] == comparison.picture and shown[1] == comparison.overlay(comparison.label_maps[0], 1.0)
    assert desk.redraw(comparison, 0.2) != desk.redraw(comparison, 0.9)
    assert desk.redraw(None, 0.3) == gr.skip()
    scene_comparison = compare(bench, scene_picture(next(iter(SCENES))))
    assert TRUTH in desk.sides(scene_comparison)[0]["choices"]


def test_the_class_box_follows_the_methods(bench):
    desk = Desk(bench)
    box, note = desk.choose(["open"], "")
    assert box["interactive"] and box["value"] == "sky, sea, boat|ship" and "<strong>Open words</strong> Dense CLIP" in note
    closed, _ = desk.choose(["closed"], "my own words")
    assert not closed["interactive"] and closed["value"] == "tree, sky" and "only their own classes" in closed["info"]
    assert desk.choose(["open"], closed["value"])[0]["value"] == "sky, sea, boat|ship"  # untouched defaults are replaced
    mixed, note = desk.choose(["open", "closed"], "my own words")
    assert mixed["interactive"] and mixed["value"] == "my own words" and "Own classes only" in note
    assert desk.choose([], "my own words")[0]["value"] == "my own words"
    preset = CLASS_LISTS["Cityscapes (19)"]
    assert desk.choose(["open", "with-groups"], preset)[0]["value"] == preset  # chosen on purpose


def test_the_hub_is_taken_back_where_it_does_not_answer(bench):
    boxes, note = Desk(bench).offer_hub(["open", "clip-vit-b16-naclip"])
    assert boxes.value == ["open"] and not [name for _, name in boxes.choices if name.startswith(("clip-vit", "groupvit-yfcc"))]
    assert "did not answer" in note and "know drawings only" in note
    _, note = Desk(Workbench(hub_checkpoints(), device="cpu")).offer_hub([])
    assert "python app.py FOLDER" in note


def test_choices_are_strings():
    assert read_options("sclip", "96", "pamr", 0.5, True) == Options("sclip", 96, "pamr", 0.5, True)
    assert read_options("as in the checkpoint", "whole picture", "none", 0, False) == Options()
    for bad in (("magic", "96", "none"), ("sclip", 96, "none"), ("sclip", "96", None)):
        with pytest.raises(ValueError, match="choose one of"):
            read_options(*bad, 0, False)


def test_a_lent_gpu_is_used_where_there_is_one(monkeypatch):
    assert on_gpu(len) is len
    spaces = types.ModuleType("spaces", "")
    spaces.__spec__ = importlib.machinery.ModuleSpec("spaces", None)
    spaces.GPU = lambda duration: lambda function: ("on the GPU", duration, function)
    monkeypatch.setitem(sys.modules, "spaces", spaces)
    assert on_gpu(len) == ("on the GPU", 60, len)
