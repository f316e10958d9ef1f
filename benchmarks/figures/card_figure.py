"""The figure of a card: image, what each checkpoint makes of it, truth, for some test scenes.

    python -m benchmarks.figures.card_figure CHECKPOINT ... --output CHECKPOINT/scenes.png

A checkpoint with groups (CoCu, GroupViT) gets a second column: which regions form which group, and the best class of each.
"""

import argparse
from pathlib import Path

from PIL import Image

from hf_clipseg import CocuForSemanticSegmentation
from hf_clipseg.checkpoints import load_checkpoint
from hf_clipseg.drawing.overlay import contact_sheet, overlay
from hf_clipseg.models.cocu.group_maps import segment_groups
from hf_clipseg.processing.inference import segment
from hf_clipseg.toyscapes import CLASS_NAMES, render

SIZE = 256  # drawn so large; models see it at their own scale
OPACITY = 0.8


def columns(loaded, name: str, image: Image.Image) -> list[tuple[Image.Image, str]]:
    """Prediction of a checkpoint, and its groups where it has any."""
    (label_map,) = segment(loaded.model, loaded.processor, [image])
    found = [(overlay(image, label_map, CLASS_NAMES, OPACITY), name)]
    if isinstance(loaded.model, CocuForSemanticSegmentation):
        groups, names = segment_groups(loaded.model, loaded.processor, image)
        found.append((overlay(image, groups, names, OPACITY), f"{name}: groups"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--scenes", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    loaded = {path.name: load_checkpoint(path) for path in args.checkpoints}
    cells = []
    for index in args.scenes:
        scene = render(7, index, SIZE, SIZE, split="test")
        image = Image.fromarray(scene.image)
        predictions = [cell for name, checkpoint in loaded.items() for cell in columns(checkpoint, name, image)]
        cells += [(image, "image"), *predictions, (overlay(image, scene.mask, CLASS_NAMES, OPACITY), "truth")]
    pictures, captions = zip(*cells, strict=True)
    sheet = contact_sheet(pictures, captions, columns=len(cells) // len(args.scenes), cell_width=SIZE)
    sheet.quantize(160).save(args.output, optimize=True)


if __name__ == "__main__":
    main()
