"""Composition of Toyscapes: which stuff lies where, and which things stand on it.

A share of the things is drawn from all classes whatever the place, every place has its own stuff, and one place is
nothing but a texture with anything on it: no class is implied by another, and none is in every image.
"""

import math
from dataclasses import dataclass

from .canvas import Dice
from .decor import Brush, bubbles
from .scene_vocabulary import CLASS_NAMES, STUFF_NAMES, THING_NAMES
from .stage import SHAPES, Scene


@dataclass(frozen=True)
class Place:
    """A kind of scene: the stuff behind and on the ground (empty = the other fills the frame), and what fits there."""

    name: str
    weight: float
    behind: tuple[str, ...]
    ground: tuple[str, ...]
    horizon: tuple[float, float]
    above: tuple[str, ...]
    standing: tuple[str, ...]


ANY_GROUND = tuple(name for name in STUFF_NAMES if name != "sky")
PLACES = (
    Place("landscape", 20, ("sky",), ("grass", "snow", "wheat field", "sand", "wheat field"), (0.38, 0.62),
          ("sun", "moon", "cloud", "balloon", "kite", "bird"),
          ("house", "tree", "rock", "person", "cat", "mushroom", "tree", "flower")),
    Place("coast", 14, ("sky",), ("sea",), (0.32, 0.52),
          ("sun", "moon", "cloud", "bird", "kite", "balloon"), ("boat", "lighthouse", "rock", "boat")),
    Place("street", 14, ("sky", "brick wall", "hedge", "grass"), ("road",), (0.32, 0.54),
          ("cloud", "kite", "balloon"), ("car", "bus", "person", "tree", "house", "car", "bus", "umbrella")),
    Place("room", 11, ("brick wall",), ("wooden floor",), (0.42, 0.66),
          ("balloon", "kite"), ("cat", "person", "umbrella", "flower", "mushroom", "cat")),
    Place("garden", 11, ("hedge", "brick wall", "wheat field"), ("grass", "sand", "snow"), (0.32, 0.55),
          ("bird", "sun"), ("flower", "cat", "mushroom", "umbrella", "house", "person", "car")),
    Place("underwater", 8, (), ("sea",), (0, 0), ("fish", "fish"), ("rock", "fish", "boat")),
    Place("carpet", 14, (), ANY_GROUND, (0, 0), (), THING_NAMES),
    Place("aerial", 8, ("sky",), (), (1, 1), ("cloud", "balloon", "bird", "kite", "sun", "moon"), ()),
)  # fmt: skip
_PLACE_WEIGHTS = {place: place.weight for place in PLACES}
OUT_OF_CONTEXT = 0.25  # share of things drawn from all classes, whatever the place
_FOAM = (244, 250, 252)


def _skyline(dice: Dice, horizon: float) -> list[tuple[float, float]]:
    """Upper edge of the ground from left to right: sloping or hilly."""
    if dice.chance(0.3):
        tilt = dice.uniform(-0.08, 0.08)
        return [(0, horizon - tilt), (1, horizon + tilt)]
    phase, waves, amplitude = dice.random(), dice.uniform(0.6, 1.6), dice.uniform(0.03, 0.08)
    return [(k / 16, horizon + amplitude * math.sin(2 * math.pi * (phase + waves * k / 16))) for k in range(17)]


def _lay_ground(scene: Scene, place: Place) -> float:
    """Paint the stuff of a place; returns the height of its horizon."""
    dice = scene.dice
    if not place.ground or not place.behind:
        scene.lay_stuff(dice.choice(place.ground or place.behind))
        if place.name == "underwater":
            bubbles(Brush(scene.canvas, dice, 0, 1))
        return 0.0 if place.ground else 1.0
    horizon = dice.uniform(*place.horizon)
    scene.lay_stuff(dice.choice(place.behind), 0, horizon)
    if place.behind == ("sky",):
        _lay_distance(scene, horizon)
    level = place.name in ("coast", "room", "street")
    edge = [(0.0, horizon), (1.0, horizon)] if level else _skyline(dice, horizon)
    scene.lay_stuff(dice.choice(place.ground), horizon, 1, edge)
    if place.name == "landscape":
        _roll_hills(scene, edge, horizon)
    elif place.name == "coast" and dice.chance(0.55):
        _lay_shore(scene)
    return horizon


def _lay_distance(scene: Scene, horizon: float) -> None:
    """Sometimes a mountain range or a hedge between the sky and the ground, which will cover its foot."""
    dice = scene.dice
    if dice.chance(0.3):
        for x in (dice.uniform(0.05, 0.4), dice.uniform(0.6, 0.95))[: dice.integer(1, 2)]:
            scene.put_thing("mountain", x, horizon + 0.07, dice.uniform(0.8, 1.15))
    elif dice.chance(0.18):
        top, bumps = horizon - dice.uniform(0.14, 0.22), dice.integer(3, 5)
        edge = [(k / 24, top + 0.035 * abs(math.cos(math.pi * bumps * k / 24))) for k in range(25)]
        scene.lay_stuff("hedge", top, horizon + 0.1, edge)


def _roll_hills(scene: Scene, edge: list[tuple[float, float]], horizon: float) -> None:
    """Depth: haze on the far slope, and sometimes a road or a foreground of another stuff."""
    dice = scene.dice
    near = _skyline(dice, horizon + (1 - horizon) * dice.uniform(0.25, 0.45))
    scene.canvas.veil([*edge, *reversed(near)], (236, 240, 236), 0.22)
    if dice.chance(0.22):
        far, shift = dice.uniform(0.3, 0.7), dice.uniform(-0.25, 0.25)
        road = [(far - 0.04, horizon + 0.02), (far + 0.04, horizon + 0.02), (far + shift + 0.26, 1), (far + shift - 0.26, 1)]
        scene.lay_patch("road", road)
        for near_end, far_end in ((1.0, 0.82), (0.66, 0.54), (0.42, 0.34), (0.25, 0.2)):
            scene.canvas.veil(_lane_dash(far, shift, horizon + 0.02, near_end, far_end), (250, 246, 230), 0.9)


def _lane_dash(far: float, shift: float, horizon: float, near_end: float, far_end: float) -> list[tuple[float, float]]:
    """One dash of the middle line of a road that narrows towards (far, horizon); ends are shares of its length."""
    ends = [(far + shift * share, horizon + (1 - horizon) * share, 0.018 * share) for share in (near_end, far_end)]
    (x0, y0, half0), (x1, y1, half1) = ends
    return [(x0 - half0, y0), (x0 + half0, y0), (x1 + half1, y1), (x1 - half1, y1)]


def _lay_shore(scene: Scene) -> None:
    """A beach or a bank in front of the sea, with foam at the water's edge."""
    dice = scene.dice
    edge = _skyline(dice, dice.uniform(0.72, 0.84))
    scene.canvas.veil([*((x, y - 0.05) for x, y in edge), (1, 1), (0, 1)], _FOAM, 0.4)
    scene.canvas.veil([*((x, y - 0.022) for x, y in edge), (1, 1), (0, 1)], _FOAM, 0.75)
    scene.lay_stuff(dice.choice(("sand", "sand", "grass", "snow")), edge[0][1], 1, edge)


def _draw_name(scene: Scene, fitting: tuple[str, ...]) -> str:
    dice = scene.dice
    name = dice.choice(THING_NAMES) if not fitting or dice.chance(OUT_OF_CONTEXT) else dice.choice(fitting)
    if scene.time == "night" and name == "sun":
        return "moon"
    return "sun" if scene.time == "day" and name == "moon" and dice.chance(0.5) else name


def _populate(scene: Scene, place: Place, horizon: float) -> None:
    """Two to four things side by side: first those in the air, then those on the ground from far to near."""
    dice = scene.dice
    count = dice.integer(2, 4)
    columns = dice.shuffled([(k + 0.5) / count for k in range(count)])
    above = sum(dice.chance(0.4) for _ in range(count)) if place.above else 0
    above = min(above, count - 1) if place.standing else count
    for x in columns[:above]:
        base = dice.uniform(0.32, max(0.38, horizon * 0.95)) if place.standing else dice.uniform(0.42, 0.95)
        scene.put_thing(_draw_name(scene, place.above), x + dice.uniform(-0.08, 0.08), base, airborne=True)
    low = max(0.45, horizon + 0.08)
    bases = sorted(dice.uniform(low, 0.97) for _ in range(count - above))
    for x, base in zip(columns[above:], bases, strict=True):
        scale = 0.8 + 0.4 * (base - low) / (1 - low)
        scene.put_thing(_draw_name(scene, place.standing), x + dice.uniform(-0.1, 0.1), base, scale)


def compose_scene(height: int, width: int, dice: Dice) -> Scene:
    """An ordinary scene: a place with its stuff and two to four things."""
    time = dice.weighted({"day": 64, "sunset": 14, "night": 22})
    scene = Scene(height, width, dice, time)
    place = dice.weighted(_PLACE_WEIGHTS)
    _populate(scene, place, _lay_ground(scene, place))
    return scene


def compose_closeup(height: int, width: int, dice: Dice) -> Scene:
    """One concept that fills the frame: a stuff class alone, or one thing on any ground."""
    scene = Scene(height, width, dice, dice.weighted({"day": 80, "night": 20}))
    name = dice.choice(CLASS_NAMES)
    scene.lay_stuff(name if name in STUFF_NAMES else dice.choice(STUFF_NAMES))
    if name in THING_NAMES:
        extent = dice.uniform(0.72, 1.0)
        tall = extent / max(1.0, SHAPES[name].aspect[1])
        half = tall * scene.canvas.unit / scene.canvas.size[1] / 2
        scene.put_sized(name, dice.uniform(0.46, 0.54), 0.5 + half + dice.uniform(-0.03, 0.03), tall)
    return scene
