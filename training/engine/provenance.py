"""Where a figure comes from: command, versions, commit, date. Every file of results carries it."""

import json
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch
import transformers

import hf_clipseg


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


def commit_of(file: Path) -> dict:
    """`commit` and `dirty` of the repository that tracks `file`; None for both where none does."""

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
    """Writes to a temporary name, then renames, so that a file that exists is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
