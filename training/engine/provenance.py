"""Where a figure comes from: command, versions, commit, date. Every file of results carries it."""

import json
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

import torch
import transformers

import hf_clipseg
from hf_clipseg.atomic import replace_file


def provenance(module: str, command_line: Sequence[str]) -> dict:
    """The record of a run of `python -m module command_line ...`."""
    return {
        "command": shlex.join(["python", "-m", module, *command_line]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "hf_clipseg": hf_clipseg.__version__,
        },
        **commit_of(Path(__file__)),
    }


@cache
def commit_of(file: Path) -> dict:
    """`commit` and `dirty` of the repository that tracks `file`; None for both where none does. Git is asked once."""

    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(["git", *arguments], cwd=file.parent, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):  # git is not installed, or does not answer
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    # An installed copy may lie inside somebody else's repository, whose commit would say nothing.
    if not git("ls-files", "--error-unmatch", file.name):
        return {"commit": None, "dirty": None}
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}


def write_json(path: str | Path, content: dict) -> None:
    """A file that exists is complete."""
    with replace_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
