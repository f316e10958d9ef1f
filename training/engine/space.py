"""The Space: which files of this repository make it, so that the app runs there as it runs here."""

from pathlib import Path

from huggingface_hub.utils import filter_repo_objects

ROOT = Path(__file__).resolve().parents[2]

SPACE_FILES = (
    "README.md", "LICENSE", "requirements.txt", "packages.txt", "app.py", "app.css", "docs/images/*",
    "demo/*", "hf_clipseg/*", "training/*", "model_cards/*",
)  # fmt: skip
"""Patterns as `HfApi.upload_folder` reads them: a star crosses folders. README's front matter describes the Space."""

LEFT_OUT = ("*/__pycache__/*", "*.pyc", ".*", "*/.*")


def space_files(root: Path = ROOT) -> list[Path]:
    """The files that `upload_folder` sends with these patterns."""
    places = [root / pattern.removesuffix("/*") for pattern in SPACE_FILES]
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*")) if file.is_file()]
    names = sorted(file.relative_to(root).as_posix() for file in files)
    return [
        root / name for name in filter_repo_objects(names, allow_patterns=list(SPACE_FILES), ignore_patterns=list(LEFT_OUT))
    ]
