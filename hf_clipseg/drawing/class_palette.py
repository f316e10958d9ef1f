"""Colours by name: sky is sky blue and grass is green wherever they come up, and all classes of a list stay apart.

A class whose name, or a word of it, has a usual colour gets that colour, or the nearest one that is far enough from those of
the classes before it: in full colour vision and in both kinds of red-green blindness. All others follow the sequence of
`palette`. The same list always has the same colours, and a longer list never changes the colours of a shorter one.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .palette import candidate_colors, hex_color, palette, to_all_eyes

SEPARATION = 0.05
"""OKLab distance that colours keep in every kind of vision while there is room; about 2.5 just noticeable differences."""

FULL_VISION_WEIGHT = 0.6  # in full colour vision they keep 0.05 / 0.6
SHRINKING = 0.9  # of the separation, whenever no colour is left that keeps it
CROWDED = 0.02  # separation below which classes simply follow the sequence

USUAL_COLORS = {
    "#8ec7f2": "sky heavens",
    "#c4c9ee": "cloud clouds fog",
    "#ffd21f": "sun",
    "#f2e6a0": "moon star",
    "#1f6fb5": "sea water ocean",
    "#3b93c9": "river lake",
    "#39c0d3": "pool kite swimming",
    "#cfe9f7": "snow ice",
    "#6fb544": "grass lawn meadow",
    "#24703a": "tree trees forest vegetation",
    "#4f7f1f": "hedge bush bushes shrub plant pottedplant",
    "#f7a8d0": "flower flowers blossom",
    "#d8a531": "wheat hay straw",
    "#e3cf94": "sand beach dunes",
    "#8a6a48": "earth dirt soil mud ground terrain",
    "#5f6270": "road street asphalt railroad runway",
    "#9a8fa5": "pavement sidewalk path",
    "#7d7595": "mountain hill",
    "#857a70": "rock stone",
    "#a4492f": "brick bricks",
    "#b59a8a": "wall ceiling",
    "#b5834f": "floor wood wooden wardrobe cabinet",
    "#c4573a": "house building",
    "#e2604a": "lighthouse tower",
    "#a08a5a": "fence bridge",
    "#e23b6e": "person man woman people child rider",
    "#3d3fc4": "car automobile",
    "#f08a1d": "bus",
    "#7a4fd0": "truck van",
    "#5a2ca0": "train tram",
    "#7a3b8f": "boat ship",
    "#c23bd0": "bicycle bike motorcycle motorbike",
    "#6f8fd8": "airplane aeroplane plane",
    "#14b3a6": "bird",
    "#ff7f50": "fish food",
    "#7a4a2a": "cat horse bear",
    "#a8662f": "dog cow table diningtable desk",
    "#ece2d2": "sheep",
    "#8c1c13": "mushroom",
    "#9b5de5": "umbrella",
    "#f15bb5": "balloon",
    "#b0563f": "chair sofa couch",
    "#9aa0dd": "bed curtain",
    "#8fd0e0": "window windowpane glass",
    "#94603a": "door",
    "#f7c325": "light lamp",
    "#f5e04a": "sign",
    "#9d9da8": "pole",
    "#6c6c6c": "background",
}


def class_palette(class_names: Sequence[str]) -> np.ndarray:
    """`(classes, 3)` uint8 RGB, one row per name; see the module docstring."""
    return _class_palette(tuple(class_names)).copy()


def class_colors(class_names: Sequence[str]) -> dict[str, str]:
    """Class name -> hex colour: the map that legends, files and overlays share."""
    return {name: hex_color(color) for name, color in zip(class_names, class_palette(class_names).tolist(), strict=True)}


def usual_color(class_name: str) -> tuple[int, int, int] | None:
    """What most people would paint it, by its last word that has a colour ("wheat field", "brick wall"); None for the rest."""
    words = class_name.lower().replace("-", " ").split()
    known = [_by_word()[word] for word in words if word in _by_word()]
    if not known:
        return None
    index = 0 if words[-1] in ("field", "wall", "floor", "pool", "light", "sign") else -1  # the first word says more there
    return known[index]


@lru_cache(1)
def _by_word() -> dict[str, tuple[int, int, int]]:
    rgb = {code: (int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)) for code in USUAL_COLORS}
    return {word: rgb[code] for code, words in USUAL_COLORS.items() for word in words.split()}


@lru_cache(64)
def _class_palette(names: tuple[str, ...]) -> np.ndarray:
    wanted = sorted({color for name in names if (color := usual_color(name)) is not None})
    in_order = palette(max(len(names) * 2, 64)).astype(float)
    colors = np.concatenate([np.array(wanted, dtype=float).reshape(-1, 3), in_order, candidate_colors()])
    seen = to_all_eyes(colors)
    sequence_cost = np.concatenate([np.full(len(wanted), np.inf), np.arange(len(colors) - len(wanted))])
    nearest = np.full(len(colors), np.inf)  # distance to the nearest colour that is taken
    taken, separation = [], SEPARATION
    for name in names:
        usual = usual_color(name)
        cost = sequence_cost if usual is None else np.linalg.norm(seen[:, 0] - seen[wanted.index(usual), 0], axis=1)
        while separation >= CROWDED and not (np.isfinite(cost) & (nearest >= separation)).any():
            separation *= SHRINKING
        if separation < CROWDED:
            break
        taken.append(int(np.where(nearest >= separation, cost, np.inf).argmin()))
        distances = np.linalg.norm(seen - seen[taken[-1]], axis=2)
        distances[:, 0] *= FULL_VISION_WEIGHT
        nearest = np.minimum(nearest, distances.min(1))
    used = set(taken)
    rest = [index for index in range(len(wanted), len(colors)) if index not in used][: len(names) - len(taken)]
    return colors[taken + rest].astype(np.uint8)
