"""Rules against their definition, everything at full resolution at once."""

import pytest
import torch
import torch.nn.functional as F

from hf_clipseg.processing import label_rules
from hf_clipseg.processing.image_processing_segmentation import SegmentationImageProcessor
from hf_clipseg.processing.label_rules import LabelRule, presence_scores, rule_labels
from hf_clipseg.refinement.pamr import pamr

CLASS_IDS = [0, 0, 0, 1, 2, 2, 3]  # background has three words, class 2 two names
SIZE = (37, 52)


def by_definition(scores, size, rule, guide=None):
    maps = F.interpolate(scores[None], size=size, mode="bilinear")
    if rule.pamr_iterations:
        picture = F.interpolate(guide[None], size=size, mode="bilinear")
        maps = pamr(picture, maps, rule.pamr_iterations, rule.pamr_dilations)
    probabilities = maps[0].softmax(0)
    members = torch.tensor(CLASS_IDS)
    classes = torch.stack([probabilities[members == index].amax(0) for index in range(4)])
    if rule.min_area:
        winners = F.one_hot(classes.argmax(0), 4)[..., 1:].sum((0, 1))
        classes[1:] *= (winners > rule.min_area * winners.sum()).float()[:, None, None]
    labels = classes.argmax(0)
    labels[classes.amax(0) < rule.min_probability] = rule.background_id
    return labels


@pytest.mark.parametrize("names_at_once", [2, 32])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"min_probability": 0.4},
        {"min_area": 0.3},
        {"min_area": 0.3, "min_probability": 0.4},
        {"pamr_iterations": 3, "pamr_dilations": (2, 4), "min_probability": 0.3},
        {"min_probability": 1.0},
        {"min_area": 1.0},
    ],
)
def test_rules_follow_their_definition(settings, names_at_once, monkeypatch):
    monkeypatch.setattr(label_rules, "NAMES_AT_ONCE", names_at_once)
    rule, guide = LabelRule(per_name=True, **settings), torch.rand(3, 20, 30)
    for _ in range(5):
        scores = 2 * torch.randn(len(CLASS_IDS), 5, 7)
        scores[3] += 1
        own = rule_labels(scores, CLASS_IDS, SIZE, rule, guide)
        assert own.dtype == torch.int64
        assert torch.equal(own, by_definition(scores, SIZE, rule, guide))


def test_a_small_class_gives_its_pixels_to_the_next_best():
    scores = torch.zeros(3, 10, 10)
    scores[1] = 5.0
    scores[2, 0, :5], scores[0, 0, :5] = 9.0, 6.0  # class 2 wins 5 of 100 pixels; the background comes second there
    assert rule_labels(scores, None, (10, 10), LabelRule(min_area=0.04)).unique().tolist() == [1, 2]
    labels = rule_labels(scores, None, (10, 10), LabelRule(min_area=0.06))
    assert labels.unique().tolist() == [0, 1] and (labels[0, :5] == 0).all()


def test_a_batch_in_post_processing_equals_its_images():
    processor = SegmentationImageProcessor(size={"shortest_edge": 32}, size_divisor=8, do_pad=False)
    logits, rule = torch.randn(2, len(CLASS_IDS), 4, 5), LabelRule(per_name=True, min_probability=0.35)
    together = processor.post_process_semantic_segmentation(
        {"logits": logits}, [(40, 50), (20, 25)], rule=rule, class_ids=CLASS_IDS
    )
    for scores, size, own in zip(logits, [(40, 50), (20, 25)], together, strict=True):
        assert torch.equal(own, by_definition(scores, size, rule))
    plain = processor.post_process_semantic_segmentation({"logits": logits}, rule=LabelRule())
    assert torch.equal(torch.stack(plain), logits.argmax(1))


def test_names_that_are_not_in_the_picture_get_no_pixel():
    scores = torch.zeros(3, 2, 2)
    scores[0, 0], scores[1, 1], scores[2, 1, 1] = 4.0, 3.0, 3.5
    probabilities = scores.softmax(0).flatten(1).amax(1)
    assert torch.equal(presence_scores(scores), probabilities)
    assert torch.equal(presence_scores(scores, [1, 0, 0]), torch.stack([probabilities[1:].max(), probabilities[0]]))
    threshold = float(probabilities.sort().values[:2].mean())  # between the least and the second most present
    kept = rule_labels(scores, None, (2, 2), LabelRule(min_presence=threshold))
    assert kept.tolist() == [[0, 0], [1, 1]] and rule_labels(scores, None, (2, 2), LabelRule()).tolist() == [[0, 0], [1, 2]]
    assert rule_labels(scores, None, (2, 2), LabelRule(min_presence=1.0)).unique().tolist() == [0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_probability": 1.2}, "min_probability is 1.2; it is a share, from 0"),
        ({"min_area": -0.1}, "min_area is -0.1"),
        ({"pamr_iterations": -1}, "expected >= 0"),
        ({"pamr_dilations": ()}, "each >= 1"),
    ],
)
def test_impossible_rules_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LabelRule(**settings)


def test_impossible_calls_are_refused():
    scores = torch.randn(4, 3, 3)
    with pytest.raises(ValueError, match="4 channels of scores and 7 class_ids"):
        rule_labels(scores, CLASS_IDS, SIZE, LabelRule())
    with pytest.raises(ValueError, match="pass images"):
        rule_labels(scores, None, SIZE, LabelRule(pamr_iterations=1))
    with pytest.raises(ValueError, match="background_id is 4, but there are 4 classes"):
        rule_labels(scores, None, SIZE, LabelRule(min_probability=0.5, background_id=4))
    with pytest.raises(ValueError, match="exclude each other"):
        SegmentationImageProcessor().post_process_semantic_segmentation(
            {"logits": scores[None]}, None, refinement="pamr", rule=LabelRule(min_probability=0.5)
        )
