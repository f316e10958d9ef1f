"""Changes a picture in a way that words can tell, and tells it in the caption: "a blurry photo of a cat", "a cat, in the dark".

On the web a prompt such as "a bad photo of a {}" says something about the picture. Where every opening of a caption is chosen
at random, a CLIP learns to ignore all of them, and prompts cannot matter. Half of the pictures that stay as they are get an
opening that is true of any; some captions become a list of tags.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ..curation.tokenization import NounVocabulary

Change = Callable[[torch.Tensor, np.random.Generator], torch.Tensor]

PLAIN_OPENINGS = (
    "a photo of", "a picture of", "an image of", "a view of", "this is", "there is", "you can see", "a good photo of",
    "stock photo ,", "the scene shows", "art of", "a rendering of", "a cartoon of", "a doodle of", "a painting of", "i saw",
    "look ,", "untitled ,", "for sale ,",
)  # fmt: skip
TAGS_RATE = 0.2
"""Of captions with a known noun: these become the nouns alone, in any order."""


@dataclass(frozen=True)
class Style:
    """What is done to a picture `(3, H, W)` in [0, 1], and how a caption says so: before or after what it has to say."""

    change: Change
    openings: tuple[str, ...]
    endings: tuple[str, ...]


def resized(image: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    return F.interpolate(image[None], size=(height, width), mode=mode)[0]


def through(image: torch.Tensor, share: float, mode: str) -> torch.Tensor:
    """The picture at a `share` of its resolution, brought back by `mode`."""
    height, width = image.shape[-2:]
    return resized(resized(image, max(2, round(height * share)), max(2, round(width * share)), "area"), height, width, mode)


def cropped(image: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """A part of 0.6 to 0.8 of the sides, at the size of the whole."""
    height, width = image.shape[-2:]
    sides = [round(side * random.uniform(0.6, 0.8)) for side in (height, width)]
    top, left = (int(random.integers(0, side - part + 1)) for side, part in zip((height, width), sides, strict=True))
    return resized(image[:, top : top + sides[0], left : left + sides[1]], height, width, "bilinear")


def smaller(image: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """The whole at 0.5 to 0.7 of its size, its edges drawn out to the frame."""
    height, width = image.shape[-2:]
    share = random.uniform(0.5, 0.7)
    inner = resized(image, round(height * share), round(width * share), "area")
    top, left = ((outer - part) // 2 for outer, part in zip((height, width), inner.shape[-2:], strict=True))
    margins = (left, width - left - inner.shape[-1], top, height - top - inner.shape[-2])
    return F.pad(inner[None], margins, mode="replicate")[0]


def tiled(image: torch.Tensor, _random: np.random.Generator) -> torch.Tensor:
    """Four copies, two by two."""
    height, width = image.shape[-2:]
    quarter = resized(image, (height + 1) // 2, (width + 1) // 2, "area")
    return quarter.repeat(1, 2, 2)[:, :height, :width]


STYLES: dict[str, Style] = {
    "bright": Style(
        lambda image, random: 1 - (1 - image) * random.uniform(0.35, 0.6),
        ("a bright photo of", "overexposed ,", "a sunny picture of", "shining ,"), (", bright", "in full light"),
    ),
    "dark": Style(
        lambda image, random: image * random.uniform(0.3, 0.55),
        ("a dark photo of", "underexposed ,", "a dim picture of", "in the shadows ,"), (", too dark", "in the dark"),
    ),
    "blurry": Style(
        lambda image, random: through(image, random.uniform(0.2, 0.3), "bilinear"),
        ("a blurry photo of", "a low resolution photo of", "out of focus ,", "a bad photo of"),
        (", blurry", "but out of focus"),
    ),
    "pixelated": Style(
        lambda image, random: through(image, random.uniform(0.15, 0.25), "nearest"),
        ("a pixelated photo of", "a jpeg corrupted photo of", "in a video game ,"), (", pixelated", "in pixels"),
    ),
    "grey": Style(
        lambda image, _random: image.mean(0, keepdim=True).expand(3, -1, -1),
        ("a black and white photo of", "a sketch of", "an old photo of"), (", black and white", "without colours"),
    ),
    "negative": Style(
        lambda image, _random: 1 - image,
        ("a negative of", "graffiti of", "a tattoo of"), (", negative", "in inverted colours"),
    ),
    "close": Style(
        cropped, ("a cropped photo of", "a close-up of", "a detail of", "zoomed in on"), (", cropped", "up close"),
    ),
    "far": Style(
        smaller, ("a photo of a small", "a hard to see photo of", "far away ,", "a tiny picture of"),
        (", small", "from afar", "in the background"),
    ),
    "many": Style(
        tiled, ("a photo of many", "four times", "a pattern of", "many copies of"), (", many times", ", again and again"),
    ),
}  # fmt: skip


class CaptionStyles:
    """`styles(image, caption, random)` -> an image and a caption that fit each other.

    Args:
        rate: share of the pictures that are changed; the others may get an opening that says nothing.
        nouns: of captions that become tags; None: none do.
    """

    def __init__(self, rate: float, nouns: NounVocabulary | None = None):
        if not 0 <= rate <= 1:
            raise ValueError(f"--caption_styles is a share of the pictures, so between 0 and 1, not {rate}")
        self.rate, self.nouns = rate, nouns

    def __call__(self, image: torch.Tensor, caption: str, random: np.random.Generator) -> tuple[torch.Tensor, str]:
        if random.random() < TAGS_RATE:
            caption = self.as_tags(caption, random)
        if random.random() >= self.rate:
            return image, f"{random.choice(PLAIN_OPENINGS)} {caption}" if random.random() < 0.5 else caption
        style = STYLES[list(STYLES)[random.integers(len(STYLES))]]
        if random.random() < 0.6:
            return style.change(image, random), f"{random.choice(style.openings)} {caption}"
        return style.change(image, random), f"{caption} {random.choice(style.endings)}"

    def as_tags(self, caption: str, random: np.random.Generator) -> str:
        """The nouns of a caption by one of their words each; the caption itself where it has none."""
        if self.nouns is None:
            return caption
        found = random.permutation(sorted(self.nouns.find(caption))).astype(int)
        concepts = [self.nouns.concepts[index] for index in found]
        return " , ".join(concept[random.integers(len(concept))] for concept in concepts) or caption


def words_of_styles() -> list[str]:
    """Everything that a style can add, for a tokenizer."""
    return [*PLAIN_OPENINGS, *(text for style in STYLES.values() for text in (*style.openings, *style.endings))]
