"""The presence score on scenes that the shipped CLIP has not seen, with every class asked for in every scene."""

import numpy as np

from benchmarks.ablations.presence import auroc, scores_and_truth
from hf_clipseg.checkpoints import SHIPPED, load_checkpoint
from training.data.sources import load_source


def test_auroc_against_its_definition():
    generator = np.random.default_rng(0)
    scores, truth = generator.integers(0, 6, 40) / 5, generator.random(40) < 0.3
    pairs = [(one > other) + (one == other) / 2 for one in scores[truth] for other in scores[~truth]]
    assert abs(auroc(scores, truth) - np.mean(pairs)) < 1e-12


def test_names_in_the_picture_score_above_those_that_are_not():
    checkpoint = load_checkpoint(SHIPPED / "mask-clip-toyscapes")
    scores, truth = scores_and_truth(checkpoint, load_source("toyscapes", "test", limit=30))
    assert scores.shape == (30, 30) and auroc(scores, truth) >= 0.95  # 0.981 on 200 scenes
