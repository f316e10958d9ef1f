"""The folders of images and masks that are understood, by what they look like; the first that fits is taken."""

from .coco_json import coco_instances, coco_panoptic
from .layouts import Recogniser, stored_dataset
from .paired_files import (
    cityscapes,
    image_and_mask_folders,
    masks_beside_images,
    pascal_voc,
    split_and_mask_split,
    splits_with_folders,
)

MASK_LAYOUTS: dict[str, Recogniser] = {
    "images/ and masks/ with the same file names, flat or with a folder per split in both (also img_dir/ and ann_dir/, images/ "
    "and annotations/, images/ and labels/, img/ and gt/)": image_and_mask_folders,
    "SPLIT/images/ and SPLIT/masks/": splits_with_folders,
    "Pascal VOC: JPEGImages/, SegmentationClass/, and ImageSets/Segmentation/SPLIT.txt": pascal_voc,
    "Cityscapes: leftImg8bit/SPLIT/ and gtFine/SPLIT/": cityscapes,
    "COCO panoptic: annotations/panoptic_SPLIT.json with annotations/panoptic_SPLIT/, photographs in SPLIT/ or images/SPLIT/":
        coco_panoptic,
    "COCO instances: annotations/instances_SPLIT.json, photographs in SPLIT/ or images/SPLIT/; or SPLIT/_annotations.coco.json":
        coco_instances,
    "SPLIT/ and SPLITannot/ (also SPLIT_labels/, SPLIT_masks/)": split_and_mask_split,
    "NAME.jpg and NAME_mask.png in one folder, or in a folder per split": masks_beside_images,
    "what `datasets` reads: Parquet, Arrow, WebDataset shards, save_to_disk, an imagefolder whose metadata names the masks":
        stored_dataset,
}  # fmt: skip
