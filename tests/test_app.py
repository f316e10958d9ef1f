"""The demo through its API, as `gradio_client` users drive it."""

import itertools
import json
import re
import shutil
import socket
import zipfile

import gradio as gr
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import app as demo_app
from demo.desk import NO_OVERRIDE
from hf_clipseg import toyscapes
from hf_clipseg.checkpoints import load_checkpoint
from hf_clipseg.drawing.class_palette import class_palette
from hf_clipseg.processing.inference import segment

from .demo_checkpoints import CLOSED_CLASSES, save_demo_checkpoints
from .demo_server import ask, running_demo

CLASSES = ["sky", "sea", "boat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_demo_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def client(folder):
    with running_demo(folder) as (_, url):
        yield Client(url, verbose=False)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    Image.fromarray(toyscapes.render(0, 1, 48, 64).image).save(path)
    return path


def test_segments_like_the_library(client, folder, picture):
    record, maps, archive = ask(client, picture)
    loaded = load_checkpoint(folder / "open")
    (label_map,) = segment(loaded.model, loaded.processor, [picture], CLASSES)
    (result,) = record["results"]
    assert (record["height"], record["width"], record["errors"]) == (48, 64, {})
    assert result["seconds"] > 0 and result["title"] == "Open words" and result["unknown"] == []
    assert [(entry["id"], entry["name"]) for entry in result["classes"]] == list(enumerate(CLASSES))
    areas = [float((label_map == index).mean()) for index in range(3)]
    assert [entry["area"] for entry in result["classes"]] == pytest.approx(areas, abs=1e-6)
    index_picture = Image.open(maps["open"])
    assert np.array_equal(np.asarray(index_picture), label_map)
    assert index_picture.getpalette()[:9] == class_palette(CLASSES).ravel().tolist()
    with zipfile.ZipFile(archive) as contents:
        assert json.loads(contents.read("open/classes.json"))["classes"] == result["classes"]


def test_compares_methods_on_one_list_of_classes(client, picture):
    record, maps, _ = ask(client, picture, "boat, sky", ["open", "closed"])
    assert [result["checkpoint"] for result in record["results"]] == ["open", "closed"]
    names = [[entry["name"] for entry in result["classes"]] for result in record["results"]]
    assert names == [["boat", "sky", "tree"]] * 2
    occurring = [set(np.unique(np.asarray(Image.open(maps[name])))) for name in ("open", "closed")]
    assert occurring[0] <= {0, 1} and occurring[1] <= {1, 2}


def test_baked_classes_need_no_typing(client, picture):
    record, _, _ = ask(client, picture, "", ["closed"])
    assert [entry["name"] for entry in record["results"][0]["classes"]] == [names[0] for names in CLOSED_CLASSES]


@pytest.mark.parametrize("variant", ["sclip", "clearclip"])
def test_the_attention_that_is_chosen_is_run(client, folder, picture, variant):
    """The answers under these attentions differ here, so that a choice that is ignored shows."""
    loaded = load_checkpoint(folder / "open")
    expected = {}
    for name in ("value", "sclip", "clearclip"):
        loaded.model.config.attention_variant = name
        (expected[name],) = segment(loaded.model, loaded.processor, [picture], CLASSES, window=96, refinement="pamr")
    assert len({label_map.tobytes() for label_map in expected.values()}) == 3
    _, maps, _ = ask(client, picture, attention=variant, window="96", refinement="pamr")
    assert np.array_equal(np.asarray(Image.open(maps["open"])), expected[variant])
    _, maps, _ = ask(client, picture)  # and the next visitor has the checkpoint's own again
    loaded.model.config.attention_variant = "value"
    assert np.array_equal(np.asarray(Image.open(maps["open"])), segment(loaded.model, loaded.processor, [picture], CLASSES)[0])


def test_none_of_these(client, picture):
    record, maps, _ = ask(client, picture, threshold=0.99)
    assert set(np.unique(np.asarray(Image.open(maps["open"])))) <= {0, 1, 2, 255}
    assert (np.asarray(Image.open(maps["open"])) == 255).mean() > 0.5
    assert len(record["results"][0]["classes"]) == 3


def test_a_cut_out_comes_along(client, picture):
    _, maps, archive = ask(client, picture, cut_out="sea")
    with zipfile.ZipFile(archive) as contents, contents.open("cut-outs/open.sea.png") as file:
        cut_out = np.asarray(Image.open(file))
    assert np.array_equal(cut_out[..., 3] == 255, np.asarray(Image.open(maps["open"])) == 1)


def test_a_word_that_nobody_knows_is_not_painted(client, picture):
    record, maps, _ = ask(client, picture, "zzyzx, sky, boat|qqfoo")
    (result,) = record["results"]
    assert result["unknown"] == ["zzyzx"]
    assert result["classes"][0]["name"] == "zzyzx" and result["classes"][0]["area"] == 0
    assert 0 not in np.asarray(Image.open(maps["open"]))
    with pytest.raises(AppError, match="knows none of these words: zzyzx"):
        ask(client, picture, "zzyzx")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": " , \n"}, "There are no classes yet"),
        ({"class_names": "sky, Sky"}, "'Sky' is there twice. Remove one, or make both one class: ship|boat"),
        ({"class_names": "<b>x</b>, <b>x</b>"}, "&lt;b&gt;x&lt;/b&gt;"),
        ({"class_names": "sky " * 40}, "Use a shorter class name"),
        ({"image": None}, "no picture yet"),
        ({"checkpoints": []}, "No method is chosen"),
        ({"checkpoints": ["without-weights"]}, "has no weights"),
        ({"checkpoints": ["clip-vit-b16-value"]}, "did not answer within 2 s"),
        ({"cut_out": "moon"}, "no class 'moon' to cut out"),
        ({"threshold": 7}, "expected a probability, 0 to 1"),
    ],
)
def test_errors_name_the_fix_and_the_app_lives_on(client, picture, changes, message):
    with pytest.raises(AppError, match=re.escape(message)):
        ask(client, **{"image": picture, **changes})
    assert ask(client, picture)[0]["results"]


def test_one_method_that_fails_does_not_spoil_the_others(client, picture):
    record, maps, _ = ask(client, picture, checkpoints=["without-weights", "open"])
    assert list(maps) == ["open"] and "has no weights" in record["errors"]["Without weights"]


@pytest.mark.parametrize("content", [b"", b"no image at all", "truncated"])
def test_broken_files(client, picture, tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(picture.read_bytes()[:200] if content == "truncated" else content)
    with pytest.raises(AppError, match="^The picture is .*damaged") as caught:
        ask(client, path)
    assert "/" not in str(caught.value)
    assert ask(client, picture)[0]["results"]


def odd_pictures(folder):
    """`(name, path, height and width as shown)`."""
    scene = Image.fromarray(toyscapes.render(0, 1, 48, 64).image)
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    wide = scene.resize((12_000, 300))
    pictures = {
        "cmyk.jpg": (scene.convert("CMYK"), {}, (48, 64)),
        "palette.png": (scene.convert("P"), {}, (48, 64)),
        "deep.png": (Image.fromarray((np.arange(48 * 64) * 21).astype(np.uint16).reshape(48, 64)), {}, (48, 64)),
        "alpha.png": (scene.convert("RGBA"), {}, (48, 64)),
        "turned.jpg": (scene, {"exif": exif}, (64, 48)),
        "pixel.png": (scene.resize((1, 1)), {}, (1, 1)),
        "wide.png": (wide, {}, (26, 1024)),
        "wide-turned.jpg": (wide, {"exif": exif}, (1024, 26)),
    }
    for name, (image, options, size) in pictures.items():
        image.save(folder / name, **options)
        yield name, folder / name, size


def test_odd_pictures(client, tmp_path):
    for name, path, size in odd_pictures(tmp_path):
        record, _, _ = ask(client, path)
        assert (record["height"], record["width"]) == size, name


def test_eight_hundred_classes(client, picture):
    words = itertools.product(["sky", "sea", "boat", "ship"], repeat=5)  # 1,024 names of known words
    record, maps, _ = ask(client, picture, ", ".join(" ".join(name) for name in itertools.islice(words, 800)))
    assert sum(entry["area"] for entry in record["results"][0]["classes"]) == pytest.approx(1, abs=1e-3)
    assert np.asarray(Image.open(maps["open"])).max() < 800


def test_models(client, folder):
    models = {model["name"]: model for model in client.predict(api_name="/models")}
    assert models["open"]["open_vocabulary"] and models["open"]["classes"] == [["sky"], ["sea"], ["boat", "ship"]]
    assert models["open"]["title"] == "Open words" and models["open"]["description"] == "Dense CLIP, at rest."
    assert not models["closed"]["open_vocabulary"] and models["with-groups"]["type"] == "cocu"


def test_teach(client, tmp_path):
    """Two colours: the pictures' own features tell them apart, whatever the random texts say."""
    files = []
    for index, colour in enumerate(["red", "red", "navy", "navy"]):
        Image.new("RGB", (48, 48), colour).save(tmp_path / f"{index}.png")
        files.append(handle_file(str(tmp_path / f"{index}.png")))
    test = Image.new("RGB", (64, 32), "red")
    test.paste("navy", (32, 0, 64, 32))
    test.save(tmp_path / "test.png")
    call = {"test": handle_file(str(tmp_path / "test.png")), "others": "", "model": "open", "api_name": "/teach"}
    record, overlays = client.predict(pictures=files, tags=["boat", "boat", ["sea"], "sea"], **call)
    assert record["classes"] == ["boat", "sea"] and record["pictures"] == 4
    assert record["distance_to_prototypes"] < record["distance_to_words"]
    assert [Image.open(path).size for path in overlays] == [(64, 32)] * 2
    for tags, message in ((["boat"], "4 pictures and 1 tags"), ([1, 2, 3, 4], "Every tag is a class name")):
        with pytest.raises(AppError, match=message):
            client.predict(pictures=files, tags=tags, **call)
    with pytest.raises(AppError, match="closed cannot be taught"):
        client.predict(pictures=files, tags=["boat"] * 4, **{**call, "model": "closed"})


def test_every_parameter_is_described_and_every_choice_is_text(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/segment", "/models", "/teach"}
    parameters = {parameter["parameter_name"]: parameter for parameter in endpoints["/segment"]["parameters"]}
    assert set(parameters["window"]["type"]["enum"]) == {"whole picture", "96", "160", "224", "336"}
    assert parameters["attention"]["parameter_default"] == NO_OVERRIDE and "pamr" in parameters["refinement"]["type"]["enum"]


def test_building_the_page_touches_no_network(folder, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert isinstance(demo_app.build_app(folder), gr.Blocks)


def test_the_methods_that_do_best_are_ticked_first():
    page = demo_app.build_app()
    boxes = next(block for block in page.blocks.values() if getattr(block, "elem_id", None) == "methods")
    assert boxes.value == ["mta-clip-toyscapes", "mvp-seg-plus-toyscapes", "vpl-toyscapes", "mask-clip-toyscapes"]
    assert [name for _, name in boxes.choices[:4]] == boxes.value


def test_extra_checkpoints_come_first_and_ticked_under_the_names_of_their_runs(folder, tmp_path):
    for run in ("run1", "run2"):
        shutil.copytree(folder / "open", tmp_path / run / "final")
    page = demo_app.build_app(tmp_path / "nothing", extra=[tmp_path / "run1" / "final", tmp_path / "run2" / "final"])
    boxes = next(block for block in page.blocks.values() if getattr(block, "elem_id", None) == "methods")
    assert boxes.choices[:2] == [("Open words (run1)", "run1"), ("Open words (run2)", "run2")]
    assert boxes.value == ["run1", "run2"]
    assert all(page.desk.bench.checkpoints[name].on_hub for _, name in boxes.choices[2:])
