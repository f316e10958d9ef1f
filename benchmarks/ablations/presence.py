"""Does the presence score tell names that are in a picture from names that are not?

    python -m benchmarks.ablations.presence                      # Toyscapes' test scenes, every class asked for in every scene
    python -m benchmarks.ablations.presence my-model --limit 200

Prints the area under the ROC curve over all pairs of scene and class, and what thresholds of `LabelRule.min_presence` keep. A
class is present where it has a pixel in the mask.
"""

import argparse
import sys

import numpy as np
import torch

from hf_clipseg.checkpoints import LoadedCheckpoint, load_checkpoint
from hf_clipseg.processing.label_rules import presence_scores
from training.data.sources import load_source

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5)


@torch.no_grad()
def scores_and_truth(checkpoint: LoadedCheckpoint, source) -> tuple[np.ndarray, np.ndarray]:
    """`(scenes, classes)` presence scores, and whether each class is there."""
    model, processor = checkpoint.model, checkpoint.processor
    scores, truth = [], []
    for index in range(len(source)):
        sample = source[index]
        logits = model(pixel_values=processor(images=sample["image"])["pixel_values"].to(model.device)).logits[0]
        scores.append(presence_scores(logits).cpu().numpy())
        truth.append(np.isin(np.arange(len(logits)), sample["mask"]))
    return np.stack(scores), np.stack(truth)


def auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Probability that a present name scores above an absent one; ties count half."""
    _values, positions, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[positions.ravel()]
    present, total = truth.sum(), truth.size
    return float((ranks[truth.ravel()].sum() - present * (present + 1) / 2) / (present * (total - present)))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", nargs="?", default="model_cards/mask-clip-toyscapes", help="with Toyscapes' classes (%(default)s)"
    )
    parser.add_argument("--limit", type=int, default=200, help="scenes (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        checkpoint = load_checkpoint(options.model)
        scores, truth = scores_and_truth(checkpoint, load_source("toyscapes", "test", limit=options.limit))
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"AUROC {auroc(scores, truth):.4f} over {truth.size} names, {truth.mean():.1%} of them present")
    print("min_presence  present kept  absent kept")
    for threshold in THRESHOLDS:
        print(f"{threshold:12.2f}  {(scores[truth] >= threshold).mean():12.1%}  {(scores[~truth] >= threshold).mean():11.1%}")


if __name__ == "__main__":
    main()
