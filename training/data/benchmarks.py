"""The benchmarks of open-vocabulary segmentation from the folders in which people have them, with the class order of the field.

    python -m training.evaluate my-model --dataset_name context59 --dataset_path VOCdevkit/VOC2010 --split validation

| name | folder | masks |
|---|---|---|
| voc21, voc20 | `VOCdevkit/VOC2012` | `SegmentationClass`; voc20 leaves background out |
| context60, context59 | `VOCdevkit/VOC2010` | `SegmentationClassContext`, ids 0 to 59 as mmsegmentation converts them |
| coco-object | `coco_stuff164k` | `*_instanceTrainIds.png`, or the original ids: stuff and unlabelled become background |
| coco-stuff | `coco_stuff164k` | `*_labelTrainIds.png`, or the original ids (0 to 181, 11 of them unused) |
| ade20k | `ADEChallengeData2016` | 1 to 150; 0 is unlabelled |
| cityscapes | the folder with `leftImg8bit` and `gtFine` | `*_labelTrainIds.png`, or `*_labelIds.png` |

The split is "train" or "validation", whatever the folder calls it. That COCO-Object counts unlabelled pixels as background is
how the conversion script of GroupViT and its successors has it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from hf_clipseg.clip.class_files import read_class_file
from hf_clipseg.constants import IGNORE_INDEX

from .masks import MaskReader, voc_palette
from .presets import ADE20K_CLASSES, CITYSCAPES_CLASSES, VOC_CLASSES, cityscapes_id_map
from .source_types import SegmentationSource

VOCABULARIES = Path(__file__).with_name("vocabularies")
UNUSED_COCO_IDS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Ids of COCO-Stuff's label maps (category id - 1) that no pixel has."""


def vocabulary(name: str) -> list[list[str]]:
    """The names of every class in a file of `VOCABULARIES`."""
    return read_class_file(VOCABULARIES / f"{name}.txt")


def coco_stuff_id_map() -> dict[int, int]:
    """Original ids -> 0 to 170."""
    used = [label for label in range(182) if label not in UNUSED_COCO_IDS]
    return {label: class_id for class_id, label in enumerate(used)}


def coco_object_id_map() -> dict[int, int]:
    """Original ids -> 0 (all that is no thing, unlabelled included), 1 to 80."""
    things = {label: class_id + 1 for label, class_id in coco_stuff_id_map().items() if label < 90}
    return {label: things.get(label, 0) for label in (*range(182), IGNORE_INDEX)}


@dataclass(frozen=True)
class MaskFiles:
    """One way in which a benchmark's masks are stored: a file name with `{key}`, and what its ids mean."""

    name: str
    reduce_labels: bool = False
    id_map: Mapping[int, int] | None = None


@dataclass(frozen=True)
class Benchmark:
    """Where files are, and which classes their ids are.

    Args:
        class_names: display names in the order of the ids.
        image, masks: file names below the root with `{split}` and `{key}`; a `*` in the image's stands for the folders of keys.
            Of several kinds of masks the first that exists is read.
        splits: "train" and "validation" as the folder calls them.
        key_list: file with the keys of a split, one a line; None: every image.
        roots: folders below the given path in which the files may lie.
        colours: of the classes, where masks may be stored as colours.
    """

    class_names: tuple[str, ...]
    image: str
    masks: tuple[MaskFiles, ...]
    splits: Mapping[str, str]
    key_list: str | None = None
    roots: tuple[str, ...] = (".",)
    colours: tuple[tuple[int, int, int], ...] | None = None

    @property
    def where(self) -> str:
        """The usual name of the folder."""
        return self.roots[-1]


def _voc(year: int, masks: MaskFiles, class_names, listed: str, colours=None) -> Benchmark:
    return Benchmark(
        tuple(class_names), "JPEGImages/{key}.jpg", (masks,), {"train": "train", "validation": "val"},
        f"ImageSets/{listed}/{{split}}.txt", (".", f"VOC{year}", f"VOCdevkit/VOC{year}"), colours,
    )  # fmt: skip


def _coco(class_names, masks: tuple[MaskFiles, ...]) -> Benchmark:
    return Benchmark(
        tuple(class_names), "images/{split}/{key}.jpg", masks, {"train": "train2017", "validation": "val2017"},
        roots=(".", "coco_stuff164k"),
    )  # fmt: skip


def _first_names(name: str) -> list[str]:
    return [names[0] for names in vocabulary(name)]


COCO_THINGS = _first_names("coco_object_plain")[1:]
CONTEXT = _first_names("context59")
BENCHMARKS = {
    "voc21": _voc(2012, MaskFiles("SegmentationClass/{key}.png"), VOC_CLASSES, "Segmentation", tuple(voc_palette())),
    "voc20": _voc(2012, MaskFiles("SegmentationClass/{key}.png", True), VOC_CLASSES[1:], "Segmentation"),
    "context60": _voc(
        2010, MaskFiles("SegmentationClassContext/{key}.png"), ["background", *CONTEXT], "SegmentationContext"
    ),
    "context59": _voc(2010, MaskFiles("SegmentationClassContext/{key}.png", True), CONTEXT, "SegmentationContext"),
    "coco-object": _coco(
        ["background", *COCO_THINGS],
        (
            MaskFiles("annotations/{split}/{key}_instanceTrainIds.png"),
            MaskFiles("annotations/{split}/{key}.png", id_map=coco_object_id_map()),
            MaskFiles("stuffthingmaps/{split}/{key}.png", id_map=coco_object_id_map()),
        ),
    ),
    "coco-stuff": _coco(
        [*COCO_THINGS, *_first_names("coco_stuff")[80:]],
        (
            MaskFiles("annotations/{split}/{key}_labelTrainIds.png"),
            MaskFiles("annotations/{split}/{key}.png", id_map=coco_stuff_id_map()),
            MaskFiles("stuffthingmaps/{split}/{key}.png", id_map=coco_stuff_id_map()),
        ),
    ),
    "ade20k": Benchmark(
        ADE20K_CLASSES, "images/{split}/{key}.jpg", (MaskFiles("annotations/{split}/{key}.png", True),),
        {"train": "training", "validation": "validation"}, roots=(".", "ADEChallengeData2016"),
    ),
    "cityscapes": Benchmark(
        CITYSCAPES_CLASSES, "leftImg8bit/{split}/*/{key}_leftImg8bit.png",
        (
            MaskFiles("gtFine/{split}/*/{key}_gtFine_labelTrainIds.png"),
            MaskFiles("gtFine/{split}/*/{key}_gtFine_labelIds.png", id_map=cityscapes_id_map()),
        ),
        {"train": "train", "validation": "val"}, roots=(".", "cityscapes"),
    ),
}  # fmt: skip


def open_benchmark(
    name: str, path: str | Path, split: str = "validation", limit: int | None = None, seed: int = 0
) -> SegmentationSource:
    """Images and masks of a benchmark from its original folder.

    Args:
        name: of `BENCHMARKS`.
        path: the folder of the table above, or one above it.
        split: "train" or "validation".
        limit, seed: use so many images, drawn by the seed.

    Raises:
        ValueError: no such benchmark or split, or a folder of another layout.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"{name!r} is no benchmark with a folder of its own; these are: {', '.join(BENCHMARKS)}.")
    benchmark = BENCHMARKS[name]
    if split not in benchmark.splits:
        raise ValueError(f"{name} has the splits {', '.join(benchmark.splits)}, not {split!r}.")
    keys, images, masks, kind = find_files(name, benchmark, Path(path), benchmark.splits[split])
    chosen = np.arange(len(keys))
    if limit is not None and limit < len(keys):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(keys))[:limit])
    columns = {"image": images, "mask": masks, "key": keys}
    rows = datasets.Dataset.from_dict({column: [values[i] for i in chosen] for column, values in columns.items()})
    read_mask = MaskReader(len(benchmark.class_names), benchmark.colours, kind.reduce_labels, kind.id_map)
    description = {"benchmark": name, "split": split, "masks": kind.name, "images": len(rows), "seed": seed, "limit": limit}
    class_names = [[class_name] for class_name in benchmark.class_names]
    return SegmentationSource(rows, "image", "mask", read_mask, class_names, description)


def find_files(name: str, benchmark: Benchmark, path: Path, split: str) -> tuple[list[str], list[str], list[str], MaskFiles]:
    """Keys, images and masks of a split, in the order of the keys, and how the masks are stored."""
    head, _, tail = benchmark.image.format(split=split, key="\0").partition("\0")
    for root in (path / folder for folder in benchmark.roots):
        if benchmark.key_list is None:
            found = {image.name.removesuffix(tail): image for image in sorted(root.glob(f"{head}*{tail}"))}
        else:
            keys_file = root / benchmark.key_list.format(split=split)
            listed = keys_file.read_text(encoding="utf-8").split() if keys_file.is_file() else []
            found = {key: root / benchmark.image.format(split=split, key=key) for key in listed}
        for kind in benchmark.masks if found else ():
            masks = {key: root / mask_name(kind, split, key, image) for key, image in found.items()}
            if any(mask.is_file() for mask in masks.values()):
                missing = [str(file) for files in (found, masks) for file in files.values() if not file.is_file()]
                if missing:
                    raise ValueError(f"{name}: {len(missing)} files are missing, {missing[0]} among them.")
                return list(found), [str(file) for file in found.values()], [str(file) for file in masks.values()], kind
    expected = benchmark.key_list or benchmark.image
    raise ValueError(
        f"{path} is not laid out as {name} is: expected {expected.format(split=split, key='NAME')} and "
        f"{' or '.join(kind.name.format(split=split, key='NAME') for kind in benchmark.masks)} below it."
    )


def mask_name(kind: MaskFiles, split: str, key: str, image: Path) -> str:
    """The mask of an image; `*` is the folder that the image lies in."""
    return kind.name.format(split=split, key=key).replace("*", image.parent.name)
