"""Curves of a run as one picture: loss and validation over the steps, drawn from `metrics.jsonl` with Pillow alone."""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

VALUES = ("loss", "mIoU")
WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 36, 40  # margins of a panel, in pixels
SCALE = 2  # drawn larger, then reduced: lines without steps
LINE, FRAME, TEXT = (31, 111, 178), (170, 170, 170), (40, 40, 40)

Point = tuple[float, float]


def read_points(metrics: str | Path, values: Sequence[str] = VALUES) -> dict[str, list[Point]]:
    """`{value: [(step, number), ...]}` for each of `values` that the file has at two steps or more."""
    rows = [json.loads(line) for line in Path(metrics).read_text(encoding="utf-8").splitlines()]
    points = {value: [(row["step"], row[value]) for row in rows if value in row] for value in values}
    return {value: found for value, found in points.items() if len(found) > 1}


def draw_curves(points: dict[str, list[Point]]) -> Image.Image:
    """A panel per value, side by side, each with its own range."""
    picture = Image.new("RGB", (WIDTH * len(points) * SCALE, HEIGHT * SCALE), "white")
    draw = ImageDraw.Draw(picture)
    for number, (value, found) in enumerate(points.items()):
        draw_panel(draw, number * WIDTH, value, found)
    return picture.resize((WIDTH * len(points), HEIGHT), Image.Resampling.LANCZOS)


def draw_panel(draw: ImageDraw.ImageDraw, offset: int, title: str, points: list[Point]) -> None:
    """Frame, range of both axes at their ends, and the line."""
    font = ImageFont.load_default(13 * SCALE)
    left, right, top, bottom = (SCALE * place for place in (offset + LEFT, offset + WIDTH - RIGHT, TOP, HEIGHT - BOTTOM))
    steps, numbers = zip(*points, strict=True)
    (first, last), (low, high) = ((min(axis), max(axis)) for axis in (steps, numbers))

    def place(point: Point) -> Point:
        across, up = ((point[0] - first) / ((last - first) or 1), (point[1] - low) / ((high - low) or 1))
        return left + across * (right - left), bottom - up * (bottom - top)

    draw.rectangle((left, top, right, bottom), outline=FRAME, width=SCALE)
    draw.line([place(point) for point in points], fill=LINE, width=2 * SCALE, joint="curve")
    margin = 6 * SCALE
    draw.text(((left + right) / 2, top - margin), title, fill=TEXT, font=font, anchor="mb")
    draw.text((left - margin, top), f"{high:.3g}", fill=TEXT, font=font, anchor="rt")
    draw.text((left - margin, bottom), f"{low:.3g}", fill=TEXT, font=font, anchor="rb")
    draw.text((left, bottom + margin), f"step {first:,}", fill=TEXT, font=font, anchor="lt")
    draw.text((right, bottom + margin), f"{last:,}", fill=TEXT, font=font, anchor="rt")
