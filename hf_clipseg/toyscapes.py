"""Toyscapes: a drawn data set for semantic segmentation that needs no download. This module is its public face.

from hf_clipseg.toyscapes import load_toyscapes, render
scene = render(seed=0, index=7, height=96, width=128)   # .image .mask .part_mask .image_labels .caption .key
test = load_toyscapes("test", size=(128, 128), num_samples=500)
"""

from .toyscapes_datasets import TOYSCAPES_VERSION, ToyscapesDataset, load_toyscapes, toyscapes_features
from .toyscapes_scenes import SPLITS, ToyScene, render
from .toyscapes_vocabulary import (
    CAPTION_NOUNS,
    CLASS_NAMES,
    PART_NAMES,
    STUFF_NAMES,
    SYNONYMS,
    THING_NAMES,
    UNSEEN_CLASSES,
)

__all__ = [
    "CAPTION_NOUNS",
    "CLASS_NAMES",
    "PART_NAMES",
    "SPLITS",
    "STUFF_NAMES",
    "SYNONYMS",
    "THING_NAMES",
    "TOYSCAPES_VERSION",
    "UNSEEN_CLASSES",
    "ToyScene",
    "ToyscapesDataset",
    "load_toyscapes",
    "render",
    "toyscapes_features",
]
