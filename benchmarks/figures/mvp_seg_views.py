"""Do the views of MVP-SEG look at different parts? Measured with Toyscapes' part masks, and drawn.

    python -m benchmarks.figures.mvp_seg_views model_cards/mvp-seg-toyscapes --output views.json \\
        --figure docs/images/mvp-seg-views.png

Of every part (a wheel, a roof): the share of its pixels that each view alone gives to the right object. If views specialised
in parts, each part would have a view that covers it much better than the others do. The spread is compared with that of
hand-written templates, which nobody trained to differ.
"""

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import trange

from hf_clipseg import MvpSegForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.clip.similarity import cosine_maps
from hf_clipseg.drawing.overlay import contact_sheet
from hf_clipseg.processing.upsampling import upsample, upsample_argmax
from hf_clipseg.toyscapes import CLASS_NAMES, PART_NAMES, ToyscapesDataset
from training.engine.provenance import provenance, write_json

HAND_WRITTEN = ("a photo of a {}", "a close-up of a {}", "{} in the background")
MIN_PIXELS = 2000
"""Parts with fewer pixels in all scenes are left out: their shares would be noise."""


class Coverage:
    """Counts, per view and part, the pixels of the part and those that the view gives to the right class."""

    def __init__(self, num_views: int):
        self.right = np.zeros((num_views, len(PART_NAMES)), dtype=np.int64)
        self.total = np.zeros(len(PART_NAMES), dtype=np.int64)
        self.right_views = np.zeros(num_views + 1, dtype=np.int64)  # part pixels by the number of views that are right

    def update(self, view_logits: torch.Tensor, mask: np.ndarray, part_mask: np.ndarray) -> None:
        """`view_logits (views, classes, h, w)` of one scene, and its `(H, W)` masks of classes and parts."""
        right = np.stack([upsample_argmax(logits, mask.shape).numpy() == mask for logits in view_logits])
        on_part = part_mask > 0
        self.total += np.bincount(part_mask[on_part], minlength=len(PART_NAMES))
        self.right_views += np.bincount(right[:, on_part].sum(0), minlength=len(self.right_views))
        for view, correct in enumerate(right):
            self.right[view] += np.bincount(part_mask[on_part & correct], minlength=len(PART_NAMES))

    def figures(self) -> dict:
        """Shares per part and view, and their spread over the views."""
        parts = [part for part in range(1, len(PART_NAMES)) if self.total[part] >= MIN_PIXELS]
        shares = {PART_NAMES[part]: (self.right[:, part] / self.total[part]).tolist() for part in parts}
        return {
            "coverage": shares,
            "mean_spread": statistics.mean(max(row) - min(row) for row in shares.values()),
            "mean_gain_of_the_best_view": statistics.mean(max(row) - statistics.mean(row) for row in shares.values()),
            "share_of_part_pixels_by_number_of_right_views": (self.right_views / self.right_views.sum()).tolist(),
        }


@torch.no_grad()
def measure(model, processor, scenes: ToyscapesDataset) -> dict:
    """Coverage of the learned views and of the hand-written templates on the same scenes."""
    learned, written = Coverage(model.config.num_views), Coverage(len(HAND_WRITTEN))
    prompts = [processor(class_names=list(CLASS_NAMES), templates=template)["input_ids"] for template in HAND_WRITTEN]
    template_embeds = torch.stack([model.clip.encode_text(input_ids) for input_ids in prompts])
    for index in trange(len(scenes), desc="scenes", mininterval=5):
        scene = scenes[index]
        outputs = model(**processor(images=Image.fromarray(scene.image)), output_view_maps=True)
        learned.update(outputs.view_maps[0, 1:], scene.mask, scene.part_mask)
        by_hand = torch.stack([cosine_maps(outputs.patch_embeds, embeds)[0] for embeds in template_embeds])
        written.update(by_hand, scene.mask, scene.part_mask)
    return {"learned": learned.figures(), "hand_written": written.figures()}


def heat(image: np.ndarray, scores: torch.Tensor) -> Image.Image:
    """`image (H, W, 3)` in grey, red where `scores (h, w)` are high within the image."""
    scores = upsample(scores[None], image.shape[:2])[0]
    strength = ((scores - scores.min()) / (scores.max() - scores.min() + 1e-6)).numpy()[..., None] ** 2
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.6 + 90
    return Image.fromarray((grey * (1 - strength) + np.array([220, 30, 40]) * strength).clip(0, 255).astype(np.uint8))


@torch.no_grad()
def draw(model, processor, scenes: ToyscapesDataset, names: list[str]) -> Image.Image:
    """One row per class name: the first scene that shows enough of it, and how far each view sees the class in each place."""
    pictures, captions = [], []
    for name in names:
        class_id = CLASS_NAMES.index(name)
        scene = next(scene for scene in map(scenes.__getitem__, range(len(scenes))) if (scene.mask == class_id).mean() > 0.04)
        outputs = model(**processor(images=Image.fromarray(scene.image)), output_view_maps=True)
        contrasts = outputs.view_maps[0] - outputs.view_maps[0].mean(dim=1, keepdim=True)  # against the other classes
        pictures += [Image.fromarray(scene.image), *(heat(scene.image, view[class_id]) for view in contrasts)]
        pictures.append(heat(scene.image, outputs.logits[0, class_id] - outputs.logits[0].mean(dim=0)))
        captions += [name, "global prompt", *(f"view {view}" for view in range(1, len(contrasts))), "fused, refined"]
    return contact_sheet(pictures, captions, columns=len(pictures) // len(names), cell_width=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a trained MVP-SEG checkpoint with the classes of Toyscapes")
    parser.add_argument("--limit", type=int, default=400, help="test scenes (%(default)s)")
    parser.add_argument("--output", help="JSON file")
    parser.add_argument("--figure", help="PNG file")
    parser.add_argument("--classes", nargs="+", default=["house", "boat", "bus", "lighthouse"], help="rows of the figure")
    arguments = parser.parse_args()
    model = MvpSegForSemanticSegmentation.from_pretrained(arguments.model)
    processor = SegmentationProcessor.from_pretrained(arguments.model)
    scenes = ToyscapesDataset("test", num_samples=arguments.limit)
    if arguments.figure:
        draw(model, processor, scenes, arguments.classes).save(Path(arguments.figure), optimize=True)
    if arguments.output:
        figures = measure(model, processor, scenes)
        write_json(arguments.output, {**figures, **provenance("benchmarks.figures.mvp_seg_views", sys.argv[1:])})
        for kind, values in figures.items():
            print(kind, {key: value for key, value in values.items() if key != "coverage"})
            for part, row in values["coverage"].items():
                print(f"  {part:<10}" + "".join(f"{share:8.3f}" for share in row))


if __name__ == "__main__":
    main()
