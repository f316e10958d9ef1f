"""Colours of classes: class k has one colour, whatever the number of classes and whichever method draws it.

The colours are a farthest-point sequence in OKLab (Ottosson 2020), a space in which distance follows what people see:
each new colour is the candidate that is farthest from all colours before it. So the first N are well apart for every N,
and a longer list never changes the colours of a shorter one.
"""

from functools import cache

import numpy as np

MAX_COLORS = 2048
"""Colours are distinct up to here and repeat beyond."""

FIRST_COLOR = (66, 133, 214)  # a friendly blue; everything else follows from it
LIGHTNESS = (0.38, 0.92)  # neither black nor white: outlines and captions use those
CHROMA = (0.045, 0.21)  # neither grey, hard to name in a legend, nor neon, hard on the eye

# sRGB (linear) -> cone responses -> OKLab
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)

Color = tuple[int, int, int]


def palette(num_colors: int) -> np.ndarray:
    """`(num_colors, 3)` uint8 RGB, row k the colour of class k."""
    if num_colors < 0:
        raise ValueError(f"num_colors is {num_colors}; expected 0 or more.")
    return _sequence(_rounded_up(min(num_colors, MAX_COLORS)))[np.arange(num_colors) % MAX_COLORS]


def class_color(class_id: int) -> Color:
    """RGB of one class, 0..255."""
    return tuple(palette(class_id + 1)[class_id].tolist())


def hex_color(color: Color) -> str:
    """`(66, 133, 214)` -> `"#4285d6"`."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def class_colors(class_names) -> dict[str, str]:
    """Class name -> hex colour of its position: the map that legends and Gradio's components share."""
    return {name: hex_color(color) for name, color in zip(class_names, palette(len(class_names)).tolist(), strict=True)}


def to_oklab(colors: np.ndarray) -> np.ndarray:
    """`(..., 3)` sRGB 0..255 -> `(..., 3)` OKLab: lightness 0..1, green-red, blue-yellow."""
    values = np.asarray(colors, dtype=np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_CONES.T) @ _TO_LAB.T


def _rounded_up(length: int) -> int:
    """The next power of two from 64 on, so that few sequences are ever computed."""
    return max(64, 1 << (length - 1).bit_length()) if length else 64


@cache
def _sequence(length: int) -> np.ndarray:
    levels = np.linspace(0, 255, 18).round()
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = to_oklab(candidates)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    usable = (lab[:, 0] > LIGHTNESS[0]) & (lab[:, 0] < LIGHTNESS[1]) & (chroma > CHROMA[0]) & (chroma < CHROMA[1])
    candidates, lab = candidates[usable], lab[usable]
    colors = [FIRST_COLOR]
    distance = np.full(len(candidates), np.inf)
    while len(colors) < length:
        distance = np.minimum(distance, np.linalg.norm(lab - to_oklab(colors[-1]), axis=1))
        colors.append(candidates[distance.argmax()])
    return np.array(colors, dtype=np.uint8)
