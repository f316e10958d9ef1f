"""Stuff of Toyscapes: seamless texture tiles, their colours, and the painter that fills a region with them.

A tile is a grey-level image made once per process from integer-lattice noise (no transcendental functions, so it is the
same on every machine) and cached per size. Painting is a table look-up: tile level plus a vertical ramp (distance)
indexes a palette, which costs a fraction of blending colours and keeps rendering fast.
"""

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from .canvas import Canvas, Colour, Dice, vary

_TILE = 480  # pixels of a master tile, which covers _TILE_UNITS short sides of a scene
_TILE_UNITS = 2


@dataclass(frozen=True)
class Surface:
    """How one stuff class looks: `palettes` holds (adjective or None, colours from far and dark to near and light)."""

    tile: str
    texture: float  # share of the palette that the tile spans; the vertical ramp spans `ramp`
    ramp: float
    palettes: tuple[tuple[str | None, tuple[Colour, ...]], ...]


def _value_noise(rng: np.random.Generator, cells_y: int, cells_x: int) -> np.ndarray:
    """Seamless smooth noise in [0, 1] with the given number of cells a side."""
    lattice = rng.random((cells_y, cells_x))

    def stretch(values: np.ndarray, cells: int) -> np.ndarray:
        position = np.arange(_TILE) * cells / _TILE
        low = position.astype(int)
        share = (position - low)[:, None]
        share = share * share * (3 - 2 * share)
        return values[low] * (1 - share) + values[(low + 1) % cells] * share

    return stretch(stretch(lattice, cells_y).T, cells_x).T


def _octaves(rng: np.random.Generator, cells_y: int, cells_x: int, count: int) -> np.ndarray:
    layers = [_value_noise(rng, cells_y << k, cells_x << k) / 2**k for k in range(count)]
    total = sum(layers)
    return (total - total.min()) / (total.max() - total.min())


def _wisps(rng) -> np.ndarray:
    return _octaves(rng, 6, 2, 3)


def _waves(rng) -> np.ndarray:
    return 0.8 * _octaves(rng, 40, 6, 2)


def _blades(rng) -> np.ndarray:
    return 0.6 * _octaves(rng, 12, 64, 2) + 0.4 * _octaves(rng, 5, 5, 2)


def _grains(rng) -> np.ndarray:
    ripples = _octaves(rng, 20, 4, 2)
    return 0.55 * ripples + 0.45 * _value_noise(rng, 128, 128)


def _gravel(rng) -> np.ndarray:
    return 0.5 * _value_noise(rng, 96, 96) + 0.5 * _octaves(rng, 4, 4, 2)


def _drifts(rng) -> np.ndarray:
    drifts = _octaves(rng, 7, 3, 2)
    return np.where(_value_noise(rng, 96, 96) > 0.93, 1.0, drifts * 0.9)


def _ears(rng) -> np.ndarray:
    """Overlapping ears of wheat on stalks, back rows first."""
    shifts, levels = rng.integers(-6, 7, (24, 24)), rng.integers(150, 240, (24, 24))
    picture = Image.new("L", (_TILE, _TILE), 70)
    draw = ImageDraw.Draw(picture)
    for top in range(-40, _TILE, 20):
        for x in range(-12, _TILE + 12, 24):
            # Positions repeat after one tile, so that the left and right (and upper and lower) edges meet.
            column, row = (x + 12) // 24 % 20, top // 20 % 24
            level = int(levels[row, column])
            left, upper = x + int(shifts[row, column]) + 12 * (row % 2), top + int(shifts[column, row])
            draw.rectangle((left - 2, upper + 20, left + 2, upper + 48), fill=level - 60)
            for k in range(4):
                draw.ellipse((left - 8, upper + 6 * k, left, upper + 6 * k + 9), fill=level - 30)
                draw.ellipse((left, upper + 6 * k, left + 8, upper + 6 * k + 9), fill=level)
    return np.asarray(picture) / 255


def _leaves(rng) -> np.ndarray:
    """Overlapping leaf blobs, lighter towards the top of each."""
    picture = Image.new("L", (_TILE, _TILE), 30)
    draw = ImageDraw.Draw(picture)
    for x, y, level in zip(rng.integers(0, _TILE, 900), rng.integers(0, _TILE, 900), rng.random(900), strict=True):
        for dx in (-_TILE, 0, _TILE):
            for dy in (-_TILE, 0, _TILE):
                box = (x + dx - 13, y + dy - 10, x + dx + 13, y + dy + 10)
                if box[2] > 0 and box[3] > 0 and box[0] < _TILE and box[1] < _TILE:
                    draw.ellipse(box, fill=int(50 + 150 * level))
                    draw.ellipse((box[0] + 4, box[1] + 2, box[2] - 8, box[3] - 9), fill=int(90 + 165 * level))
    return np.asarray(picture) / 255


def _bricks(rng) -> np.ndarray:
    """Rows of bricks of different tones; the mortar is the top of the palette."""
    tones = rng.random((20, 10))
    y, x = np.mgrid[:_TILE, :_TILE]
    row = y // 24
    shifted = (x + 24 * (row % 2)) % _TILE
    mortar = (y % 24 < 4) | (shifted % 48 < 4)
    tone = 0.12 + 0.5 * tones[row, shifted // 48] + 0.1 * _value_noise(rng, 64, 64)
    return np.where(mortar, 1.0, tone)


def _planks(rng) -> np.ndarray:
    """Horizontal boards with grain, dark gaps and staggered ends."""
    tones, ends = rng.random(10), rng.integers(0, _TILE, 10)
    y, x = np.mgrid[:_TILE, :_TILE]
    row = y // 48
    gap = (y % 48 < 4) | ((x - ends[row]) % 240 < 4)
    grain = 0.3 + 0.35 * tones[row] + 0.35 * _octaves(rng, 128, 3, 1)
    return np.where(gap, 0.0, grain)


_TILES = {
    "wisps": _wisps,
    "waves": _waves,
    "blades": _blades,
    "grains": _grains,
    "gravel": _gravel,
    "drifts": _drifts,
    "ears": _ears,
    "leaves": _leaves,
    "bricks": _bricks,
    "planks": _planks,
}

SURFACES = {
    "sky": Surface("wisps", 0.3, 0.7, (
        ("blue", ((58, 128, 218), (128, 186, 240), (214, 234, 248))),
        ("blue", ((92, 168, 232), (168, 212, 244), (236, 244, 246))),
        ("grey", ((128, 140, 158), (170, 180, 192), (214, 218, 222))),
    )),
    "sunset sky": Surface("wisps", 0.2, 0.8, (
        ("orange", ((112, 92, 168), (236, 128, 128), (255, 200, 120))),
        ("pink", ((104, 120, 196), (214, 150, 196), (255, 206, 186))),
    )),
    "night sky": Surface("wisps", 0.2, 0.8, (
        ("dark", ((24, 28, 84), (48, 60, 136), (104, 112, 176))),
        ("dark", ((18, 24, 66), (40, 62, 120), (72, 112, 156))),
    )),
    "grass": Surface("blades", 0.55, 0.45, (
        ("green", ((70, 138, 62), (104, 172, 74), (158, 210, 98))),
        ("green", ((52, 122, 72), (82, 156, 84), (132, 196, 112))),
        ("dry", ((128, 138, 58), (166, 172, 78), (204, 206, 116))),
    )),
    "sea": Surface("waves", 0.5, 0.5, (
        ("blue", ((26, 84, 156), (44, 122, 190), (150, 206, 232))),
        ("blue", ((24, 66, 128), (38, 96, 168), (112, 168, 216))),
        ("turquoise", ((24, 122, 146), (48, 170, 178), (168, 230, 220))),
    )),
    "sand": Surface("grains", 0.6, 0.4, (
        ("yellow", ((214, 178, 112), (236, 206, 142), (250, 230, 178))),
        ("pale", ((206, 184, 150), (228, 212, 178), (246, 236, 210))),
        ("red", ((186, 118, 78), (212, 146, 100), (234, 178, 132))),
    )),
    "road": Surface("gravel", 0.6, 0.4, (
        ("grey", ((86, 88, 98), (108, 110, 120), (136, 138, 146))),
        ("dark", ((52, 54, 64), (70, 72, 84), (98, 100, 112))),
    )),
    "snow": Surface("drifts", 0.6, 0.4, (
        ("white", ((196, 212, 236), (228, 236, 248), (255, 255, 255))),
        ("white", ((206, 204, 232), (232, 230, 246), (255, 253, 255))),
    )),
    "wheat field": Surface("ears", 0.6, 0.4, (
        ("golden", ((184, 132, 42), (226, 178, 66), (252, 222, 124))),
        ("ripe", ((168, 112, 40), (206, 152, 66), (242, 202, 118))),
    )),
    "hedge": Surface("leaves", 0.85, 0.15, (
        ("green", ((26, 70, 46), (46, 110, 62), (104, 162, 84))),
        ("dark", ((20, 54, 50), (34, 88, 70), (78, 136, 96))),
        ("autumn", ((112, 46, 32), (184, 84, 40), (236, 150, 62))),
    )),
    "brick wall": Surface("bricks", 1.0, 0.0, (
        ("red", ((148, 62, 52), (190, 92, 72), (208, 112, 88), (226, 206, 190))),
        ("brown", ((112, 78, 62), (150, 108, 84), (172, 130, 104), (206, 192, 176))),
        ("white", ((206, 202, 198), (228, 224, 218), (240, 238, 232), (166, 162, 164))),
        ("grey", ((112, 118, 130), (144, 150, 160), (164, 170, 178), (208, 210, 212))),
    )),
    "wooden floor": Surface("planks", 0.9, 0.1, (
        ("brown", ((92, 56, 36), (158, 104, 64), (200, 146, 94))),
        ("dark", ((54, 34, 30), (98, 62, 46), (142, 98, 72))),
        ("pale", ((150, 116, 84), (208, 174, 132), (234, 208, 170))),
    )),
}  # fmt: skip


@cache
def _master(tile: str) -> Image.Image:
    rng = np.random.Generator(np.random.Philox(key=sorted(_TILES).index(tile) + 1))
    return Image.fromarray((np.clip(_TILES[tile](rng), 0, 1) * 255).astype(np.uint8), "L")


@lru_cache(maxsize=256)
def _tile(name: str, unit: int, span: int, mirrored: bool) -> Image.Image:
    """The tile at `unit` pixels a short side, its levels spanning 0 to `span`."""
    side = max(8, _TILE_UNITS * unit)
    tile = _master(name).resize((side, side), Image.Resampling.LANCZOS)
    tile = tile.point([level * span // 255 for level in range(256)])
    return tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else tile


@lru_cache(maxsize=64)
def _ramp(width: int, height: int, span: int) -> Image.Image:
    gradient = Image.linear_gradient("L").point([level * span // 255 for level in range(256)])
    return gradient.resize((width, height), Image.Resampling.NEAREST)


def _crop(tile: Image.Image, size: tuple[int, int], x: int, y: int) -> Image.Image:
    """A window of the endlessly repeated tile."""
    side = tile.size[0]
    if x + size[0] <= side and y + size[1] <= side:
        return tile.crop((x, y, x + size[0], y + size[1]))
    window = Image.new("L", size)
    for left in range(-x, size[0], side):
        for top in range(-y, size[1], side):
            window.paste(tile, (left, top))
    return window


def _palette_bytes(stops: list[Colour]) -> bytes:
    position = np.linspace(0, len(stops) - 1, 256)
    channels = [np.interp(position, range(len(stops)), channel) for channel in zip(*stops, strict=True)]
    return np.stack(channels, axis=1).astype(np.uint8).tobytes()


def paint_surface(canvas: Canvas, surface_name: str, dice: Dice, top: float, bottom: float):
    """A canvas-sized picture of a surface whose vertical ramp runs from `top` to `bottom` (shares of the height).

    Returns:
        (picture, adjective): the adjective of the palette that was drawn, or None.
    """
    surface = SURFACES[surface_name]
    adjective, stops = dice.choice(surface.palettes)
    stops = [vary(stop, dice, 8) for stop in stops]
    x, y, mirrored = dice.random(), dice.random(), dice.chance(0.5)
    tile = _tile(surface.tile, canvas.unit, int(255 * surface.texture), mirrored)
    side = tile.size[0]
    levels = _crop(tile, canvas.size, int(x * side), int(y * side))
    if surface.ramp:
        first = max(0, int(top * canvas.size[1]))
        last = max(first + 1, int(bottom * canvas.size[1]))
        ramp = Image.new("L", canvas.size, int(255 * surface.ramp))
        ramp.paste(0, (0, 0, canvas.size[0], first))
        ramp.paste(_ramp(canvas.size[0], last - first, int(255 * surface.ramp)), (0, first))
        levels = ImageChops.add(levels, ramp)
    levels.putpalette(_palette_bytes(stops))
    return levels.convert("RGB"), adjective
