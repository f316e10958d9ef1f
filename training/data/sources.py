"""One way to every data set: Toyscapes, a Hub id, or a folder; with masks (`load_source`) or with captions (`load_captions`).

What folders may look like is in `mask_layouts` and `caption_files`, which rows are read in `rows`, what comes out in
`source_types`.
`python -m training.check_dataset NAME` checks a data set before anything is trained on it.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_clipseg.constants import IGNORE_INDEX
from hf_clipseg.toyscapes.scene_datasets import ToyscapesDataset

from .caption_files import CAPTION_LAYOUTS
from .class_sources import choose_class_names, choose_colours
from .colour_maps import colour_map_in_folder
from .columns import find_image_and_mask
from .id_maps import read_id_map
from .masks import Colour, MaskReader, holds_voc_colours, voc_palette
from .presets import PRESETS
from .rows import open_dataset
from .source_types import CaptionSource, SegmentationSource, ToyscapesCaptions, ToyscapesSource

logger = logging.getLogger(__name__)


def load_source(
    dataset_name: str,
    split: str,
    config_name: str | None = None,
    image_column: str | None = None,
    mask_column: str | None = None,
    classes_file: str | None = None,
    reduce_labels: bool = False,
    id_map: Mapping | str | Path | None = None,
    ignore_label: int | None = None,
    streaming: bool = False,
    limit: int | None = None,
    seed: int = 0,
    size: tuple[int, int] = (128, 128),
    validation_fraction: float | None = None,
    colour_map: Mapping[Colour, int] | Sequence[Colour] | str | Path | None = None,
) -> SegmentationSource | ToyscapesSource:
    """Images and masks of Toyscapes, a preset, a Hub data set or a folder.

    Args:
        dataset_name: "toyscapes", a name in `presets.PRESETS`, a Hub id, or a folder.
        classes_file: class names, or a file of them (see `class_names_of_argument`); by default those of the preset, the
            folder, the features or the colour map.
        reduce_labels, ignore_label: see `MaskReader`.
        id_map: what `read_id_map` reads.
        limit, streaming, seed: see `open_dataset`; for Toyscapes the seed chooses the scenes.
        size: (height, width) of Toyscapes scenes.
        validation_fraction: the splits are then "train" and "validation", see `open_split`.
        colour_map: for masks stored as colours: a file (see `read_colour_map`) or what `MaskReader` takes; by default the
            preset's, or the file of that name in the folder.
    """
    if dataset_name == "toyscapes":
        if validation_fraction is not None:
            raise ValueError("toyscapes has a split 'validation'; leave --validation_fraction out")
        return ToyscapesSource(ToyscapesDataset(split, size, limit, seed))
    folder = Path(dataset_name) if Path(dataset_name).is_dir() else None
    preset = None if folder else PRESETS.get(dataset_name)
    if preset:
        dataset_name, reduce_labels = preset.dataset_name, reduce_labels or preset.reduce_labels
        image_column, mask_column = image_column or preset.image_column, mask_column or preset.mask_column
        id_map, colour_map = id_map or preset.id_map, colour_map or preset.colour_map
    dataset, layout = open_dataset(dataset_name, split, config_name, streaming, limit, seed, validation_fraction)
    image_column, mask_column = find_image_and_mask(dataset.features, image_column, mask_column)
    reduce_labels = reduce_labels or (layout.reduce_labels and id_map is None)
    ids = read_id_map(id_map) if id_map else None if reduce_labels else layout.id_map
    class_names = choose_class_names(dataset_name, dataset, classes_file, preset or layout, reduce_labels)
    colours, class_names = choose_colours(colour_map or (folder and colour_map_in_folder(folder)), class_names)
    read_mask = MaskReader(len(class_names) if class_names else None, colours, reduce_labels, ids, ignore_label)
    description = {
        "dataset": folder.resolve().name if folder else dataset_name, "fingerprint": dataset._fingerprint,
        "columns": [image_column, mask_column], "reduce_labels": reduce_labels, "ignore_label": ignore_label,
        "id_map": sorted((str(stored), str(class_id)) for stored, class_id in (ids or {}).items()),
        "colours": sorted(colours.items()) if isinstance(colours, Mapping) else colours,
    }  # fmt: skip
    description = json.loads(json.dumps(description))  # lists, as a file that it is compared with has them
    source = SegmentationSource(
        dataset, image_column, mask_column, read_mask, class_names, description, folder, layout.decode_mask
    )
    if colours is None and layout.decode_mask is None:
        find_voc_colours(source)
    return source


def find_voc_colours(source: SegmentationSource, count: int = 16) -> None:
    """Reads masks by Pascal VOC's palette where a sample of them is stored in its colours."""
    rows = sorted({round(row) for row in np.linspace(0, len(source) - 1, count)})
    try:
        found = holds_voc_colours(source.stored(row)[2] for row in rows)
    except ValueError:  # a broken mask is reported when it is its turn
        return
    if found:
        logger.info("masks hold the colours of Pascal VOC's palette, and are read by it")
        source.read_mask.use_colours(voc_palette(IGNORE_INDEX))
        source.description["colours"] = "Pascal VOC"


def load_captions(
    dataset_name: str,
    split: str,
    config_name: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    streaming: bool = False,
    limit: int | None = None,
    seed: int = 0,
    validation_fraction: float | None = None,
    **toyscapes_options: Any,
) -> CaptionSource | ToyscapesCaptions:
    """Image-caption pairs of Toyscapes, a Hub data set or a folder (see `caption_files`).

    Args:
        limit, streaming, seed, validation_fraction: see `open_dataset`.
        toyscapes_options: `size`, `omission_rate` and `closeup_rate` of `ToyscapesDataset`; unused for others.
    """
    if dataset_name == "toyscapes":
        return ToyscapesCaptions(ToyscapesDataset(split, num_samples=limit, seed=seed, **toyscapes_options))
    dataset, _ = open_dataset(dataset_name, split, config_name, streaming, limit, seed, validation_fraction, CAPTION_LAYOUTS)
    name = Path(dataset_name).resolve().name if Path(dataset_name).is_dir() else dataset_name
    return CaptionSource(dataset, image_column, caption_column, {"dataset": name, "fingerprint": dataset._fingerprint})
