"""Things of Toyscapes that people make: houses, vehicles, toys. One function draws one thing.

Every function takes the pen, the dice and a main colour, draws back to front in the unit square and returns a detail
for the caption ("with a blue roof") or None. Things that grow or live are in `nature`.
"""

import math

from .canvas import Colour, Dice, Look, Pen, darker, lighter, mix, palette_colour
from .scene_vocabulary import with_article

CREAM = (250, 244, 228)
GLASS = (176, 216, 238)
TYRE = (44, 44, 54)
CHROME = (206, 210, 218)
WOOD = (140, 92, 58)


def wheel(pen: Pen, x: float, y: float, radius: float) -> None:
    pen.disc(x, y, radius, TYRE, "wheel")
    pen.disc(x, y, radius * 0.55, CHROME, "wheel")
    pen.disc(x, y, radius * 0.25, (130, 134, 146), "wheel")


def framed_window(pen: Pen, x0: float, y0: float, x1: float, y1: float, frame: Colour = CREAM) -> None:
    """A window with a frame, a cross bar and a gleam."""
    dx, dy = (x1 - x0) * 0.14, (y1 - y0) * 0.14
    glass = pen.window_colour(GLASS)
    pen.box(x0, y0, x1, y1, frame, "window")
    pen.box(x0 + dx, y0 + dy, x1 - dx, y1 - dy, glass, "window", glow=pen.night)
    gleam = [(x0 + dx, y1 - dy), (x0 + dx, (y0 + y1) / 2), ((x0 + x1) / 2, y0 + dy), (x1 - dx, y0 + dy)]
    pen.polygon(gleam, lighter(glass, 0.35), "window", glow=pen.night)
    pen.box((x0 + x1 - dx) / 2, y0, (x0 + x1 + dx) / 2, y1, frame, "window")


def draw_house(pen: Pen, dice: Dice, colour: Colour) -> Look:
    roof_name, roof = palette_colour(dice, ("red", "brown", "blue", "green", "grey", "purple"))
    eaves = dice.uniform(0.40, 0.48)
    if dice.chance(0.6):
        side = dice.choice((0.18, 0.72))
        pen.box(side, 0.06, side + 0.12, 0.4, darker(roof, 0.35), "chimney")
        pen.box(side - 0.02, 0.04, side + 0.14, 0.1, darker(roof, 0.5), "chimney")
    pen.box(0.07, eaves - 0.02, 0.93, 1, colour, "wall")
    pen.box(0.07, 0.94, 0.93, 1, darker(colour, 0.3), "wall")
    if dice.chance(0.5):
        _gable_roof(pen, roof, eaves)
    else:
        _hipped_roof(pen, roof, eaves)
    pen.polygon([(0.07, eaves), (0.93, eaves), (0.93, eaves + 0.06), (0.07, eaves + 0.06)], darker(colour, 0.22), "wall")
    _, door = palette_colour(dice, ("brown", "red", "teal", "blue", "green"))
    middle = dice.choice((0.27, 0.5, 0.73))
    pen.box(middle - 0.10, 0.64, middle + 0.10, 1, CREAM, "door")
    pen.box(middle - 0.08, 0.66, middle + 0.08, 1, darker(door, 0.1), "door")
    pen.disc(middle + 0.05, 0.84, 0.018, (250, 220, 120), "door")
    for x in (0.27, 0.5, 0.73):
        if abs(x - middle) > 0.2:
            framed_window(pen, x - 0.095, 0.6, x + 0.095, 0.82)
    return Look(f"with {with_article(roof_name)} roof")


def _gable_roof(pen: Pen, roof: Colour, eaves: float) -> None:
    pen.polygon([(0, eaves), (0.5, 0), (1, eaves)], roof, "roof")
    pen.polygon([(0.5, 0), (1, eaves), (0.88, eaves), (0.5, 0.1)], darker(roof, 0.25), "roof")
    pen.disc(0.5, eaves * 0.66, 0.06, CREAM, "window")
    pen.disc(0.5, eaves * 0.66, 0.042, pen.window_colour(GLASS), "window", glow=pen.night)


def _hipped_roof(pen: Pen, roof: Colour, eaves: float) -> None:
    top = 0.12
    pen.polygon([(0, eaves), (0.18, top), (0.82, top), (1, eaves)], roof, "roof")
    for share in (0.33, 0.66):
        y = top + (eaves - top) * share
        inset = 0.18 * (1 - share)
        pen.box(inset, y - 0.012, 1 - inset, y + 0.012, darker(roof, 0.2), "roof")
    pen.polygon([(0.18, top), (0.82, top), (0.84, top + 0.04), (0.16, top + 0.04)], lighter(roof, 0.25), "roof")


def draw_lighthouse(pen: Pen, dice: Dice, colour: Colour) -> Look:
    def width_at(y: float) -> float:
        return 0.23 + 0.13 * (y - 0.3) / 0.7

    pen.polygon([(0.27, 0.3), (0.73, 0.3), (0.86, 1), (0.14, 1)], CREAM, "tower")
    bands = dice.choice((2, 3))
    for band in range(bands):
        y0 = 0.36 + band * 0.62 / bands
        y1 = y0 + 0.31 / bands
        pen.polygon(
            [(0.5 - width_at(y0), y0), (0.5 + width_at(y0), y0), (0.5 + width_at(y1), y1), (0.5 - width_at(y1), y1)],
            colour,
            "tower",
        )
    pen.round_box(0.4, 0.84, 0.6, 1.02, 0.06, darker(colour, 0.5), "door")
    pen.box(0.43, 0.5, 0.57, 0.6, pen.window_colour(darker(GLASS, 0.5)), "window", glow=pen.night)
    pen.box(0.3, 0.14, 0.7, 0.27, (255, 236, 150), "lantern", glow=pen.night)
    for x in (0.3, 0.46, 0.62):
        pen.box(x, 0.14, x + 0.08, 0.27, darker(CHROME, 0.4), "lantern")
    pen.box(0.16, 0.26, 0.84, 0.31, darker(colour, 0.45), "tower")
    pen.half_disc(0.5, 0.15, 0.3, 0.13, colour, "roof")
    pen.disc(0.5, 0.025, 0.025, darker(colour, 0.3), "roof")
    return Look()


def draw_car(pen: Pen, dice: Dice, colour: Colour) -> Look:
    dark = darker(colour, 0.22)
    cabin = dice.choice(((0.14, 0.28, 0.68, 0.84), (0.06, 0.16, 0.70, 0.86), (0.22, 0.36, 0.62, 0.76)))
    x0, x1, x2, x3 = cabin
    pen.polygon([(x0, 0.5), (x1, 0.08), (x1 + 0.05, 0.02), (x2 - 0.04, 0.02), (x2, 0.08), (x3, 0.5)], colour, "roof")
    glass = pen.window_colour(GLASS)
    middle = (x1 + x2) / 2
    pen.polygon([(x0 + 0.055, 0.48), (x1 + 0.035, 0.13), (middle - 0.02, 0.13), (middle - 0.02, 0.48)], glass, "window")
    pen.polygon([(middle + 0.02, 0.48), (middle + 0.02, 0.13), (x2 - 0.02, 0.13), (x3 - 0.055, 0.48)], glass, "window")
    pen.polygon([(x1 + 0.06, 0.13), (x1 + 0.13, 0.13), (x0 + 0.14, 0.48), (x0 + 0.07, 0.48)], lighter(glass), "window")
    pen.round_box(0.0, 0.44, 1.0, 0.86, 0.15, colour, "body")
    pen.round_box(0.0, 0.68, 1.0, 0.86, 0.08, dark, "body")
    pen.box(middle - 0.008, 0.48, middle + 0.008, 0.74, dark, "door")
    pen.box(middle + 0.04, 0.55, middle + 0.1, 0.585, dark, "door")
    pen.ellipse(0.965, 0.56, 0.035, 0.07, (255, 238, 170), "body", glow=pen.night)
    pen.ellipse(0.03, 0.56, 0.03, 0.06, (226, 70, 60), "body")
    for x in (0.22, 0.78):
        pen.disc(x, 0.79, 0.235, darker(dark, 0.45), "body")
        wheel(pen, x, 0.8, 0.2)
    return Look()


def draw_bus(pen: Pen, dice: Dice, colour: Colour) -> Look:
    pen.round_box(0, 0, 1, 0.86, 0.1, colour, "body")
    pen.round_box(0.03, 0, 0.97, 0.1, 0.05, lighter(colour, 0.45), "roof")
    stripe = dice.choice((CREAM, darker(colour, 0.35), (250, 210, 90)))
    pen.box(0, 0.58, 1, 0.66, stripe, "body")
    glass = pen.window_colour(GLASS)
    count = dice.choice((3, 4))
    step = 0.74 / count
    for k in range(count):
        left = 0.05 + k * step
        pen.box(left, 0.16, left + step * 0.84, 0.5, glass, "window", glow=pen.night)
        gleam = [(left, 0.5), (left, 0.3), (left + step * 0.5, 0.16), (left + step * 0.8, 0.16)]
        pen.polygon(gleam, lighter(glass, 0.4), "window", glow=pen.night)
    pen.box(0.81, 0.16, 0.94, 0.82, darker(colour, 0.4), "door")
    pen.box(0.825, 0.19, 0.925, 0.76, glass, "door", glow=pen.night)
    pen.ellipse(0.985, 0.74, 0.02, 0.05, (255, 238, 170), "body", glow=pen.night)
    for x in (0.22, 0.70):
        pen.disc(x, 0.84, 0.18, darker(colour, 0.6), "body")
        wheel(pen, x, 0.845, 0.15)
    return Look()


def draw_boat(pen: Pen, dice: Dice, colour: Colour) -> Look:
    if dice.chance(0.65):
        sail_name, sail = palette_colour(dice, ("white", "white", "red", "yellow", "orange", "blue", "teal"))
        _sails(pen, sail)
        look = Look(f"with {with_article(sail_name)} sail")
    else:
        _cabin(pen, dice, colour)
        look = Look()
    pen.polygon([(0, 0.72), (1, 0.72), (0.84, 1), (0.16, 1)], colour, "hull")
    pen.polygon([(0, 0.72), (1, 0.72), (0.97, 0.78), (0.03, 0.78)], CREAM, "hull")
    pen.polygon([(0.09, 0.9), (0.91, 0.9), (0.84, 1), (0.16, 1)], darker(colour, 0.35), "hull")
    return look


def _sails(pen: Pen, sail: Colour) -> None:
    pen.box(0.475, 0, 0.525, 0.73, WOOD)
    curve = [(0.54, 0.03), (0.72, 0.22), (0.84, 0.44), (0.9, 0.64), (0.54, 0.64)]
    pen.polygon(curve, sail, "sail")
    pen.polygon([(0.54, 0.45), (0.84, 0.45), (0.9, 0.64), (0.54, 0.64)], darker(sail, 0.14), "sail")
    pen.polygon([(0.46, 0.1), (0.46, 0.64), (0.1, 0.64), (0.2, 0.46)], lighter(darker(sail, 0.1), 0.3), "sail")


def _cabin(pen: Pen, dice: Dice, colour: Colour) -> None:
    _, funnel = palette_colour(dice, ("red", "orange", "yellow", "blue"))
    pen.box(0.38, 0.1, 0.58, 0.42, funnel, "chimney")
    pen.box(0.38, 0.1, 0.58, 0.18, darker(funnel, 0.6), "chimney")
    pen.round_box(0.2, 0.38, 0.8, 0.76, 0.06, CREAM, "body")
    pen.round_box(0.16, 0.36, 0.84, 0.44, 0.03, mix(colour, CREAM, 0.4), "roof")
    for x in (0.33, 0.5, 0.67):
        pen.disc(x, 0.57, 0.065, darker(CHROME, 0.3), "window")
        pen.disc(x, 0.57, 0.045, pen.window_colour(GLASS), "window", glow=pen.night)


def draw_balloon(pen: Pen, dice: Dice, colour: Colour) -> Look:
    """A hot-air balloon."""
    _other_name, other = palette_colour(dice, ("white", "yellow", "orange", "red", "teal", "blue"))
    ropes = [(0.26, 0.62), (0.36, 0.86), (0.64, 0.86), (0.74, 0.62)]
    pen.polygon(ropes, mix(WOOD, CREAM, 0.45))
    outline = _balloon_outline(1.0)
    pen.polygon(outline, colour, "envelope", glow=pen.night)
    for share, tint in ((0.72, other), (0.34, colour)):
        pen.polygon(_balloon_outline(share), tint, "envelope", glow=pen.night)
    pen.polygon(_balloon_outline(0.1), lighter(colour, 0.2), "envelope", glow=pen.night)
    pen.ellipse(0.3, 0.22, 0.07, 0.1, lighter(colour, 0.5), "envelope", glow=pen.night)
    pen.round_box(0.34, 0.84, 0.66, 1, 0.03, WOOD, "basket")
    pen.box(0.32, 0.84, 0.68, 0.88, lighter(WOOD, 0.35), "basket")
    return Look()


def _balloon_outline(width: float):
    """Drop shape around x = 0.5 whose width is a share of the full one: the gores of the envelope."""
    top = [(0.5 + 0.5 * width * math.cos(a), 0.38 + 0.38 * math.sin(a)) for a in _UPPER]
    return [*top, (0.5 + 0.42 * width, 0.56), (0.5 + 0.2 * width, 0.76), (0.5 - 0.2 * width, 0.76), (0.5 - 0.42 * width, 0.56)]


_UPPER = tuple(math.pi + math.pi * k / 14 for k in range(15))


def draw_kite(pen: Pen, dice: Dice, colour: Colour) -> Look:
    other = palette_colour(dice, ("yellow", "white", "teal", "pink", "orange"))[1]
    tail = [(0.46, 0.7), (0.54, 0.7), (0.66, 0.84), (0.46, 0.93), (0.52, 1.0), (0.38, 1.0), (0.34, 0.92), (0.54, 0.83)]
    pen.polygon(tail, darker(other, 0.15), "tail")
    top, right, bottom, left, middle = (0.5, 0.0), (1.0, 0.3), (0.5, 0.76), (0.0, 0.3), (0.5, 0.3)
    pen.polygon([top, right, middle], colour, "body")
    pen.polygon([top, left, middle], other, "body")
    pen.polygon([left, middle, bottom], darker(colour, 0.12), "body")
    pen.polygon([right, middle, bottom], darker(other, 0.12), "body")
    for x, y in ((0.42, 0.85), (0.6, 0.93)):
        pen.polygon([(x - 0.16, y - 0.05), (x - 0.16, y + 0.05), (x + 0.16, y - 0.05), (x + 0.16, y + 0.05)], colour, "tail")
    return Look()


def draw_umbrella(pen: Pen, dice: Dice, colour: Colour) -> Look:
    other = lighter(colour, 0.75) if dice.chance(0.5) else darker(colour, 0.18)
    pen.box(0.465, 0.02, 0.535, 0.94, WOOD, "handle")
    pen.disc(0.44, 0.92, 0.08, WOOD, "handle")
    pen.half_disc(0.5, 0.56, 0.5, 0.54, colour, "canopy")
    pen.half_disc(0.5, 0.56, 0.29, 0.54, other, "canopy")
    pen.half_disc(0.5, 0.56, 0.11, 0.54, colour, "canopy")
    for x, rx, tint in (
        (0.105, 0.105, colour),
        (0.3, 0.09, other),
        (0.5, 0.11, colour),
        (0.7, 0.09, other),
        (0.895, 0.105, colour),
    ):
        pen.ellipse(x, 0.56, rx, 0.055, tint, "canopy")
    return Look()
