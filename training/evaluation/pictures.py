"""What a model makes of some images while it learns: one sheet per validation, beside the truth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image

from hf_clipseg.atomic import replace_file
from hf_clipseg.drawing.overlay import contact_sheet, overlay

from ..engine.checkpoints import PICTURES

CELL_WIDTH = 320


def spread(length: int, count: int) -> list[int]:
    """`count` indices from all over a set, first and last image among them; all of a smaller set."""
    return sorted({round(index) for index in np.linspace(0, length - 1, min(count, length))})


def prediction_sheet(samples: Sequence[dict], label_maps: Sequence[np.ndarray], class_names: Sequence[str]) -> Image.Image:
    """Truth and prediction of every sample side by side, two samples in a row.

    Args:
        samples: items `{"image": RGB PIL image, "mask": (H, W) int64, "key": str}`.
        label_maps: what the model says, each of its image's size.
    """
    cells, captions = [], []
    for sample, label_map in zip(samples, label_maps, strict=True):
        cells += [overlay(sample["image"], labels, class_names) for labels in (sample["mask"], label_map)]
        captions += [f"{sample['key']}: mask", "model"]
    return contact_sheet(cells, captions, columns=min(4, len(cells)), cell_width=CELL_WIDTH)


def keep_sheet(sheet: Image.Image, output_dir: str | Path, step: int, accelerator: Accelerator) -> Path:
    """Writes the sheet of a step to `<output_dir>/pictures`, and to every tracker that takes pictures; main process only."""
    path = Path(output_dir) / PICTURES / f"step-{step:06d}.png"
    if accelerator.is_main_process:
        with replace_file(path) as partial:
            sheet.save(partial, format="PNG")
        for tracker in accelerator.trackers:
            if hasattr(tracker, "log_images"):
                tracker.log_images({"predictions": np.asarray(sheet)[None]}, step=step, **tracker_options(tracker.name))
    return path


def tracker_options(name: str) -> dict[str, str]:
    """TensorBoard takes channels first unless it is told."""
    return {"dataformats": "NHWC"} if name == "tensorboard" else {}
