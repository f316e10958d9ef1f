"""Public data sets whose columns, classes and label conventions are known, by a short name.

Written for, not run on: the Hub could not be reached where this was written. Run `python -m training.check_dataset NAME` first;
it prints what the labels look like. The sources are in each set's paper and on its Hub page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_clipseg.constants import IGNORE_INDEX

from .masks import voc_palette

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog",
    "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip
CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain", "sky",
    "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
CITYSCAPES_TRAIN_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # label ids, in that order
ADE20K_CLASSES = tuple(
    "wall|building|sky|floor|tree|ceiling|road|bed|windowpane|grass|cabinet|sidewalk|person|earth|door|table|mountain|plant|"
    "curtain|chair|car|water|painting|sofa|shelf|house|sea|mirror|rug|field|armchair|seat|fence|desk|rock|wardrobe|lamp|"
    "bathtub|railing|cushion|base|box|column|signboard|chest of drawers|counter|sand|sink|skyscraper|fireplace|refrigerator|"
    "grandstand|path|stairs|runway|case|pool table|pillow|screen door|stairway|river|bridge|bookcase|blind|coffee table|"
    "toilet|flower|book|hill|bench|countertop|stove|palm|kitchen island|computer|swivel chair|boat|bar|arcade machine|hovel|"
    "bus|towel|light|truck|tower|chandelier|awning|streetlight|booth|television receiver|airplane|dirt track|apparel|pole|"
    "land|bannister|escalator|ottoman|bottle|buffet|poster|stage|van|ship|fountain|conveyer belt|canopy|washer|plaything|"
    "swimming pool|stool|barrel|basket|waterfall|tent|bag|minibike|cradle|oven|ball|food|step|tank|trade name|microwave|pot|"
    "animal|bicycle|lake|dishwasher|screen|blanket|sculpture|hood|sconce|vase|traffic light|tray|ashcan|fan|pier|crt screen|"
    "plate|monitor|bulletin board|shower|radiator|glass|clock|flag".split("|")
)


@dataclass(frozen=True)
class Preset:
    """Where a data set is and how its masks are to be read; `class_names` None: from `id2label.json` in its repository."""

    dataset_name: str
    image_column: str
    mask_column: str
    class_names: tuple[str, ...] | None = None
    colour_map: Sequence[tuple[int, int, int]] | None = None
    reduce_labels: bool = False
    id_map: Mapping[int, int] | None = None


def cityscapes_id_map() -> dict[int, int]:
    """Label ids -> train ids; 255 for those that are not scored."""
    train_ids = {label_id: train_id for train_id, label_id in enumerate(CITYSCAPES_TRAIN_IDS)}
    return {label_id: train_ids.get(label_id, IGNORE_INDEX) for label_id in range(34)}


PRESETS = {
    "voc21": Preset("nateraw/pascal-voc-2012", "image", "mask", VOC_CLASSES, colour_map=voc_palette()),
    "voc20": Preset("nateraw/pascal-voc-2012", "image", "mask", VOC_CLASSES[1:], colour_map=voc_palette(), reduce_labels=True),
    "voc": Preset("nateraw/pascal-voc-2012", "image", "mask", VOC_CLASSES, colour_map=voc_palette()),
    "ade20k": Preset("danjacobellis/scene_parse_150", "image", "annotation", ADE20K_CLASSES, reduce_labels=True),
    "cityscapes": Preset("Chris1/cityscapes", "image", "semantic_segmentation", CITYSCAPES_CLASSES),
    "cityscapes_label_ids": Preset(
        "Chris1/cityscapes", "image", "semantic_segmentation", CITYSCAPES_CLASSES, id_map=cityscapes_id_map()
    ),
    "sidewalk": Preset("segments/sidewalk-semantic", "pixel_values", "label", reduce_labels=True),
}
