"""Seen/unseen splits of zero-shot segmentation, as MaskCLIP, ZegCLIP and OTSeg use them.

Ids are 0-based and count no background class; they only mean something for the usual class order of each data set, so
the number of classes is checked before a preset is applied.
"""

from collections.abc import Sequence
from typing import NamedTuple

from hf_clipseg.toyscapes import CLASS_NAMES, UNSEEN_CLASSES


class Split(NamedTuple):
    """A data set's number of classes and the ids that are held out in training."""

    num_classes: int
    unseen_ids: tuple[int, ...]


SPLITS = {
    "toyscapes": Split(len(CLASS_NAMES), tuple(sorted(CLASS_NAMES.index(name) for name in UNSEEN_CLASSES))),
    "voc_15_5": Split(20, (15, 16, 17, 18, 19)),  # potted plant, sheep, sofa, train, tv monitor
    "coco_stuff_156_15": Split(171, (19, 23, 28, 29, 36, 51, 76, 88, 94, 112, 133, 136, 137, 157, 160)),
    "context_49_10": Split(59, (0, 6, 7, 14, 19, 24, 31, 33, 48, 54)),
}


def unseen_class_ids(unseen: str | None, class_names: Sequence[str]) -> list[int]:
    """Ids of the unseen classes: a preset of `SPLITS`, or class names parted by commas; none for None.

    Raises:
        ValueError: the preset is for another number of classes, or a name is none of `class_names`.
    """
    if unseen is None:
        return []
    if unseen in SPLITS:
        split = SPLITS[unseen]
        if split.num_classes != len(class_names):
            raise ValueError(
                f"--unseen {unseen} is a split of {split.num_classes} classes, the data set has {len(class_names)}; "
                "name the unseen classes instead, parted by commas."
            )
        return list(split.unseen_ids)
    names = [name.strip() for name in unseen.split(",") if name.strip()]
    unknown = [name for name in names if name not in class_names]
    if unknown or not names:
        raise ValueError(
            f"--unseen {unseen!r}: {unknown or 'nothing'} is no class of the data set; the classes are "
            f"{list(class_names)}, the presets {sorted(SPLITS)}."
        )
    return sorted(class_names.index(name) for name in set(names))
