"""Image-caption pairs for curation and CoCu: the same ones for both, without what curation could not read."""

from typing import Any


def key_of(source, row: int) -> str:
    """The key of a row whose image may be unreadable."""
    column = getattr(source, "key_column", None)
    return str(source.dataset[row][column]) if column else str(row)


class SelectedRows:
    """The rows of a source whose images can be read.

    Args:
        skipped: row numbers that are left out.
    """

    def __init__(self, source, skipped: list[int]):
        self.source, left_out = source, set(skipped)
        self.rows = [row for row in range(len(source)) if row not in left_out]
        self.description = source.description | {"skipped": sorted(left_out)}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[self.rows[index]]
