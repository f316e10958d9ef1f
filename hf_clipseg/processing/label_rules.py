"""From scores to labels as published protocols do it: names that compete, a threshold, a smallest area, refined scores.

The default of this package is plain: a class scores as its best name, and the best class wins. The training-free papers do
more, and their figures hang on it. In the order in which they do it (SCLIP, arXiv 2312.01597; NACLIP, arXiv 2404.08181):

1. every name keeps a channel of its own, and the scores of all names are up-sampled;
2. NACLIP refines these scores with PAMR, not their softmax;
3. the softmax runs over all names, background words included, and a class takes the best probability of its names;
4. SCLIP drops classes that cover a small part of what is not background;
5. a pixel whose best probability is below a threshold becomes background.

Nothing is held at full resolution for all names at once, except by PAMR, which works on a few at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..refinement.pamr import pamr
from .upsampling import upsample

NAMES_AT_ONCE = 32


@dataclass(frozen=True)
class LabelRule:
    """How scores become labels. The defaults change nothing.

    Args:
        per_name: names compete, one channel each, and are gathered into classes after the softmax; otherwise a class is as
            good as its best name on the model's own grid.
        min_probability: pixels whose best class has a lower probability become `background_id`. 0 turns it off.
        min_presence: classes whose `presence_scores` are lower are taken to be none of the picture's and get no pixel; the most
            present class always stays. 0 turns it off; 0.5 is what MaskCLIP (arXiv 2112.01071) calls prompt denoising.
        min_area: classes that win fewer than this share of all pixels that are not background are dropped. 0 turns it off.
        background_id: the class that takes what the other two leave.
        pamr_iterations: steps of PAMR on the up-sampled scores; 0 turns it off.
        pamr_dilations: pixel distances of its neighbours.
    """

    per_name: bool = False
    min_probability: float = 0.0
    min_presence: float = 0.0
    min_area: float = 0.0
    background_id: int = 0
    pamr_iterations: int = 0
    pamr_dilations: tuple[int, ...] = (8, 16)

    def __post_init__(self):
        object.__setattr__(self, "pamr_dilations", tuple(self.pamr_dilations))
        for name in ("min_probability", "min_presence", "min_area"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share, from 0 (off) to 1.")
        if self.pamr_iterations < 0 or not self.pamr_dilations or min(self.pamr_dilations) < 1:
            raise ValueError(
                f"pamr_iterations is {self.pamr_iterations} (expected >= 0), pamr_dilations {self.pamr_dilations} (each >= 1)."
            )

    @property
    def is_plain(self) -> bool:
        """Whether the best score simply wins."""
        return not (self.per_name or self.min_probability or self.min_presence or self.min_area or self.pamr_iterations)


@torch.no_grad()
def rule_labels(
    scores: torch.Tensor,
    class_ids: Sequence[int] | torch.Tensor | None,
    size: tuple[int, int],
    rule: LabelRule,
    guide: torch.Tensor | None = None,
    extent: tuple[float, float] = (1.0, 1.0),
) -> torch.Tensor:
    """Class ids `(height, width)` int64 of one image.

    Args:
        scores: `(channels, h, w)` logits, already at the scale at which the softmax is meant.
        class_ids: the class of every channel; channel = class where left out.
        size: `(height, width)` of the result.
        rule: what to do.
        guide: `(3, any, any)` the picture for PAMR, in any value range; resized to `size`.
        extent: see `upsampling.upsample`.

    Raises:
        ValueError: PAMR without a guide, or a background that is no class.
    """
    channels = torch.arange(len(scores)) if class_ids is None else torch.as_tensor(class_ids)
    channels = channels.to(scores.device)
    if len(channels) != len(scores):
        raise ValueError(f"Got {len(scores)} channels of scores and {len(channels)} class_ids; every channel needs its class.")
    num_classes = int(channels.max()) + 1
    if (rule.min_probability or rule.min_area) and not 0 <= rule.background_id < num_classes:
        raise ValueError(f"background_id is {rule.background_id}, but there are {num_classes} classes, from 0 on.")
    if rule.pamr_iterations:
        if guide is None:
            raise ValueError("PAMR on scores follows the picture: pass images=[...] with the originals.")
        guide = nn.functional.interpolate(guide[None].float(), size=tuple(size), mode="bilinear", align_corners=False)

    def maps(kept: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for part in kept.split(NAMES_AT_ONCE):
            refined = upsample(scores[part], size, extent)
            if rule.pamr_iterations:
                refined = pamr(guide, refined[None], rule.pamr_iterations, rule.pamr_dilations)[0]
            yield part, refined

    every = torch.arange(len(scores), device=scores.device)
    best, winner, log_total = compete(maps(every))
    labels, kept = channels[winner], torch.ones(num_classes, dtype=torch.bool, device=scores.device)
    for criterion in (present_classes, large_classes):
        kept &= criterion(scores, channels, labels, rule)
        if not kept[labels].all():
            best, winner, _ = compete(maps(every[kept[channels]]))
            labels = channels[winner]
    if rule.min_probability:
        labels = labels.masked_fill((best - log_total).exp() < rule.min_probability, rule.background_id)
    return labels


def compete(maps) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Best score, its channel (the first one wins a tie) and the log of the sum of exponentials, each `(height, width)`.

    Args:
        maps: pairs of channel ids `(n,)` and scores `(n, height, width)`, in the order of the channels.
    """
    best = winner = log_total = None
    for ids, scores in maps:
        score, place = scores.max(dim=0)
        total = scores.logsumexp(dim=0)
        if best is None:
            best, winner, log_total = score, ids[place], total
            continue
        better = score > best
        best, winner = torch.where(better, score, best), torch.where(better, ids[place], winner)
        log_total = torch.logaddexp(log_total, total)
    return best, winner, log_total


def presence_scores(scores: torch.Tensor, class_ids: Sequence[int] | torch.Tensor | None = None) -> torch.Tensor:
    """How sure a method is that each class is in the picture: its probability where it is most probable.

    Args:
        scores: `(channels, h, w)` logits on the model's own grid.
        class_ids: the class of every channel; channel = class where left out.

    Returns:
        `(classes,)` in 0..1.
    """
    best = scores.float().softmax(dim=0).flatten(1).amax(dim=1)
    if class_ids is None:
        return best
    channels = torch.as_tensor(class_ids, device=scores.device)
    return best.new_zeros(int(channels.max()) + 1).scatter_reduce(0, channels, best, reduce="amax")


def present_classes(scores: torch.Tensor, channels: torch.Tensor, _: torch.Tensor, rule: LabelRule) -> torch.Tensor:
    """`(classes,)` bool: the most present class, and every other one that is present enough."""
    presence = presence_scores(scores, channels)
    return presence >= min(rule.min_presence, float(presence.max()))


def large_classes(_: torch.Tensor, channels: torch.Tensor, labels: torch.Tensor, rule: LabelRule) -> torch.Tensor:
    """`(classes,)` bool: the background, and every class above `min_area` of the pixels that are not background."""
    counts = torch.bincount(labels.flatten(), minlength=int(channels.max()) + 1)
    if not rule.min_area:
        return torch.ones_like(counts, dtype=torch.bool)
    counts[rule.background_id] = 0
    large = counts > rule.min_area * counts.sum()
    large[rule.background_id] = True
    return large
