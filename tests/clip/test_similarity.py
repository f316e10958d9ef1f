"""Maps, synonyms, up-sampling and the shared loss."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_clipseg.clip.similarity import cosine_maps, max_over_synonyms
from hf_clipseg.models.losses import segmentation_cross_entropy
from hf_clipseg.processing import upsampling
from hf_clipseg.processing.upsampling import upsample_argmax


def test_cosine_maps_by_loops():
    patches, names = torch.randn(2, 3, 4, 5), torch.randn(6, 5)
    maps = cosine_maps(patches, names)
    for b, n, y, x in [(0, 0, 0, 0), (1, 5, 2, 3), (1, 2, 0, 3)]:
        torch.testing.assert_close(maps[b, n, y, x], patches[b, y, x] @ names[n])
    per_image = cosine_maps(patches, names.expand(2, -1, -1))
    torch.testing.assert_close(per_image, maps)
    with pytest.raises(ValueError, match="same CLIP checkpoint"):
        cosine_maps(patches, torch.randn(6, 4))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=5), st.randoms())
def test_synonyms_take_the_maximum(counts, random):
    class_ids = [class_id for class_id, count in enumerate(counts) for _ in range(count)]
    random.shuffle(class_ids)
    maps = torch.randn(2, len(class_ids), 2, 3)
    best = max_over_synonyms(maps, torch.tensor(class_ids))
    for class_id in range(len(counts)):
        rows = [row for row, owner in enumerate(class_ids) if owner == class_id]
        assert torch.equal(best[:, class_id], maps[:, rows].amax(dim=1))
    assert torch.equal(max_over_synonyms(maps, class_ids), best)  # plain numbers, as baked classes have them


@pytest.mark.parametrize("budget", [1, 40 * 61 * 3, 2**25])
def test_chunked_argmax_equals_all_at_once(monkeypatch, budget):
    monkeypatch.setattr(upsampling, "MAX_ELEMENTS", budget)
    logits = torch.randn(11, 5, 8)
    logits[7] = logits[2]  # a tie across chunks: the first class wins
    whole = torch.nn.functional.interpolate(logits[None], (40, 61), mode="bilinear", align_corners=False)[0]
    assert torch.equal(upsample_argmax(logits, (40, 61)), whole.argmax(dim=0))


def test_cross_entropy_equals_torch_and_survives_ignored_batches():
    logits = torch.randn(2, 4, 6, 6, requires_grad=True)
    labels = torch.randint(0, 4, (2, 6, 6))
    labels[0, :3] = 255
    for weight in (None, torch.tensor([1.0, 2.0, 0.5, 3.0])):
        expected = torch.nn.functional.cross_entropy(logits, labels, weight=weight, ignore_index=255)
        torch.testing.assert_close(segmentation_cross_entropy(logits, labels, weight), expected)
    loss = segmentation_cross_entropy(logits, torch.full_like(labels, 255))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_wrong_labels_are_named():
    logits = torch.zeros(1, 3, 2, 2)
    for value in (3, -1):
        with pytest.raises(ValueError, match=rf"value {value}, but the model has 3 classes"):
            segmentation_cross_entropy(logits, torch.full((1, 2, 2), value))
    with pytest.raises(ValueError, match="batch=1"):
        segmentation_cross_entropy(logits, torch.zeros(2, 2, 2, dtype=torch.long))
