"""Composition of Toyscapes: which stuff lies where, which things stand on it, day, sunset and night.

`compose` draws one scene and returns its planes together with a `Placed` record of every instance, from which the
caption module writes sentences. A share of the things is drawn from all classes whatever the place, and every place
has its own stuff, so that no class is implied by another.
"""

import math
from dataclasses import dataclass

import numpy as np

from . import toyscapes_nature as nature
from . import toyscapes_shapes as made
from .toyscapes_canvas import Canvas, Dice, Pen, palette_colour
from .toyscapes_captions import visible_classes, write_caption, write_closeup_caption
from .toyscapes_textures import paint_surface
from .toyscapes_vocabulary import CLASS_IDS, CLASS_NAMES, STUFF_NAMES, THING_NAMES


@dataclass(frozen=True)
class Shape:
    """How a thing class is drawn: width over height, height in short sides, colours, and how far it may tilt."""

    draw: callable
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
    "car": Shape(made.draw_car, (1.8, 2.2), (0.22, 0.32), VIVID + ("black", "grey")),
    "bus": Shape(made.draw_bus, (1.75, 2.2), (0.27, 0.36), VIVID),
    "boat": Shape(made.draw_boat, (0.95, 1.2), (0.34, 0.52), VIVID + ("brown", "black"), tilt=0.08),
    "sun": Shape(nature.draw_sun, (1, 1), (0.26, 0.42), ("yellow", "orange"), named_colour=False),
    "moon": Shape(nature.draw_moon, (1, 1), (0.24, 0.38), ("white", "yellow"), tilt=0.6, named_colour=False),
    "cloud": Shape(nature.draw_cloud, (1.7, 2.2), (0.2, 0.3), ("white", "white", "grey", "pink")),
    "mountain": Shape(nature.draw_mountain, (1.2, 1.8), (0.38, 0.58), ("grey", "blue", "brown", "purple", "green")),
    "rock": Shape(nature.draw_rock, (1.2, 1.7), (0.2, 0.36), ("grey", "brown", "black", "grey")),
    "balloon": Shape(made.draw_balloon, (0.64, 0.72), (0.4, 0.6), VIVID, tilt=0.1),
    "kite": Shape(made.draw_kite, (0.6, 0.75), (0.4, 0.6), VIVID, tilt=0.5),
    "bird": Shape(nature.draw_bird, (1.15, 1.4), (0.24, 0.38), VIVID + ("brown", "black"), tilt=0.2),
    "fish": Shape(nature.draw_fish, (1.5, 1.8), (0.22, 0.34), VIVID + ("grey",), tilt=0.25),
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


@dataclass(frozen=True)
class Place:
    """A kind of scene. `ground` and `behind` are the stuff choices (empty = the other one fills the frame)."""

    name: str
    weight: float
    behind: tuple[str, ...]
    ground: tuple[str, ...]
    horizon: tuple[float, float]
    above: tuple[str, ...]
    standing: tuple[str, ...]


GROUND_STUFF = tuple(name for name in STUFF_NAMES if name not in ("sky", "hedge", "brick wall"))
PLACES = (
    Place("landscape", 20, ("sky",), ("grass", "snow", "wheat field", "sand"), (0.34, 0.6),
          ("sun", "moon", "cloud", "balloon", "kite", "bird"),
          ("mountain", "house", "tree", "rock", "person", "cat", "mushroom", "flower")),
    Place("coast", 15, ("sky",), ("sea",), (0.3, 0.55),
          ("sun", "moon", "cloud", "bird", "kite", "balloon"), ("boat", "lighthouse", "rock", "boat", "mountain")),
    Place("street", 14, ("sky", "brick wall", "hedge", "grass"), ("road",), (0.3, 0.56),
          ("cloud", "kite", "balloon"), ("car", "bus", "person", "tree", "house", "car", "bus", "umbrella")),
    Place("room", 12, ("brick wall", "brick wall", "hedge"), ("wooden floor",), (0.4, 0.66),
          ("balloon", "bird"), ("cat", "person", "umbrella", "flower", "mushroom")),
    Place("garden", 10, ("hedge", "brick wall", "wheat field"), ("grass", "sand", "snow"), (0.3, 0.55),
          ("bird", "kite"), ("flower", "cat", "mushroom", "umbrella", "house", "person", "rock")),
    Place("underwater", 9, (), ("sea",), (0, 0), ("fish", "fish"), ("rock", "fish", "boat")),
    Place("carpet", 12, (), GROUND_STUFF + ("hedge", "brick wall"), (0, 0), (), THING_NAMES),
    Place("aerial", 8, ("sky",), (), (1, 1), ("cloud", "balloon", "bird", "kite", "sun", "moon"), ()),
)  # fmt: skip
_PLACE_WEIGHTS = {place: place.weight for place in PLACES}
OUT_OF_CONTEXT = 0.22  # share of things drawn from all classes, whatever the place
SPLITS = ("train", "validation", "test")
MIN_SIZE = 16
_SHADOW = (18, 22, 48)


class Scene:
    """A scene in the making: the canvas, the instances painted so far, the time of day and the dice."""

    def __init__(self, height: int, width: int, dice: Dice, time: str):
        self.canvas = Canvas(height, width, night=time == "night")
        self.dice, self.time = dice, time
        self.placed: list[Placed] = []

    def add(self, placed: Placed) -> int:
        """Register an instance; its id is the level it is painted with in the instance plane."""
        self.placed.append(placed)
        return len(self.placed) - 1

    def lay_stuff(self, name: str, top: float, bottom: float, points=None) -> None:
        """Fill the polygon `points` (None = everything) with stuff whose shading runs from `top` to `bottom`."""
        surface = f"{self.time} sky" if name == "sky" and self.time != "day" else name
        texture, adjective = paint_surface(self.canvas, surface, self.dice, top, bottom)
        self.canvas.fill(texture, points, self.add(Placed(name, adjective)))

    def put_thing(self, name: str, x: float, base: float, scale: float = 1.0, airborne: bool = False) -> None:
        """Draw a thing whose lowest point is at height `base` and whose middle is at `x`."""
        dice, shape, canvas = self.dice, SHAPES[name], self.canvas
        colour_name, colour = palette_colour(dice, shape.colours)
        height = dice.uniform(*shape.height) * scale
        width = height * dice.uniform(*shape.aspect)
        angle = dice.uniform(-shape.tilt, shape.tilt) if shape.tilt and dice.chance(0.6) else 0.0
        pen = Pen(width * canvas.unit, height * canvas.unit, dice.chance(0.5), angle, canvas.night)
        look = shape.draw(pen, dice, colour)
        middle = base - height * canvas.unit / canvas.size[1] / 2
        self._light(name, x, middle, base, width, height, airborne)
        ground = self._stuff_at(x, middle if airborne else base)
        named = colour_name if shape.named_colour else None
        canvas.stamp(pen, x, middle, self.add(Placed(name, named, look.detail, airborne, ground, look.nouns)))

    def _stuff_at(self, x: float, y: float) -> str | None:
        """The stuff class at a point, or None where a thing is."""
        width, height = self.canvas.size
        point = (min(max(int(x * width), 0), width - 1), min(max(int(y * height), 0), height - 1))
        name = self.placed[self.canvas.instances.getpixel(point)].class_name
        return name if name in STUFF_NAMES else None

    def _light(self, name: str, x: float, middle: float, base: float, width: float, height: float, airborne: bool):
        """A halo around sun and moon, a contact shadow under what stands."""
        if name in ("sun", "moon"):
            self.canvas.soft_spot(x, middle, width * 1.7, height * 1.7, (255, 240, 200), 0.45)
        elif not airborne and name != "mountain":
            self.canvas.soft_spot(x, base, width * 1.05, 0.07, _SHADOW, 0.5)


def _skyline(dice: Dice, horizon: float) -> list[tuple[float, float]]:
    """Upper edge of the ground from left to right: flat, sloping or hilly."""
    style = dice.choice(("flat", "slope", "hills"))
    if style == "flat":
        return [(0, horizon), (1, horizon)]
    if style == "slope":
        tilt = dice.uniform(-0.08, 0.08)
        return [(0, horizon - tilt), (1, horizon + tilt)]
    phase, waves, amplitude = dice.random(), dice.uniform(0.6, 1.6), dice.uniform(0.03, 0.07)
    return [(k / 16, horizon + amplitude * math.sin(2 * math.pi * (phase + waves * k / 16))) for k in range(17)]


def _lay_ground(scene: Scene, place: Place) -> float:
    """Paint the stuff of a place; returns the height of its horizon."""
    dice = scene.dice
    if not place.ground or not place.behind:
        scene.lay_stuff(dice.choice(place.ground or place.behind), 0, 1)
        return 0.0 if place.ground else 1.0
    horizon = dice.uniform(*place.horizon)
    scene.lay_stuff(dice.choice(place.behind), 0, horizon)
    edge = [(0, horizon), (1, horizon)] if place.name in ("coast", "room") else _skyline(dice, horizon)
    scene.lay_stuff(dice.choice(place.ground), horizon, 1, [*edge, (1, 1), (0, 1)])
    return horizon


def _draw_name(dice: Dice, fitting: tuple[str, ...]) -> str:
    return dice.choice(THING_NAMES) if not fitting or dice.chance(OUT_OF_CONTEXT) else dice.choice(fitting)


def _populate(scene: Scene, place: Place, horizon: float) -> None:
    dice = scene.dice
    count = dice.integer(2, 4)
    slots = dice.shuffled([(k + 0.5) / count for k in range(count)])
    above = sum(dice.chance(0.45) for _ in range(count)) if place.above else 0
    above = count if not place.standing else min(above, count - 1)
    for k in range(above):
        bottom = max(0.38, horizon * 0.95)
        base = dice.uniform(0.3, bottom) if place.standing else dice.uniform(0.4, 0.95)
        scene.put_thing(_draw_name(dice, place.above), slots[k] + dice.uniform(-0.08, 0.08), base, airborne=True)
    low = max(0.45, horizon + 0.08)
    for k, base in zip(range(above, count), sorted(dice.uniform(low, 0.97) for _ in range(count - above)), strict=True):
        scale = 0.75 + 0.4 * (base - low) / (1 - low)
        scene.put_thing(_draw_name(dice, place.standing), slots[k] + dice.uniform(-0.1, 0.1), base, scale)


def compose_scene(height: int, width: int, dice: Dice) -> Scene:
    """An ordinary scene: a place with its stuff and two to four things."""
    time = dice.weighted({"day": 62, "sunset": 14, "night": 24})
    scene = Scene(height, width, dice, time)
    place = dice.weighted(_PLACE_WEIGHTS)
    _populate(scene, place, _lay_ground(scene, place))
    return scene


def compose_closeup(height: int, width: int, dice: Dice) -> Scene:
    """One concept that fills the frame: a stuff class alone, or one thing on any ground."""
    scene = Scene(height, width, dice, dice.weighted({"day": 80, "night": 20}))
    name = dice.choice(CLASS_NAMES)
    scene.lay_stuff(name if name in STUFF_NAMES else dice.choice(STUFF_NAMES), 0, 1)
    if name in THING_NAMES:
        shape = SHAPES[name]
        tallest = dice.uniform(0.75, 0.98) / max(shape.height[1], shape.height[1] * shape.aspect[1])
        scene.put_thing(name, dice.uniform(0.45, 0.55), dice.uniform(0.9, 0.98), tallest)
    return scene


@dataclass(frozen=True)
class ToyScene:
    """One sample. `image` (height, width, 3), `mask` (class ids) and `part_mask` (0 = no part) (height, width), uint8;
    `image_labels` the sorted ids of the classes that are visible; `caption` a sentence; `key` unique per sample."""

    image: np.ndarray
    mask: np.ndarray
    part_mask: np.ndarray
    image_labels: tuple[int, ...]
    caption: str
    key: str


def check_request(seed: int, split: str, height: int, width: int, omission_rate: float) -> None:
    """Raise ValueError for what cannot be drawn."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    if min(height, width) < MIN_SIZE:
        raise ValueError(f"height and width must be at least {MIN_SIZE} pixels, got {height} x {width}")
    if not 0 <= omission_rate <= 1:
        raise ValueError(f"omission_rate must be between 0 and 1, got {omission_rate}")


def render(
    seed: int,
    index: int,
    height: int,
    width: int,
    split: str = "train",
    closeup: bool = False,
    omission_rate: float = 0.5,
) -> ToyScene:
    """Draw scene `index` of a split. The same arguments give the same scene on every machine, in any order.

    Args:
        seed, index: which scene; 0 or more.
        height, width: pixels, 16 or more each. The same scene is drawn at every size.
        split: "train", "validation" or "test"; the splits share no random stream.
        closeup: one concept fills the frame instead of an ordinary scene.
        omission_rate: probability with which the caption leaves out each visible concept (never all of them).

    Raises:
        ValueError: unknown split, negative seed or index, size below 16, omission_rate outside [0, 1].
    """
    check_request(seed, split, height, width, omission_rate)
    if index < 0:
        raise ValueError(f"index must be 0 or more, got {index}")
    stream = (SPLITS.index(split), index, int(closeup))
    scene = (compose_closeup if closeup else compose_scene)(height, width, Dice(seed, *stream, 0))
    image, mask, part_mask = _finish(scene)
    words = Dice(seed, *stream, 1)  # a stream of its own: the omission rate does not change the picture
    if closeup:
        caption = write_closeup_caption(scene.placed, words)
    else:
        caption = write_caption(scene.placed, scene.time, omission_rate, words)
    labels = tuple(sorted(CLASS_IDS[name] for name in visible_classes(scene.placed)))
    return ToyScene(image, mask, part_mask, labels, caption, f"toyscapes-{seed}-{split}-{index:08d}")


def _finish(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picture, class mask and part mask of a composed scene; fills in each instance's visible area (a share)."""
    picture, instances, parts = scene.canvas.finish()
    areas = np.bincount(instances.ravel(), minlength=len(scene.placed)) / instances.size
    for placed, area in zip(scene.placed, areas, strict=True):
        placed.area = float(area)
    class_ids = np.array([CLASS_IDS[placed.class_name] for placed in scene.placed], np.uint8)
    return picture, class_ids[instances], parts
