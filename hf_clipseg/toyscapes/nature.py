"""Things of Toyscapes that grow, live, shine or drift. One function draws one thing (see `shapes`)."""

import math

from .canvas import Colour, Dice, Look, Pen, darker, lighter, mix, palette_colour, vary

BARK = (118, 78, 54)
SKIN_TONES = ((250, 214, 178), (226, 176, 132), (172, 118, 82), (112, 74, 56))
HAIR_TONES = ((54, 40, 38), (122, 72, 42), (222, 176, 88), (178, 84, 48), (90, 90, 100))
INK = (40, 36, 52)


def draw_tree(pen: Pen, dice: Dice, colour: Colour) -> Look:
    if dice.chance(0.38):
        _conifer(pen, colour)
        return Look(nouns=("pine", "fir"))
    pen.polygon([(0.4, 1), (0.44, 0.5), (0.56, 0.5), (0.6, 1)], BARK, "trunk")
    pen.polygon([(0.52, 1), (0.52, 0.5), (0.56, 0.5), (0.6, 1)], darker(BARK, 0.3), "trunk")
    blobs = ((0.26, 0.47, 0.25), (0.74, 0.47, 0.25), (0.5, 0.26, 0.26), (0.5, 0.5, 0.24))
    for x, y, r in blobs:
        pen.ellipse(x, y, r, r * 0.95, darker(colour, 0.18), "crown")
    for x, y, r in blobs[:3]:
        pen.ellipse(x - 0.03, y - 0.03, r * 0.82, r * 0.78, colour, "crown")
    for _ in range(5):
        x, y = dice.uniform(0.2, 0.66), dice.uniform(0.16, 0.46)
        pen.ellipse(x, y, 0.08, 0.06, lighter(colour, 0.26), "crown")
    if dice.chance(0.35):
        for _ in range(6):
            pen.disc(dice.uniform(0.16, 0.84), dice.uniform(0.2, 0.6), 0.035, (226, 60, 54), "crown")
    return Look(nouns=("oak",))


def _conifer(pen: Pen, colour: Colour) -> None:
    green = mix(colour, (26, 92, 84), 0.45)
    pen.box(0.42, 0.8, 0.58, 1, BARK, "trunk")
    for bottom, half, top in ((0.86, 0.48, 0.38), (0.62, 0.4, 0.18), (0.4, 0.3, 0.0)):
        pen.polygon([(0.5 - half, bottom), (0.5, top), (0.5 + half, bottom)], green, "crown")
        pen.polygon([(0.5, top), (0.5 + half, bottom), (0.5 + half * 0.3, bottom)], darker(green, 0.25), "crown")
        pen.polygon([(0.5 - half * 0.3, bottom), (0.5, top), (0.5 - half, bottom)], lighter(green, 0.14), "crown")


def draw_flower(pen: Pen, dice: Dice, colour: Colour) -> Look:
    green = vary((72, 150, 74), dice, 16)
    pen.polygon([(0.44, 1), (0.44, 0.4), (0.56, 0.4), (0.56, 1)], green, "stem")
    pen.polygon([(0.5, 0.96), (0.2, 0.84), (0.08, 0.66), (0.34, 0.72)], green, "leaf")
    pen.polygon([(0.5, 0.98), (0.8, 0.88), (0.94, 0.7), (0.66, 0.76)], darker(green, 0.15), "leaf")
    heart = (250, 200, 70) if colour[0] < 245 or colour[1] < 180 else (150, 92, 52)
    count = dice.choice((5, 6, 8))
    turn = dice.uniform(0, 1)
    for k in range(count):
        angle = 2 * math.pi * (k + turn) / count
        x, y = 0.5 + 0.3 * math.cos(angle), 0.32 + 0.2 * math.sin(angle)
        pen.ellipse(x, y, 0.2, 0.125, colour if k % 2 else darker(colour, 0.1), "petal")
    pen.ellipse(0.5, 0.32, 0.17, 0.11, heart, "head")
    pen.ellipse(0.47, 0.3, 0.1, 0.06, lighter(heart, 0.35), "head")
    return Look()


def draw_mushroom(pen: Pen, dice: Dice, colour: Colour) -> Look:
    pen.polygon([(0.36, 0.46), (0.64, 0.46), (0.7, 0.92), (0.62, 1), (0.38, 1), (0.3, 0.92)], (246, 234, 212), "stem")
    pen.polygon([(0.56, 0.46), (0.64, 0.46), (0.7, 0.92), (0.62, 1), (0.54, 1)], (222, 202, 176), "stem")
    pen.ellipse(0.5, 0.52, 0.44, 0.1, (226, 204, 176), "cap")
    pen.half_disc(0.5, 0.52, 0.5, 0.52, colour, "cap")
    pen.half_disc(0.42, 0.3, 0.28, 0.22, lighter(colour, 0.22), "cap")
    if dice.chance(0.75):
        for x, y, r in ((0.3, 0.34, 0.07), (0.55, 0.17, 0.075), (0.74, 0.38, 0.07), (0.5, 0.42, 0.05), (0.13, 0.45, 0.045)):
            pen.ellipse(x, y, r, r * 0.85, (252, 246, 236), "cap")
    return Look()


def draw_sun(pen: Pen, dice: Dice, colour: Colour) -> Look:
    rays = dice.choice((10, 12, 14))
    turn = dice.uniform(0, 1)
    star = []
    for k in range(2 * rays):
        radius = 0.5 if k % 2 else 0.4
        angle = math.pi * (k + turn) / rays
        star.append((0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)))
    pen.polygon(star, mix(colour, (255, 170, 60), 0.35), glow=True)
    pen.disc(0.5, 0.5, 0.37, lighter(colour, 0.1), glow=True)
    pen.disc(0.47, 0.47, 0.29, lighter(colour, 0.45), glow=True)
    return Look()


def draw_moon(pen: Pen, dice: Dice, colour: Colour) -> Look:
    if dice.chance(0.55):
        _crescent(pen, colour)
        return Look(nouns=("crescent",))
    pen.disc(0.5, 0.5, 0.48, colour, glow=True)
    pen.disc(0.45, 0.45, 0.4, lighter(colour, 0.4), glow=True)
    for x, y, r in ((0.36, 0.36, 0.1), (0.62, 0.56, 0.13), (0.36, 0.68, 0.07), (0.66, 0.28, 0.06)):
        pen.disc(x, y, r, darker(colour, 0.13), glow=True)
    return Look(nouns=("full moon",))


def _crescent(pen: Pen, colour: Colour) -> None:
    outer = [(0.5 + 0.5 * math.cos(a), 0.5 + 0.5 * math.sin(a)) for a in _arc(0.22, 1.78, 22)]
    inner = [(0.68 + 0.36 * math.cos(a), 0.5 + 0.36 * math.sin(a)) for a in _arc(1.66, 0.34, 18)]
    pen.polygon(outer + inner, lighter(colour, 0.15), glow=True)
    for x, y, r in ((0.16, 0.42, 0.06), (0.26, 0.68, 0.07)):
        pen.disc(x, y, r, darker(colour, 0.12), glow=True)


def _arc(first: float, last: float, steps: int) -> list[float]:
    """Angles from `first` to `last`, given in units of pi."""
    return [math.pi * (first + (last - first) * k / steps) for k in range(steps + 1)]


def draw_cloud(pen: Pen, dice: Dice, colour: Colour) -> Look:
    shadow = mix(colour, (124, 144, 186), 0.38)
    middle = dice.uniform(0.4, 0.58)
    puffs = ((0.2, 0.66, 0.2, 0.32), (0.8, 0.66, 0.2, 0.32), (middle, 0.46, 0.27, 0.46), (0.62, 0.6, 0.24, 0.38))
    for x, y, rx, ry in puffs:
        pen.ellipse(x, y, rx, ry, shadow)
    pen.round_box(0.04, 0.58, 0.96, 1, 0.2, shadow)
    for x, y, rx, ry in puffs:
        pen.ellipse(x - 0.02, y - 0.06, rx * 0.88, ry * 0.84, colour)
    pen.ellipse(middle - 0.08, 0.3, 0.13, 0.2, lighter(colour, 0.6))
    return Look()


def draw_mountain(pen: Pen, dice: Dice, colour: Colour) -> Look:
    peak, shoulder = dice.uniform(0.38, 0.6), dice.uniform(0.76, 0.86)
    pen.polygon([(shoulder - 0.34, 1), (shoulder, 0.42), (1, 0.84), (1, 1)], darker(colour, 0.25), "body")
    pen.polygon([(0, 1), (peak, 0), (0.94, 1)], colour, "body")
    ridge = [(peak, 0), (0.94, 1), (peak - 0.04, 1), (peak + 0.06, 0.7), (peak - 0.05, 0.45), (peak + 0.03, 0.22)]
    pen.polygon(ridge, darker(colour, 0.28), "body")
    if dice.chance(0.7):
        left, right = peak * 0.68, peak + (0.94 - peak) * 0.32
        pen.polygon(
            [(peak, 0), (right, 0.32), (peak + 0.08, 0.25), (peak + 0.01, 0.38), (peak - 0.06, 0.26), (left, 0.32)],
            (250, 250, 255),
            "peak",
        )
        pen.polygon([(peak, 0), (right, 0.32), (peak + 0.08, 0.25), (peak + 0.03, 0.32)], (206, 218, 238), "peak")
    return Look()


def draw_rock(pen: Pen, dice: Dice, colour: Colour) -> Look:
    left, top, right = dice.uniform(0.18, 0.3), dice.uniform(0, 0.08), dice.uniform(0.62, 0.74)
    outline = [(0, 0.86), (0.05, 0.5), (left, 0.14), (0.5, top), (right, 0.1), (0.94, 0.46), (1, 0.88), (0.9, 1), (0.1, 1)]
    pen.polygon(outline, colour)
    pen.polygon([(left, 0.14), (0.5, top), (right, 0.1), (0.6, 0.36), (0.34, 0.42)], lighter(colour, 0.32))
    pen.polygon([(right, 0.1), (0.94, 0.46), (1, 0.88), (0.9, 1), (0.62, 1), (0.6, 0.36)], darker(colour, 0.25))
    pen.polygon([(0.05, 0.5), (left, 0.14), (0.34, 0.42), (0.28, 1), (0.1, 1), (0, 0.86)], darker(colour, 0.08))
    if dice.chance(0.4):
        pen.polygon([(0.34, 0.42), (0.6, 0.36), (0.56, 0.56), (0.46, 0.5)], (96, 146, 84))
    return Look()


def draw_bird(pen: Pen, dice: Dice, colour: Colour) -> Look:
    belly = lighter(colour, 0.55)
    pen.polygon([(0.26, 0.5), (0.0, 0.3), (0.02, 0.62), (0.2, 0.74)], darker(colour, 0.2), "tail")
    pen.ellipse(0.48, 0.62, 0.32, 0.3, colour, "body")
    pen.ellipse(0.56, 0.72, 0.22, 0.19, belly, "body")
    pen.polygon([(0.88, 0.28), (1.0, 0.38), (0.86, 0.44)], (246, 160, 50), "head")
    pen.ellipse(0.74, 0.36, 0.18, 0.23, colour, "head")
    pen.disc(0.79, 0.32, 0.05, (255, 255, 255), "head")
    pen.disc(0.8, 0.32, 0.032, INK, "head")
    if dice.chance(0.55):
        pen.polygon([(0.3, 0.6), (0.16, 0.04), (0.4, 0.0), (0.62, 0.56)], darker(colour, 0.28), "wing")
        pen.polygon([(0.34, 0.58), (0.3, 0.04), (0.4, 0.0), (0.62, 0.56)], darker(colour, 0.12), "wing")
    else:
        pen.ellipse(0.42, 0.58, 0.22, 0.15, darker(colour, 0.28), "wing")
        pen.ellipse(0.46, 0.54, 0.17, 0.1, darker(colour, 0.12), "wing")
    return Look()


def draw_fish(pen: Pen, dice: Dice, colour: Colour) -> Look:
    fin = palette_colour(dice, ("orange", "yellow", "red", "blue", "white"))[1]
    pen.polygon([(0.3, 0.5), (0.0, 0.1), (0.07, 0.5), (0.0, 0.9)], fin, "tail")
    pen.polygon([(0.36, 0.26), (0.5, 0.0), (0.72, 0.22)], fin, "fin")
    pen.polygon([(0.4, 0.76), (0.46, 1.0), (0.64, 0.8)], fin, "fin")
    pen.ellipse(0.58, 0.5, 0.42, 0.34, colour, "body")
    pen.ellipse(0.6, 0.58, 0.34, 0.22, lighter(colour, 0.4), "body")
    if dice.chance(0.5):
        for x in (0.36, 0.54):
            pen.polygon(
                [(x, 0.22), (x + 0.08, 0.2), (x + 0.1, 0.5), (x + 0.08, 0.8), (x, 0.78), (x + 0.03, 0.5)],
                darker(colour, 0.3),
                "body",
            )
    pen.polygon([(0.56, 0.52), (0.4, 0.64), (0.56, 0.68)], darker(fin, 0.12), "fin")
    pen.disc(0.82, 0.42, 0.09, (255, 255, 255), "head")
    pen.disc(0.835, 0.42, 0.052, INK, "head")
    return Look()


def draw_cat(pen: Pen, dice: Dice, colour: Colour) -> Look:
    """A sitting cat seen from the front."""
    dark, light = darker(colour, 0.22), lighter(colour, 0.6)
    pen.polygon([(0.72, 0.96), (0.95, 0.84), (1.0, 0.58), (0.9, 0.56), (0.84, 0.76), (0.68, 0.86)], dark, "tail")
    pen.ellipse(0.48, 0.74, 0.3, 0.3, colour, "body")
    pen.box(0.24, 0.74, 0.72, 1, colour, "body")
    pen.ellipse(0.48, 0.7, 0.14, 0.18, light, "body")
    for x in (0.36, 0.6):
        pen.round_box(x - 0.1, 0.76, x + 0.1, 1, 0.06, lighter(colour, 0.15), "leg")
    for side in (-1, 1):
        pen.polygon([(0.48 + side * 0.06, 0.14), (0.48 + side * 0.32, 0.0), (0.48 + side * 0.36, 0.28)], colour, "head")
        pen.polygon(
            [(0.48 + side * 0.16, 0.13), (0.48 + side * 0.29, 0.06), (0.48 + side * 0.31, 0.2)], (240, 160, 160), "head"
        )
    pen.ellipse(0.48, 0.32, 0.36, 0.23, colour, "head")
    if dice.chance(0.5):
        for x in (0.38, 0.48, 0.58):
            pen.polygon([(x - 0.025, 0.1), (x + 0.025, 0.1), (x, 0.24)], dark, "head")
    eye = dice.choice(((120, 190, 90), (240, 190, 70), (90, 160, 210)))
    for x in (0.33, 0.63):
        pen.ellipse(x, 0.32, 0.075, 0.055, eye, "head", glow=pen.night)
        pen.ellipse(x, 0.32, 0.03, 0.05, INK, "head")
    pen.ellipse(0.48, 0.43, 0.14, 0.08, light, "head")
    pen.polygon([(0.43, 0.38), (0.53, 0.38), (0.48, 0.425)], (226, 110, 120), "head")
    return Look()


def draw_person(pen: Pen, dice: Dice, colour: Colour) -> Look:
    skin, hair = vary(dice.choice(SKIN_TONES), dice, 8), vary(dice.choice(HAIR_TONES), dice, 8)
    trousers_name, trousers = palette_colour(dice, ("blue", "black", "brown", "grey", "purple"))
    dress = dice.chance(0.4)
    long_hair = dress or dice.chance(0.2)
    if long_hair:
        pen.round_box(0.24, 0.04, 0.76, 0.31, 0.09, hair, "head")
    for side in (-1, 1):
        reach = dice.uniform(0.3, 0.46)
        x = 0.5 + side * reach
        pen.polygon(
            [(0.5 + side * 0.12, 0.36), (0.5 + side * 0.3, 0.36), (x + side * 0.03, 0.62), (x - side * 0.12, 0.64)],
            darker(colour, 0.14),
            "arm",
        )
        pen.disc(x - side * 0.045, 0.64, 0.04, skin, "arm")
        pen.box(0.5 + side * 0.04, 0.62, 0.5 + side * 0.24, 0.95, skin if dress else trousers, "leg")
        pen.round_box(0.5 + side * 0.02, 0.93, 0.5 + side * 0.29, 1, 0.025, INK, "leg")
    if dress:
        pen.polygon([(0.26, 0.35), (0.74, 0.35), (0.68, 0.54), (0.86, 0.82), (0.14, 0.82), (0.32, 0.54)], colour, "body")
    else:
        pen.round_box(0.23, 0.34, 0.77, 0.68, 0.06, colour, "body")
    pen.box(0.42, 0.28, 0.58, 0.37, darker(skin, 0.15), "head")
    pen.disc(0.5, 0.18, 0.135, skin, "head")
    pen.half_disc(0.5, 0.16, 0.34, 0.16, hair, "head")
    for x in (0.4, 0.6):
        pen.disc(x, 0.2, 0.02, INK, "head")
    return Look("in a dress", ("woman",)) if dress else Look(f"in {trousers_name} trousers", ("man", "child"))
