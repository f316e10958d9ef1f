"""README and the cards, snippet by snippet, on stand-ins for the Hub's models; and the demo where its cache has them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from demo.page import HUB_CLIP, HUB_CLIPSEG, HUB_GROUPVIT, HUB_MASK2FORMER
from demo.scenes import photographs
from hf_clipseg import toyscapes

from .hub_cache import save_hub_cache

ROOT = Path(__file__).parent.parent
CLIP_VARIANTS = ["clip-vit-b16-naclip", "clip-vit-b16-value", "clip-vit-b16-sclip", "clip-vit-b16-clearclip"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What `snippet_runner` prints, in a folder with the pictures that the snippets name."""
    place = tmp_path_factory.mktemp("place")
    (place / "model_cards").symlink_to(ROOT / "model_cards")
    for name in ("harbour.jpg", "photo.jpg"):
        Image.fromarray(toyscapes.render(0, 6, 96, 128, split="test").image).save(place / name)
    cache = save_hub_cache(tmp_path_factory.mktemp("hub"))
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.snippet_runner"], cwd=place, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_snippet_runs_and_segments(found):
    small, large = [128, 128, "int64"], [256, 384, "int64"]
    assert found["shapes"] == {
        "README": [96, 128, "int64"],
        "cocu-toyscapes": small, "groupvit-toyscapes": small, "mta-clip-toyscapes": small, "vpl-toyscapes": small,
        "mask-clip-toyscapes": large, "mvp-seg-toyscapes": large, "mvp-seg-plus-toyscapes": large,
    }  # fmt: skip


def test_the_command_line_writes_what_readme_says(found):
    """An overlay, an index PNG, and a JSON per picture."""
    assert {"photo.json", "photo.labels.png", "photo.overlay.png"} <= set(found["written"])


def test_models_of_the_hub_come_first_where_the_cache_has_them(found):
    real = [*CLIP_VARIANTS, "groupvit-yfcc", "clipseg", "mask2former-ade20k"]
    assert sorted(found["offered"][:7]) == sorted(real) and found["offered"][0] == "clip-vit-b16-naclip"
    assert found["ticked"][:2] == ["clip-vit-b16-naclip", "groupvit-yfcc"] and "mta-clip-toyscapes" in found["ticked"]
    assert found["chosen"] == ["clip-vit-b16-naclip", "groupvit-yfcc", "clipseg", "mask2former-ade20k"]
    first = [photograph.title for photograph in photographs()]
    assert found["examples"][: len(first)] == first


def test_every_model_of_the_hub_segments(found):
    assert set(found["areas"]) == {*CLIP_VARIANTS, "groupvit-yfcc", "clipseg", "mask2former-ade20k"}
    assert all(area == pytest.approx(1) for area in found["areas"].values())


def test_the_space_preloads_the_models_that_the_page_offers():
    front = yaml.safe_load((ROOT / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert front["models"] == front["preload_from_hub"] == [HUB_CLIP, HUB_GROUPVIT, HUB_CLIPSEG, HUB_MASK2FORMER]
