"""Runs what README and the cards say, as written, and prints what came of it.

`test_snippets` starts it as a process of its own, since the Hub's cache is found once, when libraries are imported.
"""

import json
import re
import shlex
import sys
from pathlib import Path

from app import build_app
from demo.desk import Desk
from demo.limits import Ticket
from demo.page_compare import example_with
from demo.scenes import photographs, scene_picture
from hf_clipseg import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "model_cards").glob("*/README.md"))]
SERVED = "gradio_client"  # tested beside a running demo


def run_snippets(page: Path) -> dict:
    """The page's snippets one after the other, in one namespace, as a reader would type them."""
    namespace: dict = {}
    text = re.sub(r"\A---\n.*?\n---\n", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        if SERVED not in code:
            exec(compile(code, str(page), "exec"), namespace)
    return namespace


def run_command_line() -> str:
    """README's `hf-clipseg segment` line; where it writes."""
    (line,) = re.findall(r"^hf-clipseg (segment .*)$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    arguments = shlex.split(line)
    cli.main(arguments)
    return arguments[arguments.index("--output") + 1]


def real_models(desk: Desk) -> dict:
    """Every model of the Hub in one comparison: the share of the pixels that got a class, or what went wrong."""
    names = [name for name, checkpoint in desk.bench.checkpoints.items() if checkpoint.on_hub]
    question = desk.bench.question(scene_picture(16), "sky, sea, boat", names)
    *_, (comparison, failed) = desk.bench.compare(question, Ticket(600))
    return {result.name: sum(comparison.areas(result.label_map).values()) for result in comparison.results} | failed


def main() -> None:
    shapes = {}
    for page in PAGES:
        namespace = run_snippets(page)
        if "label_map" in namespace:
            label_map = namespace["label_map"]
            shapes[page.parent.name if page.parent != ROOT else "README"] = [
                *label_map.shape,
                str(label_map.dtype).split(".")[-1],
            ]
    written = sorted(path.name for path in Path(run_command_line()).iterdir())
    page = build_app()
    blocks = {getattr(block, "elem_id", None): block for block in page.blocks.values()}
    buttons = [block.value for block in page.blocks.values() if "example" in (getattr(block, "elem_classes", None) or ())]
    photograph = photographs()[0]
    _, _, chosen = example_with(page.desk, photograph.path, photograph.class_text)(["mask-clip-toyscapes"])
    found = {"shapes": shapes, "written": written, "ticked": blocks["methods"].value, "examples": buttons, "chosen": chosen}
    found["offered"] = [name for _, name in blocks["methods"].choices]
    found["areas"] = real_models(page.desk)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
