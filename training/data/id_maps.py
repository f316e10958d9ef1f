"""Which stored label becomes which class: a JSON file, or a few pairs on the command line."""

import json
from collections.abc import Mapping
from pathlib import Path

REST = "rest"
SAME = "same"


def read_id_map(argument: str | Path | Mapping) -> dict[int | str, int | str]:
    """`{stored id: class id}`, and under "rest" what becomes of the ids that are not listed: a class id, 255, or "same".

    Args:
        argument: a mapping, a JSON file such as `{"255": 1, "rest": "same"}`, or pairs such as "255:1,rest:same".

    Raises:
        ValueError: none of these, or an id that is no number.
    """
    if not isinstance(argument, Mapping):
        argument = parse_id_map(str(argument))
    try:
        return {
            key if key == REST else int(key): value if (key, value) == (REST, SAME) else int(value)
            for key, value in argument.items()
        }
    except (TypeError, ValueError) as error:
        raise ValueError(f"an id map holds numbers, 'rest' and 'same', got {dict(argument)}") from error


def parse_id_map(text: str) -> Mapping:
    path = Path(text)
    if path.is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"the id map {path} is no JSON ({error})") from error
        if not isinstance(content, dict):
            raise ValueError(f'the id map {path} must be an object such as {{"22": 255, "rest": "same"}}')
        return content
    pairs = [pair.split(":") for pair in text.split(",") if pair.strip()]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"--id_map {text!r} is no JSON file, and no pairs such as 22:255,rest:same")
    return {key.strip(): value.strip() for key, value in pairs}
