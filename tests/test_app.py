"""The demo through its API, as `gradio_client` users drive it, and the parts of it that need no server."""

import re
import socket

import gradio as gr
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import app as demo_app
from hf_clipseg import toyscapes
from hf_clipseg.checkpoints import find_checkpoints, load_checkpoint
from hf_clipseg.drawing.overlay import overlay
from hf_clipseg.drawing.palette import palette
from hf_clipseg.processing.image_io import load_image
from hf_clipseg.processing.inference import segment

from .demo_checkpoints import CLOSED_CLASSES, save_demo_checkpoints

CLASSES = ["sky", "sea", "boat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_demo_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def client(folder):
    app = demo_app.build_app(folder)
    _, url, _ = app.launch(**demo_app.LAUNCH, prevent_thread_lock=True, quiet=True)
    yield Client(url, verbose=False)
    app.close()


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    Image.fromarray(toyscapes.render(0, 1, 48, 64).image).save(path)
    return path


@pytest.fixture
def demo(folder):
    return demo_app.Demo([*find_checkpoints(folder), demo_app.clip_from_hub()])


def ask(client, image, class_names="sky, sea, boat", checkpoints=("open",), **options):
    """Overlays `[(path, caption)]`, legend and numbers."""
    options = {
        "opacity": 0.5,
        "attention": demo_app.NO_OVERRIDE,
        "window": 0,
        "refinement": "",
        "show_groups": False,
        **options,
    }
    image = None if image is None else handle_file(str(image))
    gallery, legend, numbers = client.predict(
        image=image, class_names=class_names, checkpoints=list(checkpoints), **options, api_name="/segment"
    )
    return [(item["image"], item["caption"]) for item in gallery], legend, numbers


def area_of(label_map, class_names):
    return {name: float((label_map == i).mean()) for i, name in enumerate(class_names) if (label_map == i).any()}


def test_segments_like_the_library(client, folder, picture):
    overlays, legend, numbers = ask(client, picture)
    loaded = load_checkpoint(folder / "open")
    (label_map,) = segment(loaded.model, loaded.processor, [picture], CLASSES)
    (result,) = numbers["results"]
    assert (numbers["height"], numbers["width"]) == (48, 64)
    assert result["areas"] == pytest.approx(area_of(label_map, CLASSES))
    assert result["seconds"] > 0
    assert all(name in legend for name in result["areas"])
    (path, caption) = overlays[0]
    assert re.fullmatch(r"Open words · \d+\.\d\d s", caption)
    assert Image.open(path).size == (64, 48)


def test_compares_side_by_side_in_shared_colours(client, picture):
    overlays, legend, numbers = ask(client, picture, "boat, sky", ["open", "closed"])
    assert len(overlays) == 2 and [result["checkpoint"] for result in numbers["results"]] == ["Open words", "Closed list"]
    occurring = [{name for name, area in result["areas"].items() if area} for result in numbers["results"]]
    assert occurring[0] <= {"boat", "sky"} and occurring[1] <= {"tree", "sky"}
    colors = dict(zip(["boat", "sky", "tree"], palette(3).tolist(), strict=True))
    for name in occurring[0] | occurring[1]:
        assert re.search("#{:02x}{:02x}{:02x}".format(*colors[name]) + f'"></i>{name}', legend)


def test_baked_classes_need_no_typing(client, picture):
    _, _, numbers = ask(client, picture, "", ["closed"])
    assert set(numbers["results"][0]["areas"]) <= {names[0] for names in CLOSED_CLASSES}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": " , \n"}, "class_names must be a non-empty list"),
        ({"class_names": "sky, Sky"}, "given twice; remove one"),
        ({"class_names": "<b>x</b>, <b>x</b>"}, "&lt;b&gt;x&lt;/b&gt;"),
        ({"class_names": "sky " * 40}, "Use a shorter class name"),
        ({"image": None}, "no picture yet"),
        ({"checkpoints": []}, "No checkpoint is chosen"),
        ({"checkpoints": ["without-weights"]}, "has no weights"),
        ({"checkpoints": [demo_app.HUB_CLIP]}, "did not answer within 2 s"),
    ],
)
def test_errors_name_the_fix_and_the_app_lives_on(client, picture, changes, message):
    with pytest.raises(AppError, match=re.escape(message)):
        ask(client, **{"image": picture, **changes})
    assert ask(client, picture)[0]


@pytest.mark.parametrize("content", [b"", b"no image at all", "truncated"])
def test_broken_files(client, picture, tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(picture.read_bytes()[:200] if content == "truncated" else content)
    with pytest.raises(AppError, match="damaged"):
        ask(client, path)
    assert ask(client, picture)[0]


def odd_pictures(folder):
    """`{name: (path, height and width as shown)}`."""
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
        "wide-palette.png": (wide.convert("P"), {}, (26, 1024)),
        "wide-turned.jpg": (wide, {"exif": exif}, (1024, 26)),
    }
    for name, (image, options, size) in pictures.items():
        image.save(folder / name, **options)
        yield name, folder / name, size


def test_odd_pictures(client, tmp_path):
    for name, path, size in odd_pictures(tmp_path):
        _, _, numbers = ask(client, path)
        assert (numbers["height"], numbers["width"]) == size, name


def test_huge_jpeg_is_decoded_small(tmp_path):
    Image.new("RGB", (12_000, 9_000), "teal").save(tmp_path / "huge.jpg")
    Image.core.reset_stats()
    shown = load_image(tmp_path / "huge.jpg", longest_side=demo_app.DISPLAY_SIDE)
    memory = Image.core.get_stats()
    assert shown.size == (1024, 768)
    assert memory["allocated_blocks"] + memory["reused_blocks"] <= 6  # of 16 MB; the full picture alone takes 27


def test_a_thousand_classes(client, picture):
    _, legend, numbers = ask(client, picture, ", ".join(f"class {i}" for i in range(1000)))
    assert sum(numbers["results"][0]["areas"].values()) == pytest.approx(1)
    assert legend.count("<tr>") <= demo_app.LEGEND_ROWS + 2


def test_html_names_are_escaped(client, picture):
    _, legend, numbers = ask(client, picture, '<img src=x onerror="alert(1)">, <b>')
    assert set(numbers["results"][0]["areas"]) <= {'<img src=x onerror="alert(1)">', "<b>"}
    assert "<img" not in legend and "<b>" not in legend and "&lt;" in legend


def test_options_reach_the_model(client, demo, folder, picture):
    loaded = load_checkpoint(folder / "open")
    loaded.model.config.attention_variant = "clearclip"
    (label_map,) = segment(loaded.model, loaded.processor, [picture], CLASSES, window=16, refinement="pamr")
    before = demo.cache.get(demo.checkpoints["open"].source).model.config.attention_variant
    options = demo_app.Options("clearclip", 16, "pamr")
    comparison = demo.compare(str(picture), "sky, sea, boat", ["open"], options)
    assert np.array_equal(comparison.label_maps[0], label_map)
    assert demo.cache.get(demo.checkpoints["open"].source).model.config.attention_variant == before
    _, _, numbers = ask(client, picture, attention="clearclip", window=96, refinement="pamr")
    assert numbers["results"]


def test_opacity_needs_no_model(demo, picture):
    comparison = demo.compare(str(picture), "sky, sea, boat", ["open"], demo_app.Options(None, None, None))
    demo.cache = None
    for opacity in (0.0, 0.3, 1.0):
        ((drawn, _),) = demo.redraw(comparison, opacity)
        assert drawn == overlay(load_image(picture), comparison.label_maps[0], CLASSES, opacity)
    assert demo.redraw(None, 0.3) == gr.skip()


def test_groups_are_shown_where_there_are_any(demo, folder, picture):
    """One more picture for the GroupViT, none for the other; every pixel lies in the group with the largest share there."""
    options = demo_app.Options(None, None, None, show_groups=True)
    comparison = demo.compare(str(picture), "sky, sea, boat", ["open", "with-groups"], options)
    (grouping,) = comparison.groupings
    assert [caption.split(" · ")[1] for _, caption in comparison.overlays(0.5)][2:] == ["groups"] and len(
        comparison.titles
    ) == 2
    loaded = load_checkpoint(folder / "with-groups")
    inputs = loaded.processor(images=[load_image(picture)], class_names=CLASSES, return_tensors="pt")
    outputs = loaded.model(**inputs)
    shares = torch.nn.functional.interpolate(outputs.assignments, size=grouping.label_map.shape, mode="bilinear")[0]
    assert np.array_equal(grouping.label_map, shares.argmax(dim=0).numpy())
    best = [CLASSES[index] for index in outputs.group_scores[0].argmax(dim=0)]
    assert grouping.names == [f"{number}: {name}" for number, name in enumerate(best, start=1)]


def test_class_box_follows_the_checkpoint(demo):
    box, note = demo.choose(["open"], "")
    assert box["interactive"] and box["value"] == "sky, sea, boat|ship" and "**Open words** Dense CLIP" in note
    closed, _ = demo.choose(["closed"], "my own words")
    assert not closed["interactive"] and closed["value"] == "tree, sky" and "only their own classes" in closed["info"]
    assert demo.choose(["open"], closed["value"])[0]["value"] == "sky, sea, boat|ship"  # untouched defaults are replaced
    mixed, note = demo.choose(["open", "closed"], "my own words")
    assert mixed["interactive"] and mixed["value"] == "my own words" and "Closed list: own classes only" in note
    assert demo.choose([], "my own words")[0]["value"] == "my own words"


def test_clip_is_taken_back_without_hub(demo):
    boxes, note = demo.offer_hub_clip(["open", demo_app.HUB_CLIP])
    assert boxes.value == ["open"] and demo_app.HUB_CLIP not in [name for _, name in boxes.choices]
    assert "did not answer" in note and "work offline" in note
    _, note = demo_app.Demo([demo_app.clip_from_hub()]).offer_hub_clip([demo_app.HUB_CLIP])
    assert "python app.py FOLDER" in note


def test_building_the_page_touches_no_network(folder, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert isinstance(demo_app.build_app(folder), gr.Blocks)


def test_mask_clip_is_ticked_first():
    app = demo_app.build_app()
    (boxes,) = [block for block in app.blocks.values() if isinstance(block, gr.CheckboxGroup)]
    assert boxes.value == [demo_app.FIRST_CHECKPOINT] and boxes.choices[0][1] == demo_app.FIRST_CHECKPOINT


def test_extra_checkpoints_come_first(folder, tmp_path):
    app = demo_app.build_app(tmp_path, extra=[folder / "open"])
    (boxes,) = [block for block in app.blocks.values() if isinstance(block, gr.CheckboxGroup)]
    assert boxes.choices == [("Open words", "open"), ("CLIP ViT-B/16, OpenAI", demo_app.HUB_CLIP)]
