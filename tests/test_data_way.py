"""The picture in CONTRIBUTING shows files and functions that exist, on a way that leads from the person to the label map."""

import ast
import re
from pathlib import Path

import pytest

import hf_clipseg
from benchmarks.figures.data_way import BLOCK, GUIDE, Recorder, flow_chart, node
from hf_clipseg.checkpoints import describe_checkpoint
from hf_clipseg.processing.image_io import load_image

PACKAGE = Path(hf_clipseg.__file__).parent
ARROW = re.compile(r'^  (\w+) -->\|"\d+: (.*)"\| (\w+)$', re.MULTILINE)


def test_the_picture_is_that_of_this_code():
    """Not compared line by line: it may lack a new call, but never show what is gone."""
    (chart,) = BLOCK.findall(GUIDE.read_text(encoding="utf-8"))
    files = {node(p.relative_to(PACKAGE).with_suffix("").as_posix()): p for p in PACKAGE.rglob("*.py")}
    reached = {"you"}
    for caller, functions, file in ARROW.findall(chart):
        tree = ast.parse(files[file].read_text(encoding="utf-8"))
        defined = {part.name for part in ast.walk(tree) if isinstance(part, ast.FunctionDef)}
        assert set(functions.split(", ")) <= defined, f"{file}: run python -m benchmarks.figures.data_way --write"
        assert caller in reached, f"{caller} calls before it is called"
        reached.add(file)
    assert {"processing_processing_segmentation", "clip_clip_backbone", "processing_upsampling"} <= reached


def test_calls_between_files_are_recorded_once_and_in_order():
    with Recorder() as recorder:
        for _ in range(2):
            with pytest.raises(ValueError, match="nowhere"):
                load_image("nowhere.png")
        with pytest.raises(ValueError, match="no such folder"):
            describe_checkpoint("no such folder")
    assert recorder.calls[0] == ("you", "processing/image_io", "load_image")
    assert recorder.calls[1] == ("you", "checkpoints", "describe_checkpoint")
    assert len(recorder.calls) == len(set(recorder.calls))


def test_chart_of_three_calls():
    calls = [("you", "cli", "main"), ("cli", "drawing/overlay", "overlay"), ("cli", "drawing/overlay", "legend")]
    assert flow_chart(calls).splitlines()[1:-1] == [
        "flowchart TD",
        '  you(["photograph, class names"])',
        '  subgraph "hf_clipseg"',
        '    cli["cli.py"]',
        "  end",
        '  subgraph "drawing"',
        '    drawing_overlay["overlay.py"]',
        "  end",
        '  you -->|"1: main"| cli',
        '  cli -->|"2: overlay, legend"| drawing_overlay',
    ]
