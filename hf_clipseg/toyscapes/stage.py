"""The stage of Toyscapes: how each thing class is drawn, and a `Scene` that lays stuff and puts things on a canvas.

A scene records a `Placed` for every instance, from which the masks get their class ids and the captions their words.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import nature as nature
from . import shapes as made
from .canvas import Canvas, Dice, Pen, palette_colour
from .decor import decorate
from .scene_vocabulary import STUFF_NAMES
from .textures import paint_surface

_SHADOW = (18, 22, 48)
_HALO = (255, 240, 200)


@dataclass(frozen=True)
class Shape:
    """How a thing class is drawn: width over height, height in short sides, colours, and how far it may tilt."""

    draw: Callable
    aspect: tuple[float, float]
    height: tuple[float, float]
    colours: tuple[str, ...]
    tilt: float = 0.0
    named_colour: bool = True


VIVID = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "white")
SHAPES = {
    "house": Shape(made.draw_house, (0.95, 1.3), (0.36, 0.52), ("white", "yellow", "pink", "orange", "teal", "grey")),
    "lighthouse": Shape(made.draw_lighthouse, (0.42, 0.52), (0.55, 0.78), ("red", "blue", "black", "orange", "teal")),
    "tree": Shape(nature.draw_tree, (0.7, 0.9), (0.42, 0.66), ("green", "green", "teal", "orange", "pink", "yellow")),
    "flower": Shape(nature.draw_flower, (0.62, 0.72), (0.38, 0.6), VIVID),
    "mushroom": Shape(nature.draw_mushroom, (0.9, 1.15), (0.3, 0.46), ("red", "orange", "brown", "purple", "white")),
    "umbrella": Shape(made.draw_umbrella, (1.0, 1.2), (0.34, 0.5), VIVID, tilt=0.35),
    "car": Shape(made.draw_car, (1.8, 2.2), (0.22, 0.32), (*VIVID, "black", "grey")),
    "bus": Shape(made.draw_bus, (1.75, 2.2), (0.27, 0.36), VIVID),
    "boat": Shape(made.draw_boat, (0.95, 1.2), (0.34, 0.52), (*VIVID, "brown", "black"), tilt=0.08),
    "sun": Shape(nature.draw_sun, (1, 1), (0.26, 0.42), ("yellow", "orange"), named_colour=False),
    "moon": Shape(nature.draw_moon, (1, 1), (0.24, 0.38), ("white", "yellow"), tilt=0.6, named_colour=False),
    "cloud": Shape(nature.draw_cloud, (1.7, 2.2), (0.2, 0.3), ("white", "white", "grey", "pink")),
    "mountain": Shape(nature.draw_mountain, (1.2, 1.8), (0.38, 0.58), ("grey", "blue", "brown", "purple", "green")),
    "rock": Shape(nature.draw_rock, (1.2, 1.7), (0.2, 0.36), ("grey", "brown", "black", "grey")),
    "balloon": Shape(made.draw_balloon, (0.64, 0.72), (0.4, 0.6), VIVID, tilt=0.1),
    "kite": Shape(made.draw_kite, (0.6, 0.75), (0.4, 0.6), VIVID, tilt=0.5),
    "bird": Shape(nature.draw_bird, (1.15, 1.4), (0.24, 0.38), (*VIVID, "brown", "black"), tilt=0.2),
    "fish": Shape(nature.draw_fish, (1.5, 1.8), (0.22, 0.34), (*VIVID, "grey"), tilt=0.25),
    "cat": Shape(nature.draw_cat, (0.66, 0.78), (0.38, 0.56), ("grey", "orange", "black", "white", "brown")),
    "person": Shape(nature.draw_person, (0.42, 0.5), (0.48, 0.7), VIVID),
}


@dataclass
class Placed:
    """One instance of a scene: its class, words for the caption, where it stands and how much of it is visible.

    `ground` is the stuff under (or, airborne, behind) it; `nouns` replaces the synonyms of its class where the variant
    that was drawn has its own (a full moon is no crescent); `area` is a share of the image.
    """

    class_name: str
    colour: str | None = None
    detail: str | None = None
    airborne: bool = False
    ground: str | None = None
    nouns: tuple[str, ...] = ()
    area: float = 0.0


class Scene:
    """A scene in the making: the canvas, the instances painted so far, the time of day and the dice."""

    def __init__(self, height: int, width: int, dice: Dice, time: str):
        self.canvas = Canvas(height, width, time)
        self.dice, self.time = dice, time
        self.placed: list[Placed] = []

    def add(self, placed: Placed) -> int:
        """Register an instance; its id is the level it is painted with in the instance plane."""
        self.placed.append(placed)
        return len(self.placed) - 1

    def lay_stuff(self, name: str, top: float = 0.0, bottom: float = 1.0, edge=None) -> None:
        """Fill the picture with stuff whose shading runs from `top` to `bottom`, below the line `edge` where given."""
        surface = f"{self.time} sky" if name == "sky" and self.time != "day" else name
        points = [*edge, (1, bottom), (0, bottom)] if edge else None
        self._paint(surface, name, top, bottom, points)
        decorate(self.canvas, surface, self.dice, max(y for _, y in edge) if edge else top, bottom)

    def lay_patch(self, name: str, points) -> None:
        """Fill the polygon `points` with plain stuff."""
        self._paint(name, name, 0.0, 1.0, points)

    def _paint(self, surface: str, name: str, top: float, bottom: float, points) -> None:
        texture, adjective = paint_surface(self.canvas, surface, self.dice, top, bottom)
        self.canvas.fill(texture, points, self.add(Placed(name, adjective)))

    def put_thing(self, name: str, x: float, base: float, scale: float = 1.0, airborne: bool = False) -> None:
        """Draw a thing of its usual height times `scale`, its middle at `x` and its lowest point at height `base`."""
        height = self.dice.uniform(*SHAPES[name].height) * scale
        self.put_sized(name, x, base, height, airborne)

    def put_sized(self, name: str, x: float, base: float, height: float, airborne: bool = False) -> None:
        """Draw a thing that is `height` short sides tall."""
        dice, shape, canvas = self.dice, SHAPES[name], self.canvas
        colour_name, colour = palette_colour(dice, shape.colours)
        width = height * dice.uniform(*shape.aspect)
        angle = dice.uniform(-shape.tilt, shape.tilt) if shape.tilt and dice.chance(0.6) else 0.0
        pen = Pen(width * canvas.unit, height * canvas.unit, dice.chance(0.5), angle, canvas.night)
        look = shape.draw(pen, dice, colour)
        middle = base - height * canvas.unit / canvas.size[1] / 2
        ground = self._stuff_at(x, middle if airborne else base)
        if name in ("sun", "moon"):
            canvas.soft_spot(x, middle, width * 1.7, height * 1.7, _HALO, 0.45)
        elif not airborne and name != "mountain" and ground != "sky":
            canvas.soft_spot(x, base, width * 1.05, 0.07, _SHADOW, 0.5)
        named = colour_name if shape.named_colour else None
        canvas.stamp(pen, x, middle, self.add(Placed(name, named, look.detail, airborne, ground, look.nouns)))

    def _stuff_at(self, x: float, y: float) -> str | None:
        """The stuff class at a point, or None where a thing is."""
        width, height = self.canvas.size
        point = (min(max(int(x * width), 0), width - 1), min(max(int(y * height), 0), height - 1))
        instance: Any = self.canvas.instances.getpixel(point)
        name = self.placed[instance].class_name
        return name if name in STUFF_NAMES else None
