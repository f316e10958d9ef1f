"""What the results of a folder were made with, so that a run never goes on with other classes or weights than it began with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..atomic import replace_file

RECORD = ".hf-clipseg.json"
"""Hidden, so that no picture's results can have its name."""


def keep_record(folder: str | Path, settings: Mapping[str, Any], resume: bool) -> None:
    """Writes the settings of a run that starts, or compares them with those of the run that it goes on with.

    Args:
        settings: plain values that JSON can hold.

    Raises:
        ValueError: the folder's results were made with other settings; names the first that differs.
    """
    path = Path(folder) / RECORD
    settings = json.loads(json.dumps(dict(settings)))
    if resume and path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name in [*settings, *before]:
            now, then = settings.get(name), before.get(name)
            if now != then:
                raise ValueError(
                    f"{folder} was begun with another {name} ({shortened(then)}, now {shortened(now)}). "
                    "Go on with the same, or name another folder."
                )
        return
    with replace_file(path, per_process=True) as partial:
        partial.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def shortened(value: Any, length: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= length else text[: length - 3] + "..."
