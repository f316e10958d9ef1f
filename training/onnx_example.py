"""Segments a picture with numpy, Pillow and onnxruntime:  python segment.py picture.jpg labels.png"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def segment(picture: Image.Image, folder: Path) -> np.ndarray:
    """`(height, width)` class ids of a picture; their names are `labels` in preprocessing.json."""
    settings = json.loads((folder / "preprocessing.json").read_text())
    short, long = sorted(picture.size)
    sides = [settings["shortest_edge"], int(settings["shortest_edge"] * long / short)]
    if settings["longest_edge"] and sides[1] > settings["longest_edge"]:
        sides = [int(settings["longest_edge"] * short / long), settings["longest_edge"]]
    size = sides if picture.width > picture.height else sides[::-1]  # (height, width)
    grid = [-(-max(side, 1) // settings["size_divisor"]) * settings["size_divisor"] for side in size]
    size = [max(side, 1) for side in size] if settings["pad"] else grid
    pixels = np.asarray(picture.convert("RGB").resize(size[::-1], settings["resample"]), np.float32) / 255
    pixels = (pixels - np.float32(settings["image_mean"])) / np.float32(settings["image_std"])
    pixels = np.pad(pixels, ((0, grid[0] - size[0]), (0, grid[1] - size[1]), (0, 0))).transpose(2, 0, 1)[None]

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    logits = session.run(None, {"pixel_values": pixels})[0][0]
    shown = (0, 0, logits.shape[2] * size[1] / grid[1], logits.shape[1] * size[0] / grid[0])  # without the padding
    resize = lambda scores: np.asarray(Image.fromarray(scores).resize(picture.size, Image.Resampling.BILINEAR, shown))  # noqa: E731
    return np.stack([resize(scores) for scores in logits]).argmax(axis=0)


if __name__ == "__main__":
    labels = segment(Image.open(sys.argv[1]), Path(__file__).parent)
    Image.fromarray(labels.astype(np.uint8)).save(sys.argv[2])
