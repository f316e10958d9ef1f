"""Label maps of one picture from several methods on one list of classes, so that colours, areas and scores can be compared."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from .class_palette import class_colors
from .overlay import class_areas, overlay

NONE_OF_THESE = "none of these"
"""The class of pixels that a method is not sure enough about; it is shown in the legend and not painted."""

NO_TRUTH = np.iinfo(np.uint16).max
"""Id of ground-truth pixels that none of the compared classes describes."""

HEAT = (255, 96, 0)


@dataclass(frozen=True)
class Grouping:
    """Regions that a model with groups has put together: `label_map` (H, W) of group numbers, and a name for each."""

    title: str
    label_map: np.ndarray
    names: list[str]


@dataclass(frozen=True)
class MethodResult:
    """What one method found.

    Args:
        name, title: of its checkpoint.
        label_map: `(H, W)` uint16 ids of the comparison's classes.
        seconds: of the run, without loading.
        unknown: class names that the checkpoint has no word for, so that it was not asked for them.
    """

    name: str
    title: str
    label_map: np.ndarray
    seconds: float
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)  # compared by identity: it holds pictures
class Comparison:
    """What was computed for one picture, kept per visitor so that the drawing can change without a model.

    Args:
        picture: as the models saw it.
        class_names: of all methods together; the ids of every map. `NONE_OF_THESE` may be the last.
        synonyms: of each class, its name first.
        truth: `(H, W)` uint16, `NO_TRUTH` where there is none; None for a picture without ground truth.
        asked: the classes that open-vocabulary methods were asked for, with synonyms.
        results: one per method that has finished, in the order asked for.
        groupings: of the methods that group regions.
    """

    picture: Image.Image
    class_names: list[str]
    synonyms: list[list[str]] = field(default_factory=list)
    truth: np.ndarray | None = None
    asked: list[list[str]] = field(default_factory=list)
    results: tuple[MethodResult, ...] = ()
    groupings: tuple[Grouping, ...] = ()

    def adding(self, result: MethodResult, grouping: Grouping | None = None) -> "Comparison":
        groupings = self.groupings if grouping is None else (*self.groupings, grouping)
        return replace(self, results=(*self.results, result), groupings=groupings)

    @property
    def titles(self) -> list[str]:
        return [result.title for result in self.results]

    @property
    def label_maps(self) -> list[np.ndarray]:
        return [result.label_map for result in self.results]

    @property
    def unpainted(self) -> tuple[int, ...]:
        """Ids that overlays leave alone."""
        return (*tuple(index for index, name in enumerate(self.class_names) if name == NONE_OF_THESE), NO_TRUTH)

    def overlay(self, label_map: np.ndarray, opacity: float) -> Image.Image:
        return overlay(self.picture, label_map, self.class_names, opacity, unpainted=self.unpainted)

    def areas(self, label_map: np.ndarray) -> dict[str, float]:
        """Share of every class that occurs in a map, largest first."""
        return class_areas(label_map, self.class_names, ignored=(NO_TRUTH,))

    def scores(self) -> list[float | None]:
        """Mean IoU of each method on this picture; None where there is no ground truth for any of the classes."""
        if self.truth is None or (self.truth == NO_TRUTH).all():
            return [None] * len(self.results)
        return [mean_iou(result.label_map, self.truth) for result in self.results]

    def best(self) -> int | None:
        """Which result has the highest score; None where there is no score, or only one method."""
        scores = [score for score in self.scores() if score is not None]
        return int(np.argmax(scores)) if len(scores) == len(self.results) > 1 else None

    def agreements(self) -> list[float | None]:
        """Share of pixels that a method names as another does, averaged over the others; None for a single method."""
        maps = self.label_maps
        if len(maps) < 2:
            return [None] * len(maps)
        same = np.array([[np.mean(a == b) for b in maps] for a in maps])
        return ((same.sum(1) - 1) / (len(maps) - 1)).tolist()

    def numbers(self) -> dict:
        """Everything that can be counted, as plain values."""
        rows = area_table(self.label_maps, self.class_names)
        results = []
        columns = zip(self.results, self.scores(), self.agreements(), strict=True)
        for index, (result, score, agreement) in enumerate(columns):
            areas = {name: shares[index] for name, _, shares in rows}
            entry = {"checkpoint": result.name, "title": result.title, "seconds": round(result.seconds, 3), "areas": areas}
            if score is not None:
                entry["mIoU"] = round(score, 4)
            if agreement is not None:
                entry["agreement"] = round(agreement, 4)
            results.append(entry | ({"unknown": list(result.unknown)} if result.unknown else {}))
        return {"height": self.picture.height, "width": self.picture.width, "results": results}


def mean_iou(label_map: np.ndarray, truth: np.ndarray) -> float:
    """Mean IoU over the classes of `truth (H, W)`, for one picture; pixels of `NO_TRUTH` count for nothing."""
    known = truth != NO_TRUTH
    predicted, truth = label_map[known], truth[known]
    ious = [
        np.sum((predicted == index) & (truth == index)) / np.sum((predicted == index) | (truth == index))
        for index in np.unique(truth)
    ]
    return float(np.mean(ious))


def disagreement(label_maps: Sequence[np.ndarray]) -> np.ndarray:
    """`(H, W)` share of the methods, 0..1, that name a pixel otherwise than the largest number of them do."""
    maps = np.stack(label_maps)
    votes = (maps[:, None] == maps[None]).sum(1)  # how many share the answer of each
    return 1 - votes.max(0) / len(maps)


def heat_map(picture: Image.Image, values: np.ndarray) -> Image.Image:
    """The picture in grey, darkened, with `values (H, W)` in 0..1 as a glow."""
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32) * 0.5
    strength = np.asarray(values, dtype=np.float32).clip(0, 1)[:, :, None]
    return Image.fromarray((grey * (1 - strength) + np.array(HEAT, dtype=np.float32) * strength).round().astype(np.uint8))


def shared_names(class_lists: Sequence[Sequence[str]]) -> list[str]:
    """One list of all classes in the order in which they come up."""
    return list(dict.fromkeys(name for class_list in class_lists for name in class_list))


def renumber(label_map: np.ndarray, class_names: Sequence[str], shared: Sequence[str]) -> np.ndarray:
    """`(H, W)` ids of `class_names` -> `(H, W)` uint16 ids of `shared`.

    Every pixel must have a class of its own list; a name that is not in `shared` becomes `NO_TRUTH`.
    """
    ids = {name: class_id for class_id, name in enumerate(shared)}
    return np.array([ids.get(name, NO_TRUTH) for name in class_names], dtype=np.uint16)[label_map]


def area_table(
    label_maps: Sequence[np.ndarray], class_names: Sequence[str], ignored: Sequence[int] = ()
) -> list[tuple[str, str, list[float]]]:
    """`(class name, hex colour, share of each map)` for the classes that occur, largest first; shares are 0..1."""
    areas = [class_areas(label_map, class_names, ignored) for label_map in label_maps]
    colors = class_colors(class_names)
    rows = [(name, colors[name], [area.get(name, 0.0) for area in areas]) for name in colors if any(name in a for a in areas)]
    return sorted(rows, key=lambda row: -max(row[2]))
