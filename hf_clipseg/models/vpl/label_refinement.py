"""Pseudo labels refined while the segmenter trains, along what its decoder has learnt to find alike.

Paper: WeCLIP, Zhang et al., CVPR 2024, arXiv 2406.11189. With A_f the affinity of the decoder's fused features and A_l CLIP's
attention maps,

    R = A_f / max A_f + mean of those A_l whose distance to A_f is below the average of the layers

takes the place of CLIP's mean attention in class-aware affinity (`affinity.spread`), and so learns with the decoder.

Deviations: what is spread are the labels that stage 2 wrote, not the gradient maps of every step, which would need CLIP's
backward pass where cached features do now; so a class that is nowhere in a mask stays away, and no colours are looked at again.
Attention is that of the patches among themselves, because the cache has no class token. A pixel whose best class has too
small a share is ignored.
"""

import torch
from torch import nn

from ...constants import IGNORE_INDEX
from ...localization.affinity import spread


@torch.no_grad()
def refined_labels(
    labels: torch.Tensor, num_labels: int, relation: torch.Tensor, grid: tuple[int, int], threshold: float, confidence: float
) -> torch.Tensor:
    """Labels moved along `relation`.

    Args:
        labels: `(batch, H, W)` int64, 255 ignored.
        num_labels: label values, from 0 on.
        relation: `(batch, h * w, h * w)`, not negative: how much every patch has to do with every other.
        grid: `(h, w)`.
        threshold: of the boxes out of which labels spread, see `affinity.spread`.
        confidence: pixels whose best label has a smaller share of all labels become 255.

    Returns:
        `(batch, H, W)` int64, with values that the image had before.
    """
    maps = label_shares(labels, num_labels, grid)
    maps = nn.functional.interpolate(spread(maps, relation, threshold), size=labels.shape[-2:], mode="bilinear")
    total = maps.sum(1)
    best, winner = maps.max(1)
    return winner.masked_fill((total == 0) | (best < confidence * total), IGNORE_INDEX)


def label_shares(labels: torch.Tensor, num_labels: int, grid: tuple[int, int]) -> torch.Tensor:
    """`(batch, H, W)` -> the share of every patch that each label covers, `(batch, num_labels, h, w)` float32."""
    members = labels[:, None] == torch.arange(num_labels, device=labels.device).view(1, -1, 1, 1)
    return nn.functional.adaptive_avg_pool2d(members.float(), grid)


def relation_of_patches(affinity: torch.Tensor, attentions: torch.Tensor) -> torch.Tensor:
    """R of the paper, `(batch, n, n)` float32.

    Args:
        affinity: `(batch, n, n)`, the decoder's, in [0, 1].
        attentions: `(batch, layers, n, n)`, CLIP's, averaged over heads; no layer: the affinity alone.
    """
    affinity = affinity.float() / affinity.float().amax((1, 2), keepdim=True)
    if not attentions.shape[1]:
        return affinity
    distances = (attentions - affinity[:, None]).abs().mean((2, 3))
    near = (distances <= distances.mean(1, keepdim=True)).float()
    return affinity + torch.einsum("bl,blij->bij", near / near.sum(1, keepdim=True), attentions.float())
