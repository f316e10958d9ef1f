"""Label maps of one picture from several methods on one list of classes, so that colours and areas can be compared."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .overlay import class_areas, overlay
from .palette import class_colors


@dataclass(frozen=True)
class Grouping:
    """Regions that a model with groups has put together: `label_map` (H, W) of group numbers, and a name for each."""

    title: str
    label_map: np.ndarray
    names: list[str]


@dataclass(frozen=True)
class Comparison:
    """What was computed for one picture, kept per visitor so that opacity can change without a model."""

    picture: Image.Image
    class_names: list[str]
    titles: list[str]
    label_maps: list[np.ndarray]
    seconds: list[float]
    groupings: list[Grouping]

    def overlays(self, opacity: float) -> list[tuple[Image.Image, str]]:
        captions = [f"{title} · {seconds:.2f} s" for title, seconds in zip(self.titles, self.seconds, strict=True)]
        drawn = [(label_map, self.class_names, caption) for label_map, caption in zip(self.label_maps, captions, strict=True)]
        drawn += [(grouping.label_map, grouping.names, f"{grouping.title} · groups") for grouping in self.groupings]
        return [(overlay(self.picture, label_map, names, opacity), caption) for label_map, names, caption in drawn]

    def numbers(self) -> dict:
        rows = area_table(self.label_maps, self.class_names)
        results = [
            {"checkpoint": title, "seconds": round(seconds, 3), "areas": {name: shares[i] for name, _, shares in rows}}
            for i, (title, seconds) in enumerate(zip(self.titles, self.seconds, strict=True))
        ]
        return {"height": self.picture.height, "width": self.picture.width, "results": results}


def share_classes(class_lists: Sequence[Sequence[str]], label_maps: Sequence[np.ndarray]) -> tuple[list[str], list[np.ndarray]]:
    """One list of all classes in the order in which they come up, and every map renumbered to it.

    Args:
        class_lists: class names of each map, by class id.
        label_maps: `(H, W)` class ids of predictions, so every pixel has a class.

    Returns:
        The shared names, and the `(H, W)` uint16 maps.
    """
    names = list(dict.fromkeys(name for class_list in class_lists for name in class_list))
    ids = {name: class_id for class_id, name in enumerate(names)}
    lookups = [np.array([ids[name] for name in class_list], dtype=np.uint16) for class_list in class_lists]
    return names, [lookup[label_map] for lookup, label_map in zip(lookups, label_maps, strict=True)]


def area_table(label_maps: Sequence[np.ndarray], class_names: Sequence[str]) -> list[tuple[str, str, list[float]]]:
    """`(class name, hex colour, share of each map)` for the classes that occur, largest first; shares are 0..1."""
    areas = [class_areas(label_map, class_names) for label_map in label_maps]
    colors = class_colors(class_names)
    rows = [(name, colors[name], [area.get(name, 0.0) for area in areas]) for name in colors if any(name in a for a in areas)]
    return sorted(rows, key=lambda row: -max(row[2]))
