"""The built wheel, installed beside the packages that it needs, used from an empty folder as by a person without a checkout.

`.ci/run` does the same in an environment that pip fills from the wheel's own metadata.
"""

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

import hf_clipseg

from .tiny import save_tiny_clip

ROOT = Path(hf_clipseg.__file__).parents[1]
SOURCES = (
    "pyproject.toml",
    "setup.py",
    "requirements.txt",
    "README.md",
    "LICENSE",
    "hf_clipseg",
    "training",
    "tests/requirements.txt",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    copy, output = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(output), str(copy)]
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *build], check=True, cwd=copy)
    (built,) = output.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory):
    """Runs a program of an environment that has the wheel, and the packages of this one, from an empty folder."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    programs = home / ("Scripts" if os.name == "nt" else "bin")
    install = ["install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--python", str(programs / "python"), *install], check=True)
    (packages,) = home.glob("lib/python*/site-packages") if os.name != "nt" else [home / "Lib" / "site-packages"]
    (packages / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    empty = tmp_path_factory.mktemp("empty")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(empty / "cache"), "HF_HUB_OFFLINE": "1"}

    def run(program: str, *arguments: str) -> subprocess.CompletedProcess:
        words = [str(programs / program), *arguments]
        return subprocess.run(words, cwd=empty, env=environment, capture_output=True, text=True)

    return run


def stated(path: str) -> set[str]:
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    return {str(Requirement(line)) for line in lines if line and line[0] not in "#-"}


def needed(wheel: Path, extra: str | None) -> set[str]:
    """What the metadata asks for without an extra, or because of one."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        requirements = [Requirement(line) for line in message_from_bytes(archive.read(name)).get_all("Requires-Dist")]
    chosen = [r for r in requirements if (r.marker is None if extra is None else r.marker and f'"{extra}"' in str(r.marker))]
    for requirement in chosen:
        requirement.marker = None
    return set(map(str, chosen))


def test_the_wheel_holds_the_package_alone_with_its_types(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"hf_clipseg", f"hf_clipseg-{hf_clipseg.__version__}.dist-info"}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hf_clipseg").rglob("*.py")}
    assert {name for name in names if name.startswith("hf_clipseg/")} == modules | {"hf_clipseg/py.typed"}


def test_it_asks_for_what_the_requirements_files_state(wheel):
    app = {line for line in stated("requirements.txt") if line.startswith("gradio")}
    assert needed(wheel, None) == stated("requirements.txt") - app
    assert needed(wheel, "app") == app and len(app) == 1
    assert needed(wheel, "mcp") == {line.replace("gradio", "gradio[mcp]") for line in app}
    assert needed(wheel, "curation") == stated("training/curation/requirements.txt")
    assert needed(wheel, "dev") == app | stated("training/curation/requirements.txt") | stated("tests/requirements.txt")


def test_every_requirement_states_its_lowest_version():
    lowest = runpy.run_path(str(ROOT / ".ci" / "lowest.py"))["lowest"]
    pins = [Requirement(pin) for pin in lowest((ROOT / "requirements.txt").read_text(encoding="utf-8"))]
    allowed = {Requirement(line).name: Requirement(line).specifier for line in stated("requirements.txt")}
    assert {pin.name for pin in pins} == set(allowed)
    for pin in pins:
        (floor,) = (part.version for part in allowed[pin.name] if part.operator == ">=")
        assert str(pin.specifier) == f"=={floor}"
    with pytest.raises(ValueError, match="'torch' states no lowest version"):
        lowest("numpy>=2.0\ntorch  # any\n")


def test_without_a_checkout_it_says_where_the_checkpoints_are(command):
    done = command("hf-clipseg", "models")
    assert done.returncode == 0, done.stderr
    assert "The shipped checkpoints are not part of the installed package" in done.stdout and "model_cards" in done.stdout
    assert command("python", "-c", "import training").returncode == 1


def test_the_console_command_segments(command, tmp_path):
    clip = save_tiny_clip(tmp_path / "clip")
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "photo.png")
    words = ("--classes", "sky, boat|ship", "--model", str(clip), "--output", str(tmp_path / "out"))
    done = command("hf-clipseg", "segment", str(tmp_path / "photo.png"), *words)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out" / "photo.labels.png").size == (40, 30)
    assert Image.open(tmp_path / "out" / "photo.overlay.png").size == (40, 30)
