"""Saving a model together with the code that runs it, for people who load it with `trust_remote_code=True`.

transformers copies the files that a module reaches through `from .name import X`, one flat folder deep, which is why this
package is flat.
"""

import os
from pathlib import Path

from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedModel

from .image_processing_segmentation import SegmentationImageProcessor
from .processing_segmentation import SegmentationProcessor


def save_with_code(model: PreTrainedModel, processor: SegmentationProcessor, folder: str | os.PathLike) -> None:
    """Write model, processor and their source files to `folder`, ready to be uploaded to the Hub.

    Registration for the Auto classes happens here and not on import, because it makes every later `save_pretrained` of the
    process copy source files; it is undone afterwards.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    registrations = {
        type(model): AutoModelForSemanticSegmentation.__name__,
        type(model.config): AutoConfig.__name__,
        SegmentationProcessor: "AutoProcessor",
        SegmentationImageProcessor: "AutoImageProcessor",
    }
    try:
        for exported, auto_class in registrations.items():
            exported.register_for_auto_class(auto_class)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    finally:
        for exported in registrations:
            exported._auto_class = None
