"""What README says of the app: its front matter as a Space, and the snippets, run as written."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

from hf_clipseg import toyscapes
from hf_clipseg.checkpoints import SHIPPED

from .demo_server import running_demo

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.split("## The app, and its endpoints")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def port():
    with running_demo(SHIPPED) as (_, url):
        yield url.rstrip("/").rsplit(":", 1)[1]


@pytest.fixture
def place(tmp_path):
    Image.fromarray(toyscapes.render(0, 6, 96, 128, split="test").image).save(tmp_path / "harbour.jpg")
    return tmp_path


def snippet(language: str, port: str) -> str:
    """The README's code, with the port of the running demo."""
    return re.search(rf"```{language}\n(.*?)```", SECTION, flags=re.DOTALL)[1].replace("7860", port)


def test_the_python_snippet(port, place):
    done = subprocess.run(
        [sys.executable, "-c", snippet("python", port)], cwd=place, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "mask-clip-toyscapes" in next(line for line in lines if line.startswith("["))
    assert "MTA-CLIP on Toyscapes" in done.stdout and "MaskCLIP on Toyscapes" in done.stdout and "'boat': " in done.stdout


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
def test_the_curl_snippet(port, place):
    done = subprocess.run(["bash", "-c", snippet("bash", port)], cwd=place, capture_output=True, text=True, timeout=300)
    assert "event: complete" in done.stdout, done.stdout + done.stderr
    assert '"checkpoint": "mask-clip-toyscapes"' in done.stdout and ".labels.png" in done.stdout


def test_the_space_is_described():
    front = yaml.safe_load(README.split("---\n")[1])
    assert front["sdk"] == "gradio" and (ROOT / front["app_file"]).is_file()
    assert len(front["short_description"]) <= 60
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    (requirement,) = [Requirement(line) for line in lines if line.startswith("gradio")]
    assert front["sdk_version"] in requirement.specifier
    assert set(front["models"]) == set(front["preload_from_hub"])


def test_pictures_of_the_section_exist():
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", SECTION):
        assert (ROOT / path).is_file()
