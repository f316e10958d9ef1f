"""The figure of VPL's card: image, localisation map, refined pseudo mask, prediction, truth, for a few test scenes.

    python -m benchmarks.figures.vpl_figure model_cards/vpl-toyscapes --output model_cards/vpl-toyscapes/stages.png

The localisation map is that of the scene's smallest tagged class. Pseudo masks know the image's tags; predictions know nothing.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from hf_clipseg import SegmentationProcessor, VplForSemanticSegmentation
from hf_clipseg.drawing.overlay import contact_sheet, overlay
from hf_clipseg.localization.pseudo_labels import pseudo_labels
from hf_clipseg.processing.inference import segment

from ..ablations.vpl_scenes import visible

COLUMNS = 5


def heat(image: Image.Image, saliency: torch.Tensor) -> Image.Image:
    """The image, darker where the map `(h, w)` is low, red where it is high."""
    size = image.size[::-1]
    strength = F.interpolate(saliency[None, None], size=size, mode="bilinear", align_corners=False)[0, 0].numpy()[..., None]
    pixels = np.asarray(image, dtype=np.float32) * (0.35 + 0.3 * (1 - strength)) + strength * np.array([140.0, 10.0, 10.0])
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def row(model, processor, scene, names: list[str]) -> tuple[list[Image.Image], list[str]]:
    image = Image.fromarray(scene.image)
    labels = torch.tensor([[name in visible(scene, names) for name in names]])
    areas = [(scene.mask == label).sum() for label in scene.image_labels]
    smallest = int(scene.image_labels[int(np.argmin(areas))])
    found = model.localize(processor(images=image)["pixel_values"], labels)
    pixels = torch.from_numpy(scene.image.copy()).permute(2, 0, 1)[None]
    pseudo, _ = pseudo_labels(found, pixels, has_background=False)
    (prediction,) = segment(model, processor, [image])
    pictures = [
        image,
        heat(image, found.per_class(len(names))[0, smallest]),
        overlay(image, pseudo[0].numpy(), names, opacity=0.8),
        overlay(image, prediction, names, opacity=0.8),
        overlay(image, scene.mask, names, opacity=0.8),
    ]
    return pictures, ["image", f"map: {names[smallest]}", "pseudo mask (knows the tags)", "prediction", "truth"]


def main() -> None:
    from hf_clipseg.toyscapes import ToyscapesDataset

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--scenes", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    model = VplForSemanticSegmentation.from_pretrained(args.model).eval()
    processor = SegmentationProcessor.from_pretrained(args.model)
    names, test = list(model.config.id2label.values()), ToyscapesDataset("test")
    pictures, captions = [], []
    for index in args.scenes:
        some_pictures, some_captions = row(model, processor, test[index], names)
        pictures += some_pictures
        captions += some_captions
    sheet = contact_sheet(pictures, captions, columns=COLUMNS, cell_width=224)
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(128).save(args.output, optimize=True)


if __name__ == "__main__":
    main()
