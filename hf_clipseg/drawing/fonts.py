"""A font that has the letters of a text: Pillow's own for plain English, one of the machine's for everything else.

Arabic needs letters that join and lines from right to left: Pillow's wheels do both where the system has libfribidi.
"""

import os
import sys
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

PREFERRED = (
    "NotoSansCJK",
    "NotoSansSC",
    "NotoSans",
    "DejaVuSans",
    "wqy",
    "PingFang",
    "Arial Unicode",
    "msyh",
    "LiberationSans",
)
"""File names, in the order in which fonts are tried; the rest follows by name."""

NOT_A_CHARACTER = "\uffff"


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The first font that has every letter of `text`, at `size` pixels; the one that has most of them where none has all."""
    letters = frozenset(letter for letter in text if letter.isprintable() and not letter.isspace())
    if not letters or all(letter.isascii() for letter in letters):
        return _default(size)
    return _open(_best_file(letters), size)


@lru_cache(256)
def _best_file(letters: frozenset[str]) -> str | None:
    best, best_count = None, _count(None, letters)
    for file in (None, *font_files()):
        if (count := _count(file, letters)) > best_count:
            best, best_count = file, count
        if best_count == len(letters):
            break
    return best


def _count(file: str | None, letters: frozenset[str]) -> int:
    """How many of the letters a font can draw: those that do not look like the sign for a missing one."""
    font = _open(file, 20)
    missing = bytes(font.getmask(NOT_A_CHARACTER))
    return sum(bytes(font.getmask(letter)) != missing for letter in letters)


@lru_cache(32)
def _open(file: str | None, size: int) -> ImageFont.FreeTypeFont:
    return _default(size) if file is None else ImageFont.truetype(file, size)


@lru_cache(32)
def _default(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)  # type: ignore[return-value]  # a FreeTypeFont wherever Pillow has FreeType


@lru_cache(1)
def font_files() -> tuple[str, ...]:
    """TrueType and OpenType files of the machine that can be read, regular ones of `PREFERRED` first."""
    files = {path for folder in font_folders() for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf", ".ttc")}
    readable = [str(file) for file in sorted(files, key=_order) if _is_readable(file)]
    return tuple(readable[:400])


def font_folders() -> list[Path]:
    home = Path.home()
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    return [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".local/share/fonts", home / ".fonts"]


def _order(file: Path) -> tuple:
    rank = next((index for index, start in enumerate(PREFERRED) if file.name.startswith(start)), len(PREFERRED))
    is_special = any(word in file.stem for word in ("Bold", "Italic", "Oblique", "Mono", "Light", "Condensed", "Thin"))
    return is_special, rank, len(file.name), file.name


def _is_readable(file: Path) -> bool:
    try:
        ImageFont.truetype(str(file), 20)
    except (OSError, ValueError):
        return False
    return True
