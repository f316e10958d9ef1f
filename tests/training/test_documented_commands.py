"""Every `python -m training.X ...` that a page or a docstring shows is one that the script takes."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "model_cards").glob("*/README.md")),
    *sorted((ROOT / "training").glob("*.py")),
]
COMMAND = re.compile(r"-m\s+training\.(\w+)((?:\\\n|[^\n`#)])*)")


def commands() -> list[tuple[str, str, list[str]]]:
    """(page, module, arguments) of every command that is shown in full: with arguments, none of them left out."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if page.suffix == ".py":
            text = text.split('"""')[1].replace("\\\\\n", "\\\n")
        text = re.sub(r"\(`python -m\n", "(`python -m ", text)
        for module, rest in COMMAND.findall(text):
            words = rest.replace("\\\n", " ")
            if (words.strip() and "..." not in words and "$START" not in words and "--" in words) or " FOLDER" in words:
                found.append((str(page.relative_to(ROOT)), module, shlex.split(words)))
    return found


def test_commands_are_found():
    pages = {page for page, _, _ in commands()}
    assert "README.md" in pages and {f"model_cards/{name}-toyscapes/README.md" for name in ("clip", "vpl", "cocu")} <= pages
    assert {"train_clip", "train_vpl", "train_cocu", "train_mta_clip", "train_mvp_seg", "evaluate", "bake_classes"} <= {
        module for _, module, _ in commands()
    }


@pytest.mark.parametrize(
    ("page", "module", "words"), commands(), ids=lambda value: value if isinstance(value, str) else " ".join(value)[:60]
)
def test_the_script_takes_it(page, module, words, capsys):
    script = importlib.import_module(f"training.{module}")
    parse = getattr(script, "parse_arguments", None) or script.build_parser().parse_args
    try:
        parse([word.strip(".,") for word in words])
    except SystemExit:
        pytest.fail(f"{page}: python -m training.{module} {shlex.join(words)}: {capsys.readouterr().err.strip()[-300:]}")
