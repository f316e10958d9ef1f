"""Small decoration on the stuff of Toyscapes: tufts, waves, lane marks, stars. It paints colour only, never labels.

Every function gets a `Brush` for one region and draws shapes that grow towards the bottom, which reads as depth.
"""

from PIL import ImageDraw

from .canvas import Canvas, Colour, Dice

_WHITE = (250, 250, 246)


class Brush:
    """Draws small polygons on a horizontal region of the canvas, in shares of its short side."""

    def __init__(self, canvas: Canvas, dice: Dice, top: float, bottom: float):
        self.dice, self.top, self.bottom = dice, top, bottom
        self.unit, (self.width, self.height) = canvas.unit, canvas.size
        self._colour = ImageDraw.Draw(canvas.colour)
        self._glow = ImageDraw.Draw(canvas.glow) if canvas.glow is not None else None

    def spot(self) -> tuple[float, float, float]:
        """A random point of the region in pixels, and the size of things there (0.6 far to 1.2 near, in pixels)."""
        share = self.dice.random()
        y = self.top + 0.04 + (self.bottom - self.top - 0.04) * share
        return self.dice.random() * self.width, y * self.height, (0.6 + 0.6 * share) * self.unit

    def polygon(self, points, colour: Colour) -> None:
        self._colour.polygon(points, fill=colour)

    def dot(self, x: float, y: float, radius: float, colour: Colour, glow: bool = False) -> None:
        box = (x - radius, y - radius, x + radius, y + radius)
        self._colour.ellipse(box, fill=colour)
        if glow and self._glow:
            self._glow.ellipse(box, fill=255)

    def arch(self, x: float, y: float, half: float, rise: float, colour: Colour) -> None:
        """A thin crescent, open below (above where `rise` is negative)."""
        outer = [(x - half, y), (x - half * 0.5, y - rise * 0.8), (x, y - rise), (x + half * 0.5, y - rise * 0.8)]
        inner = [(x + half, y), (x + half * 0.5, y - rise * 0.3), (x, y - rise * 0.45), (x - half * 0.5, y - rise * 0.3)]
        self.polygon(outer + inner, colour)

    def band(self, top: float, thickness: float, colour: Colour) -> None:
        """A strip across the picture whose upper edge is at the share `top` of the height."""
        y = top * self.height
        self.polygon([(0, y), (self.width, y), (self.width, y + thickness * self.unit), (0, y + thickness * self.unit)], colour)


def _stars(brush: Brush) -> None:
    for _ in range(brush.dice.integer(16, 34)):
        x, y, size = brush.spot()
        brush.dot(x, y, brush.dice.choice((0.0035, 0.005, 0.008)) * size, (255, 248, 214), glow=True)


def _tufts(brush: Brush) -> None:
    tone = brush.dice.choice(((60, 128, 60), (176, 220, 110), (46, 110, 66)))
    for _ in range(brush.dice.integer(8, 16)):
        x, y, size = brush.spot()
        for lean in (-0.018, 0.0, 0.018):
            tip = (x + lean * size, y - (0.05 - abs(lean)) * size)
            brush.polygon([(x + (lean * 0.4 - 0.006) * size, y), tip, (x + (lean * 0.4 + 0.006) * size, y)], tone)
    if brush.dice.chance(0.4):
        colour = brush.dice.choice((_WHITE, (252, 224, 110)))
        for _ in range(10):
            x, y, size = brush.spot()
            brush.dot(x, y, 0.009 * size, colour)


def _waves(brush: Brush) -> None:
    for _ in range(brush.dice.integer(5, 11)):
        x, y, size = brush.spot()
        half = brush.dice.uniform(0.03, 0.06) * size
        for shift in (-1, 1):
            brush.arch(x + shift * half, y, half, -half * 0.45, (214, 238, 248))


def _pebbles(brush: Brush) -> None:
    for _ in range(brush.dice.integer(5, 10)):
        x, y, size = brush.spot()
        brush.dot(x, y, brush.dice.uniform(0.005, 0.011) * size, brush.dice.choice(((172, 140, 110), (248, 240, 226))))
    for _ in range(brush.dice.integer(2, 5)):
        x, y, size = brush.spot()
        brush.arch(x, y, 0.13 * size, 0.03 * size, (196, 154, 100))


def _drifts(brush: Brush) -> None:
    for _ in range(brush.dice.integer(3, 6)):
        x, y, size = brush.spot()
        brush.arch(x, y, brush.dice.uniform(0.1, 0.2) * size, 0.045 * size, (186, 204, 236))
    for _ in range(8):
        x, y, size = brush.spot()
        brush.dot(x, y, 0.006 * size, (255, 255, 255))


def _lane_marks(brush: Brush) -> None:
    if brush.top > 0:
        brush.band(brush.top, 0.03, (196, 196, 200))
        brush.band(brush.top + 0.03 * brush.unit / brush.height, 0.012, (64, 66, 76))
    colour = brush.dice.choice((_WHITE, (248, 206, 84)))
    depth = brush.bottom - brush.top
    y, thickness = (brush.top + depth * brush.dice.uniform(0.4, 0.7)) * brush.height, 0.035 * brush.unit
    length, shift = 0.2 * brush.unit, brush.dice.random()
    for k in range(-1, int(brush.width / (1.8 * length)) + 1):
        x = (k + shift) * 1.8 * length
        brush.polygon([(x, y), (x + length, y), (x + length * 0.92, y + thickness), (x - length * 0.08, y + thickness)], colour)


def _blossoms(brush: Brush) -> None:
    if brush.dice.chance(0.45):
        colour = brush.dice.choice((_WHITE, (246, 150, 180), (250, 210, 90)))
        for _ in range(brush.dice.integer(8, 14)):
            x, y, size = brush.spot()
            brush.dot(x, y, 0.012 * size, colour)


def _skirting(brush: Brush) -> None:
    if brush.top > 0:
        brush.band(brush.top, 0.04, (226, 204, 174))
        brush.band(brush.top + 0.04 * brush.unit / brush.height, 0.01, (92, 62, 46))


def bubbles(brush: Brush) -> None:
    """What tells the deep sea from its surface."""
    for _ in range(brush.dice.integer(6, 14)):
        x, y, size = brush.spot()
        radius = brush.dice.uniform(0.008, 0.022) * size
        brush.dot(x, y, radius, (150, 206, 232))
        brush.dot(x, y, radius * 0.7, (96, 164, 208))
        brush.dot(x - radius * 0.3, y - radius * 0.3, radius * 0.25, _WHITE)


DECORATIONS = {
    "night sky": _stars,
    "grass": _tufts,
    "sea": _waves,
    "sand": _pebbles,
    "snow": _drifts,
    "road": _lane_marks,
    "hedge": _blossoms,
    "wooden floor": _skirting,
}


def decorate(canvas: Canvas, surface: str, dice: Dice, top: float, bottom: float) -> None:
    """Decorate a region from `top` to `bottom` (shares of the height) that was just painted with `surface`."""
    if surface in DECORATIONS:
        DECORATIONS[surface](Brush(canvas, dice, top, bottom))
