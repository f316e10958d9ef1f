"""Pseudo masks in a folder: written from a VPL model's localisation maps, and read back as a data set with masks.

Per image, `<key>.png` holds the label of every pixel, `<key>.confidence.png` its probability times 255. Files appear whole or
not at all. Begun again, finished images are skipped, and what comes out is what an unbroken run gives, bit for bit: batches are
a function of the order of the images alone, and a batch of which one image is missing is computed again as a whole.
`settings.json` guards against mixing two settings in one folder.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from tqdm.auto import tqdm

from hf_clipseg import SegmentationProcessor, VplForSemanticSegmentation
from hf_clipseg.atomic import replace_file
from hf_clipseg.clip.text_bank import weights_fingerprint
from hf_clipseg.constants import IGNORE_INDEX
from hf_clipseg.localization.localization import uniform_batches
from hf_clipseg.localization.pseudo_labels import pseudo_labels

from ..engine.provenance import write_json
from .tagged_images import TaggedImages

SETTINGS_FILE = "settings.json"

CHUNK = 4
"""Batches read at once, and sorted so that images of one size and one number of classes share a batch."""


def write_pseudo_labels(
    model: VplForSemanticSegmentation,
    processor: SegmentationProcessor,
    source: TaggedImages,
    output_dir: str | Path,
    refinement: str = "crf",
    batch_size: int = 16,
    accelerator: Accelerator | None = None,
) -> Path:
    """Write the masks of all images that have none yet; returns the folder.

    Args:
        model: with prototypes of the classes of `source`.
        batch_size: images per forward pass.
        accelerator: shares the batches out to its processes.

    Raises:
        ValueError: other classes, or a folder that was begun with other settings.
    """
    expected, actual = [names[0] for names in model.config.class_names or []], [names[0] for names in source.class_names]
    if expected != actual:
        raise ValueError(f"The model's prototypes are for the classes {expected}, the images are tagged with {actual}.")
    folder = Path(output_dir)
    check_settings(folder, describe(model, processor, source, refinement, batch_size), accelerator)
    process, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    size = CHUNK * batch_size
    chunks = range(process, -(-len(source) // size), processes)
    for chunk in tqdm(chunks, desc="pseudo masks", disable=process > 0, mininterval=5):
        indices = range(chunk * size, min((chunk + 1) * size, len(source)))
        missing = {index for index in indices if not mask_path(folder, source.keys[index]).is_file()}
        if missing:
            for index, labels, confidence in label_images(model, processor, source, indices, refinement, batch_size):
                if index in missing:
                    write_mask(folder, source.keys[index], labels, confidence)
    if accelerator:
        accelerator.wait_for_everyone()
    return folder


def label_images(
    model, processor, source: TaggedImages, indices: Sequence[int], refinement: str, batch_size: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(index, labels `(H, W)` uint8, confidence `(H, W)` uint8) of some images, in batches."""
    images = [source[index]["image"] for index in indices]
    for batch in uniform_batches(images, source.labels[list(indices)], batch_size):
        chosen = [images[position] for position in batch]
        tags = source.labels[[indices[position] for position in batch]].to(model.device)
        pixel_values = processor(images=chosen, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
        pixels = torch.from_numpy(np.stack([np.array(image) for image in chosen])).permute(0, 3, 1, 2)
        labels, confidence = pseudo_labels(
            model.localize(pixel_values, tags), pixels, bool(model.config.background_words), refinement
        )
        labels = labels.to(torch.uint8).cpu().numpy()
        confidence = (confidence * 255).round().to(torch.uint8).cpu().numpy()
        for position, label_map, certainty in zip(batch, labels, confidence, strict=True):
            yield indices[position], label_map, certainty


def mask_path(folder: Path, key: str) -> Path:
    """A key may be a path; its mask lies flat in the folder."""
    return folder / f"{quote(key, safe='')}.png"


def confidence_path(folder: Path, key: str) -> Path:
    return mask_path(folder, key).with_suffix(".confidence.png")


def write_mask(folder: Path, key: str, labels: np.ndarray, confidence: np.ndarray) -> None:
    """The mask comes last: where it is, its confidence is too."""
    write_png(confidence_path(folder, key), confidence)
    write_png(mask_path(folder, key), labels)


def write_png(path: Path, array: np.ndarray) -> None:
    with replace_file(path) as partial:
        Image.fromarray(array).save(partial, "PNG", compress_level=1)


def describe(model, processor, source: TaggedImages, refinement: str, batch_size: int) -> dict:
    """Everything that decides the content of the masks."""
    return json.loads(json.dumps({
        "classes": model.config.class_names,
        "background_words": model.config.background_words,
        "weights": weights_fingerprint(model.clip.vision_model),
        "prototypes": weights_fingerprint(torch.nn.ParameterList([model.prototypes])),
        "localization": vars(model.localization_settings),
        "preprocessing": processor.image_processor.to_dict(),
        "data": source.description,
        "refinement": refinement,
        "batch_size": batch_size,
    }, default=str))  # fmt: skip


def check_settings(folder: Path, settings: dict, accelerator: Accelerator | None) -> None:
    """Write the settings of a new folder; refuse one that was begun with others."""
    path = folder / SETTINGS_FILE
    if path.is_file():
        begun = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(key for key in begun.keys() | settings.keys() if begun.get(key) != settings.get(key))
        if changed:
            raise ValueError(f"{folder} was begun with other settings ({', '.join(changed)}). Choose a new output folder.")
    elif accelerator is None or accelerator.is_main_process:
        write_json(path, settings)
    if accelerator is not None:
        accelerator.wait_for_everyone()


class PseudoMasks:
    """`masks[i]` is `{"image", "mask", "key"}` of tagged images whose pseudo masks lie in `folder`.

    Args:
        source: the images.
        folder: what `make_pseudo_labels` wrote.
        label_names: name of every label value.
        confidence: pixels whose probability is lower get the label 255.

    Raises:
        ValueError: an image has no mask yet.
    """

    def __init__(self, source: TaggedImages, folder: str | Path, label_names: Sequence[str], confidence: float):
        self.source, self.folder, self.class_names, self.confidence = source, Path(folder), list(label_names), confidence
        missing = [key for key in source.keys if not mask_path(self.folder, key).is_file()]
        if missing:
            raise ValueError(
                f"{len(missing)} images have no pseudo mask in {folder} (the first: {missing[:5]}). Run the stage "
                "pseudo_labels."
            )

    @property
    def description(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for key in self.source.keys:
            digest.update(mask_path(self.folder, key).read_bytes())
        return {**self.source.description, "masks": digest.hexdigest()[:16], "confidence": self.confidence}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.source[index]
        with Image.open(mask_path(self.folder, sample["key"])) as labels:
            mask = np.array(labels, dtype=np.int64)
        with Image.open(confidence_path(self.folder, sample["key"])) as certainty:
            mask[np.array(certainty) < self.confidence * 255] = IGNORE_INDEX
        return {"image": sample["image"], "mask": mask, "key": sample["key"]}
