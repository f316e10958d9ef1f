"""Colours by number: class k has one colour, whatever the number of classes. `class_palette` gives colours by name.

The colours are a farthest-point sequence in OKLab (Ottosson 2020), a space in which distance follows what people see: each new
colour is the candidate that is farthest from all colours before it. The first `FOR_ALL_EYES` of them are also kept apart as
people without the green or the red cone pigment see them (Machado, Oliveira and Fernandes 2009). A longer list never changes
the colours of a shorter one.
"""

from functools import cache

import numpy as np

MAX_COLORS = 2048
"""Colours are distinct up to here and repeat beyond."""

FOR_ALL_EYES = 48
FIRST_COLOR = (66, 133, 214)  # a friendly blue; everything else follows from it
LIGHTNESS = (0.38, 0.92)  # neither black nor white: outlines and captions use those
CHROMA = (0.045, 0.21)  # neither grey, hard to name in a legend, nor neon, hard on the eye
DEFICIENT_WEIGHT = 1.8  # a distance in reduced colour vision counts as so much more of one in full colour vision

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

# linear sRGB -> the linear sRGB that looks the same to people with the deficiency, at full severity
DEFICIENCIES = {
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
}

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


def to_oklab(colors: np.ndarray, deficiency: str | None = None) -> np.ndarray:
    """`(..., 3)` sRGB 0..255 -> `(..., 3)` OKLab: lightness 0..1, green-red, blue-yellow; as a deficiency sees them."""
    values = np.asarray(colors, dtype=np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    if deficiency is not None:
        linear = (linear @ DEFICIENCIES[deficiency].T).clip(0, 1)
    return np.cbrt(linear @ _TO_CONES.T) @ _TO_LAB.T


def to_all_eyes(colors: np.ndarray) -> np.ndarray:
    """`(N, 3)` sRGB -> `(N, 3, 3)` OKLab: in full colour vision, then with each of `DEFICIENCIES`."""
    return np.stack([to_oklab(colors, kind) for kind in (None, *DEFICIENCIES)], axis=1)


def candidate_colors() -> np.ndarray:
    """`(N, 3)` sRGB 0..255, float: the grid that colours are chosen from, neither too light, dark, grey nor bright."""
    levels = np.linspace(0, 255, 18).round()
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = to_oklab(candidates)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    usable = (lab[:, 0] > LIGHTNESS[0]) & (lab[:, 0] < LIGHTNESS[1]) & (chroma > CHROMA[0]) & (chroma < CHROMA[1])
    return candidates[usable]


def _rounded_up(length: int) -> int:
    """The next power of two from 64 on, so that few sequences are ever computed."""
    return max(64, 1 << (length - 1).bit_length()) if length else 64


@cache
def _sequence(length: int) -> np.ndarray:
    candidates = candidate_colors()
    seen = to_all_eyes(candidates)
    colors, last = [FIRST_COLOR], to_all_eyes(np.array([FIRST_COLOR]))[0]
    for_all = np.full(len(candidates), np.inf)
    full_vision = for_all.copy()
    while len(colors) < length:
        distances = np.linalg.norm(seen - last, axis=2)
        full_vision = np.minimum(full_vision, distances[:, 0])
        for_all = np.minimum(for_all, np.minimum(distances[:, 0], DEFICIENT_WEIGHT * distances[:, 1:].min(1)))
        best = (for_all if len(colors) < FOR_ALL_EYES else full_vision).argmax()
        colors.append(candidates[best])
        last = seen[best]
    return np.array(colors, dtype=np.uint8)
