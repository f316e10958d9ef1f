"""Styles: what is done to the picture is what the caption says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from training.curation.tokenization import NounVocabulary, build_word_tokenizer
from training.pretraining.caption_styles import PLAIN_OPENINGS, STYLES, CaptionStyles, words_of_styles

NOUNS = NounVocabulary([["sea", "ocean"], ["car"]])


def picture(height=12, width=17):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


def told(caption):
    """Names of the styles that a caption tells."""
    return {
        name
        for name, style in STYLES.items()
        if any(caption.startswith(f"{text} ") for text in style.openings)
        or any(caption.endswith(f" {text}") for text in style.endings)
    }


@pytest.mark.parametrize("name", STYLES)
def test_a_changed_picture_keeps_size_and_range_and_differs(name):
    image = picture()
    changed = STYLES[name].change(image, np.random.default_rng(0))
    assert changed.shape == image.shape and changed.min() >= 0 and changed.max() <= 1 + 1e-6
    assert (changed - image).abs().mean() > 0.02


def test_some_changes_by_hand():
    image, random = picture(8, 8), np.random.default_rng(0)
    torch.testing.assert_close(STYLES["negative"].change(image, random), 1 - image)
    torch.testing.assert_close(STYLES["grey"].change(image, random)[2], image.mean(0))
    quarter = F.avg_pool2d(image, 2)
    torch.testing.assert_close(STYLES["many"].change(image, random)[:, 4:, 4:], quarter)
    assert STYLES["dark"].change(image, random).mean() < 0.6 * image.mean()
    assert (1 - STYLES["bright"].change(image, random)).mean() < 0.7 * (1 - image).mean()


def test_the_caption_tells_the_change_and_nothing_else(monkeypatch):
    """Every change leaves its own number in the picture."""
    for number, (name, style) in enumerate(list(STYLES.items())):
        monkeypatch.setitem(STYLES, name, replace(style, change=lambda image, _, number=number: image * 0 + number))
    styles, random, seen = CaptionStyles(1.0), np.random.default_rng(1), set()
    for _ in range(200):
        image, caption = styles(picture(), "a sea beside a car", random)
        assert told(caption) == {list(STYLES)[int(image[0, 0, 0])]} and "a sea beside a car" in caption
        seen |= told(caption)
    assert seen == set(STYLES)


def test_without_a_change_the_picture_stays_and_openings_say_nothing():
    styles, random = CaptionStyles(0.0, NOUNS), np.random.default_rng(2)
    captions = set()
    for _ in range(200):
        image, caption = styles(picture(), "an ocean beside a car", random)
        assert torch.equal(image, picture()) and not told(caption)
        captions.add(caption)
    assert {"an ocean beside a car", "car , sea", "ocean , car"} <= captions
    assert any(caption.startswith(PLAIN_OPENINGS) for caption in captions)


def test_same_numbers_same_pair_and_a_tokenizer_can_know_all_words():
    pairs = [CaptionStyles(0.7, NOUNS)(picture(), "a sea", np.random.default_rng(5)) for _ in range(2)]
    assert torch.equal(pairs[0][0], pairs[1][0]) and pairs[0][1] == pairs[1][1]
    tokenizer = build_word_tokenizer(["a sea", *words_of_styles()])
    assert all(tokenizer.unk_token_id not in tokenizer(text)["input_ids"] for text in words_of_styles())
    with pytest.raises(ValueError, match="between 0 and 1, not 2"):
        CaptionStyles(2)
