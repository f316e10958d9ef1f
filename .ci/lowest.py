"""Prints the lowest versions that a requirements file allows, as pip's own pins: `name==floor` for every `name>=floor`."""

import re
import sys
from pathlib import Path


def lowest(text: str) -> list[str]:
    """One `name[extras]==floor` per requirement of the text.

    Raises:
        ValueError: a requirement states no floor, so that its lowest version is whatever was published first.
    """
    pins = []
    for line in text.splitlines():
        requirement = line.split("#")[0].strip()
        if not requirement:
            continue
        name, floor = re.match(r"([\w.\[\],-]+)", requirement), re.search(r"(?:>=|==)\s*([\w.]+)", requirement)
        if not name or not floor:
            raise ValueError(f"{requirement!r} states no lowest version: write it as name>=version.")
        pins.append(f"{name[1]}=={floor[1]}")
    return pins


if __name__ == "__main__":
    print(*lowest(Path(sys.argv[1]).read_text(encoding="utf-8")), sep="\n")
