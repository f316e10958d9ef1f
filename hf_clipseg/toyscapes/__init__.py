"""Toyscapes: a drawn data set for semantic segmentation that needs no download. This package is its public face.

    from hf_clipseg.toyscapes import load_toyscapes, render
    scene = render(seed=0, index=7, height=96, width=128)   # .image .mask .part_mask .image_labels .caption .key
    test = load_toyscapes("test", size=(128, 128), num_samples=500)

`python -m hf_clipseg.toyscapes --help`: `export` writes a folder that `datasets.load_dataset` reads, `contact-sheet`
draws the picture of the README.

    python -m hf_clipseg.toyscapes export --output toyscapes --format parquet --splits train test --num_samples 1000
    python -m hf_clipseg.toyscapes contact-sheet --output docs/images/toyscapes.png
"""

from .folder_export import export_imagefolder, export_parquet, write_contact_sheet
from .render_scene import SPLITS, ToyScene, render
from .scene_datasets import TOYSCAPES_VERSION, ToyscapesDataset, load_toyscapes, toyscapes_features
from .scene_vocabulary import (
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
    "export_imagefolder",
    "export_parquet",
    "load_toyscapes",
    "render",
    "toyscapes_features",
    "write_contact_sheet",
]
