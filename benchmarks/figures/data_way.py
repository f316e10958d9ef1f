"""The way of a photograph and class names to a label map: a Mermaid flow chart of the calls between files of `hf_clipseg`.

    python -m benchmarks.figures.data_way --write      # replaces the chart in CONTRIBUTING.md
    python -m benchmarks.figures.data_way              # prints it

Nothing is drawn by hand: the README's first example runs on a shipped checkpoint under a profiler, and every first call from
one file into another becomes an arrow, numbered in the order of time. Rooms are boxes.
"""

import argparse
import re
import sys
from pathlib import Path

import torch
from PIL import Image

import hf_clipseg
from hf_clipseg import MaskClipForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.atomic import replace_file
from hf_clipseg.checkpoints import SHIPPED

PACKAGE = Path(hf_clipseg.__file__).parent
GUIDE = PACKAGE.parent / "CONTRIBUTING.md"
BLOCK = re.compile(r"```mermaid\n.*?```\n", re.DOTALL)
Call = tuple[str, str, str]
"""File that calls, file that is called (both below the package, without suffix; "you" from outside), function."""


def example() -> list[Call]:
    """The calls between files while a photograph and class names become a label map."""
    model = MaskClipForSemanticSegmentation.from_pretrained(SHIPPED / "mask-clip-toyscapes").eval()
    processor = SegmentationProcessor.from_pretrained(SHIPPED / "mask-clip-toyscapes")
    photograph = Image.new("RGB", (96, 64), "teal")
    with torch.no_grad(), Recorder() as recorder:
        inputs = processor(images=photograph, class_names=["sky", ["boat", "ship"]], return_tensors="pt")
        outputs = model(**inputs)
        processor.post_process_semantic_segmentation(outputs, target_sizes=[(64, 96)])
    return recorder.calls


class Recorder:
    """Within `with`, `calls` gets the first call of every function that lies in another file than its caller."""

    def __init__(self):
        self.calls: list[Call] = []

    def __enter__(self) -> "Recorder":
        sys.setprofile(self.notice)
        return self

    def __exit__(self, *error) -> None:
        sys.setprofile(None)

    def notice(self, frame, event: str, _) -> None:
        file, name = file_of(frame), frame.f_code.co_name
        if event != "call" or file is None or (name.startswith(("<", "_")) and name != "__call__"):
            return
        caller = frame.f_back
        while caller is not None and file_of(caller) is None:  # through torch and transformers
            caller = caller.f_back
        call = (file_of(caller) if caller is not None else "you", file, name)
        if call[0] != file and call not in self.calls:
            self.calls.append(call)


def file_of(frame) -> str | None:
    path = Path(frame.f_code.co_filename)
    return path.relative_to(PACKAGE).with_suffix("").as_posix() if PACKAGE in path.parents else None


def flow_chart(calls: list[Call]) -> str:
    """Mermaid: a box per room, an arrow per pair of files with the functions called."""
    files = dict.fromkeys(file for call in calls for file in call[:2] if file != "you")
    rooms: dict[str, list[str]] = {}
    for file in files:
        rooms.setdefault(str(Path(file).parent), []).append(file)
    arrows: dict[tuple[str, str], list[str]] = {}
    for caller, file, function in calls:
        arrows.setdefault((caller, file), []).append(function)
    lines = ["flowchart TD", '  you(["photograph, class names"])']
    for room, members in rooms.items():
        lines += [f'  subgraph "{"hf_clipseg" if room == "." else room}"']
        lines += [f'    {node(file)}["{Path(file).name}.py"]' for file in members] + ["  end"]
    for number, ((caller, file), functions) in enumerate(arrows.items(), start=1):
        lines.append(f'  {node(caller)} -->|"{number}: {", ".join(functions)}"| {node(file)}')
    return "```mermaid\n" + "\n".join(lines) + "\n```\n"


def node(file: str) -> str:
    return file.replace("/", "_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the chart in CONTRIBUTING.md")
    arguments = parser.parse_args()
    chart = flow_chart(example())
    if not arguments.write:
        print(chart, end="")
        return
    text = GUIDE.read_text(encoding="utf-8")
    with replace_file(GUIDE) as partial:
        partial.write_text(BLOCK.sub(lambda _: chart, text, count=1), encoding="utf-8")


if __name__ == "__main__":
    main()
