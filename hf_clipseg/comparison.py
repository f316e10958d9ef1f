"""Label maps of one picture from several methods on one list of classes, so that colours and areas can be compared."""

from collections.abc import Sequence

import numpy as np

from .overlay import class_areas
from .palette import class_colors


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
