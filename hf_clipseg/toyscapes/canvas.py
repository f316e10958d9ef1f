"""Drawing tools of Toyscapes: a reproducible dice, a canvas that paints colour and labels together, and a pen.

Everything is drawn at twice the asked size without anti-aliasing and reduced at the end: that anti-aliases the picture
and keeps labels crisp. Positions are fractions of the image's width and height, sizes are fractions of its short side,
so one scene is the same scene at every size.
"""

import math
import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .scene_vocabulary import COLOURS, PART_IDS

SUPERSAMPLING = 2
Colour = tuple[int, int, int]
Point = tuple[float, float]
_FRAME = ((0, 0), (1, 0), (1, 1), (0, 1))
_CIRCLE = tuple((math.cos(2 * math.pi * k / 28), math.sin(2 * math.pi * k / 28)) for k in range(28))


class Dice:
    """Random choices that are the same on every machine and Python version.

    The stream is `random.Random.random`, the one method whose sequence Python guarantees, seeded through numpy's
    `SeedSequence`, which keeps different keys apart.
    """

    def __init__(self, seed: int, *key: int):
        words = np.random.SeedSequence(seed, spawn_key=key).generate_state(4)
        self.random = random.Random(int.from_bytes(words.astype("<u4").tobytes(), "little")).random

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high], both included."""
        return low + int(self.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def choice(self, options):
        return options[int(self.random() * len(options))]

    def weighted(self, weights: dict):
        """A key of `weights`, drawn with probability proportional to its value."""
        point = self.random() * sum(weights.values())
        for option, weight in weights.items():
            point -= weight
            if point < 0:
                return option
        return option

    def shuffled(self, items) -> list:
        return [item for _, item in sorted(((self.random(), item) for item in items), key=lambda pair: pair[0])]


@dataclass(frozen=True)
class Look:
    """What a drawing function tells the caption: a true detail ("with a red roof"), and nouns of the drawn variant."""

    detail: str | None = None
    nouns: tuple[str, ...] = ()


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """`first` moved towards `second` by `share` (0 to 1)."""
    red, green, blue = (int(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def lighter(colour: Colour, share: float = 0.3) -> Colour:
    return mix(colour, (255, 252, 240), share)


def darker(colour: Colour, share: float = 0.25) -> Colour:
    return mix(colour, (24, 20, 56), share)


def vary(colour: Colour, dice: Dice, spread: int = 16) -> Colour:
    """`colour` with each channel moved by at most `spread`."""
    red, green, blue = (max(0, min(255, channel + dice.integer(-spread, spread))) for channel in colour)
    return red, green, blue


@lru_cache(maxsize=1)
def _diagonal_light() -> Image.Image:
    """RGBA gradient from light (upper left) to dark (lower right), neutral for soft light at 128."""
    ramp = np.add.outer(np.arange(128) * 1.2, np.arange(128) * 0.8)
    level = (168 - 84 * ramp / ramp.max()).astype(np.uint8)
    alpha = np.full_like(level, 255)
    return Image.fromarray(np.dstack([level, level, level, alpha]), "RGBA")


@lru_cache(maxsize=8)
def _soft_disc(strength: float) -> Image.Image:
    disc = Image.new("L", (192, 192))
    ImageDraw.Draw(disc).ellipse((44, 44, 148, 148), fill=int(255 * strength))
    return disc.filter(ImageFilter.GaussianBlur(20))


class Pen:
    """Draws one thing on its own layer in local coordinates: x to the right and y down, both from 0 to 1.

    Args:
        width, height: extent of the thing in (super-sampled) pixels.
        flip: mirror it left to right.
        angle: rotation in radians, clockwise.
        night: whether windows and lamps are lit; they then also paint the glow layer.
    """

    def __init__(self, width: float, height: float, flip: bool = False, angle: float = 0.0, night: bool = False):
        self.width, self.height, self.night = width, height, night
        self._cos, self._sin, self._sign = math.cos(angle), math.sin(angle), -1.0 if flip else 1.0
        self._upright = angle == 0.0
        reach_x = abs(width * self._cos) + abs(height * self._sin)
        reach_y = abs(width * self._sin) + abs(height * self._cos)
        self.size = (max(2, math.ceil(reach_x) + 2), max(2, math.ceil(reach_y) + 2))
        self.layer = Image.new("RGBA", self.size)
        self.parts = Image.new("L", self.size)
        self.glow = Image.new("L", self.size) if night else None
        self._targets = [ImageDraw.Draw(self.layer), ImageDraw.Draw(self.parts)]
        if self.glow is not None:
            self._targets.append(ImageDraw.Draw(self.glow))

    def _place(self, points) -> list[Point]:
        centre_x, centre_y = self.size[0] / 2, self.size[1] / 2
        placed = []
        for x, y in points:
            across, down = (x - 0.5) * self.width * self._sign, (y - 0.5) * self.height
            placed.append((centre_x + across * self._cos - down * self._sin, centre_y + across * self._sin + down * self._cos))
        return placed

    def _fills(self, colour: Colour, part: str | None, glow: bool):
        return zip(self._targets, ((*colour, 255), PART_IDS[part or "none"], 255 * glow), strict=False)

    def polygon(self, points, colour: Colour, part: str | None = None, glow: bool = False) -> None:
        placed = self._place(points)
        for target, fill in self._fills(colour, part, glow):
            target.polygon(placed, fill=fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, part=None, glow=False) -> None:
        """Ellipse around (x, y); `rx` is a share of the width, `ry` of the height."""
        if not self._upright:
            self.polygon([(x + rx * c, y + ry * s) for c, s in _CIRCLE], colour, part, glow)
            return
        ((px, py),) = self._place([(x, y)])
        half_x, half_y = rx * self.width, ry * self.height
        for target, fill in self._fills(colour, part, glow):
            target.ellipse((px - half_x, py - half_y, px + half_x, py + half_y), fill=fill)

    def disc(self, x: float, y: float, radius: float, colour: Colour, part=None, glow=False) -> None:
        """True circle; `radius` is a share of the height."""
        self.ellipse(x, y, radius * self.height / self.width, radius, colour, part, glow)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, part=None, glow=False) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour, part, glow)

    def round_box(self, x0, y0, x1, y1, radius, colour: Colour, part=None, glow=False) -> None:
        """Box with rounded corners; `radius` is a share of the height."""
        rx, ry = radius * self.height / self.width, radius
        corners = ((x1 - rx, y1 - ry, 0), (x0 + rx, y1 - ry, 7), (x0 + rx, y0 + ry, 14), (x1 - rx, y0 + ry, 21))
        points = [
            (cx + rx * _CIRCLE[(start + step) % 28][0], cy + ry * _CIRCLE[(start + step) % 28][1])
            for cx, cy, start in corners
            for step in range(0, 8, 2)
        ]
        self.polygon(points, colour, part, glow)

    def half_disc(self, x: float, y: float, rx: float, ry: float, colour: Colour, part=None, glow=False) -> None:
        """Upper half of an ellipse whose flat side is at height `y`."""
        self.polygon([(x + rx * c, y + ry * s) for c, s in _CIRCLE[14:] + _CIRCLE[:1]], colour, part, glow)

    def window_colour(self, day: Colour = (170, 212, 236)) -> Colour:
        return (255, 214, 110) if self.night else day

    def shaded_layer(self) -> Image.Image:
        """The layer with light from the upper left."""
        return ImageChops.soft_light(self.layer, _diagonal_light().resize(self.size, Image.Resampling.NEAREST))


class Canvas:
    """Colour, instance, part and glow planes of one scene, painted back to front.

    Args:
        height, width: size of the finished scene in pixels.
        time: "day", "sunset" or "night"; the finished picture is graded to it, except where something glows.
    """

    def __init__(self, height: int, width: int, time: str = "day"):
        self.height, self.width, self.time, self.night = height, width, time, time == "night"
        self.size = (width * SUPERSAMPLING, height * SUPERSAMPLING)
        self.unit = min(self.size)
        self.colour = Image.new("RGB", self.size)
        self.instances = Image.new("L", self.size)
        self.parts = Image.new("L", self.size)
        self.glow = Image.new("L", self.size) if self.night else None

    def pixels(self, points) -> list[Point]:
        return [(x * self.size[0], y * self.size[1]) for x, y in points]

    def fill(self, texture: Image.Image, points, instance: int) -> None:
        """Paint `texture` (canvas-sized) inside the polygon `points`, or everywhere when `points` is None."""
        placed = self.pixels(points or _FRAME)
        mask = Image.new("L", self.size)
        ImageDraw.Draw(mask).polygon(placed, fill=255)
        self.colour.paste(texture, (0, 0), mask)
        ImageDraw.Draw(self.instances).polygon(placed, fill=instance)
        for plane in (self.parts, self.glow) if self.glow is not None else (self.parts,):
            ImageDraw.Draw(plane).polygon(placed, fill=0)  # what lay here before is covered

    def stamp(self, pen: Pen, x: float, y: float, instance: int) -> None:
        """Lay the pen's layer down with its centre at (x, y)."""
        corner = (round(x * self.size[0] - pen.size[0] / 2), round(y * self.size[1] - pen.size[1] / 2))
        self.colour.paste(pen.shaded_layer(), corner, pen.layer)
        self.instances.paste(instance, (*corner, corner[0] + pen.size[0], corner[1] + pen.size[1]), pen.layer)
        self.parts.paste(pen.parts, corner, pen.layer)
        if self.glow is not None and pen.glow is not None:
            self.glow.paste(pen.glow, corner, pen.layer)

    def soft_spot(self, x: float, y: float, width: float, height: float, colour: Colour, strength: float) -> None:
        """A blurred ellipse of colour (a shadow, a halo); it changes no label. Extents in short sides."""
        extent = (max(2, int(width * self.unit * 1.8)), max(2, int(height * self.unit * 1.8)))
        corner = (round(x * self.size[0] - extent[0] / 2), round(y * self.size[1] - extent[1] / 2))
        alpha = _soft_disc(strength).resize(extent, Image.Resampling.NEAREST)
        self.colour.paste(colour, (*corner, corner[0] + extent[0], corner[1] + extent[1]), alpha)

    def veil(self, points, colour: Colour, strength: float) -> None:
        """Tint the polygon `points` with a share `strength` of `colour`: haze, foam. It changes no label."""
        placed = self.pixels(points)
        top = max(0, int(min(y for _, y in placed)))
        bottom = min(self.size[1], int(max(y for _, y in placed)) + 1)
        alpha = Image.new("L", (self.size[0], max(1, bottom - top)))
        ImageDraw.Draw(alpha).polygon([(x, y - top) for x, y in placed], fill=int(255 * strength))
        self.colour.paste(colour, (0, top, self.size[0], top + alpha.size[1]), alpha)

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The picture (height, width, 3), the instance ids and the part ids (height, width), all uint8."""
        picture = self.colour
        if self.glow is not None:
            picture = _night(picture, self.glow)
        elif self.time == "sunset":
            picture = picture.point(_SUNSET_TABLE)
        picture = picture.reduce(SUPERSAMPLING)
        # Each label is the sample nearest to the pixel's centre: labels are never blended.
        instances = np.ascontiguousarray(np.asarray(self.instances)[1::SUPERSAMPLING, 1::SUPERSAMPLING])
        parts = np.ascontiguousarray(np.asarray(self.parts)[1::SUPERSAMPLING, 1::SUPERSAMPLING])
        return np.asarray(picture), instances, parts


def _grading(gains, lifts) -> list[int]:
    """Table for `Image.point`: level * gain + lift for each channel."""
    return [min(255, int(level * gain + lift)) for gain, lift in zip(gains, lifts, strict=True) for level in range(256)]


_NIGHT_TABLE = _grading((0.52, 0.58, 0.78), (4, 8, 26))
_SUNSET_TABLE = _grading((1.0, 0.9, 0.84), (10, 2, 6))


def _night(colour: Image.Image, glow: Image.Image) -> Image.Image:
    """Dark and blue, except in what glows and softly around it."""
    halo = glow.reduce(8).resize(glow.size, Image.Resampling.BILINEAR).point([level // 2 for level in range(256)])
    return Image.composite(colour, colour.point(_NIGHT_TABLE), ImageChops.lighter(glow, halo))


def palette_colour(dice: Dice, names) -> tuple[str, Colour]:
    """One of the named colours, slightly varied, with its name for the caption."""
    name = dice.choice(names)
    return name, vary(COLOURS[name], dice, 5 if name in ("white", "grey", "black") else 14)
