"""PAMR, pixel-adaptive mask refinement: pulls class maps towards the edges of the image, without training.

Paper: Araslanov & Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020, arXiv 2005.00077.
A pixel looks at its 8 neighbours at each of several dilations. Neighbour j weighs as a softmax over all of them of

    k_ij = - mean over colour channels of |I_i - I_j| / (softness * sigma_i)

with sigma_i the standard deviation of that channel over the neighbourhood, and a map becomes the weighted mean of its
neighbours, several times. Because of sigma, the result does not depend on the range or the offset of the pixel values.

As in the authors' code, sigma counts the pixel itself once per dilation, and borders repeat the edge pixel. Ours: all
arithmetic is fp32, and class maps, which never mix, are refined in chunks: memory is that of the affinity,
`8 * len(dilations)` floats a pixel, and of one chunk.
"""

import torch
import torch.nn.functional as F

DILATIONS = (1, 2, 4, 8, 12, 24)
SOFTNESS = 0.1
CHANNELS_AT_ONCE = 4
_DIRECTIONS = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0))


def pamr(
    images: torch.Tensor,
    masks: torch.Tensor,
    iterations: int = 10,
    dilations: tuple[int, ...] = DILATIONS,
) -> torch.Tensor:
    """Refines soft masks; each pixel stays a convex combination of mask values, so probabilities stay probabilities.

    Args:
        images: `(B, 3, H, W)`, any value range, float or uint8.
        masks: `(B, C, H, W)` scores or probabilities at the same size.
        iterations: 0 returns the masks as they are.
        dilations: pixel distances at which the 8 neighbours are taken.

    Returns:
        `(B, C, H, W)` float32.
    """
    _check(images, masks, iterations, dilations)
    if iterations == 0:
        return masks.float()
    weights = local_affinity(images, dilations)
    chunks = masks.float().split(CHANNELS_AT_ONCE, dim=1)
    return torch.cat([_propagate(chunk, weights, iterations, dilations) for chunk in chunks], dim=1)


def local_affinity(images: torch.Tensor, dilations: tuple[int, ...] = DILATIONS) -> torch.Tensor:
    """`(B, 3, H, W)` images -> `(B, 8 * len(dilations), H, W)` float32 weights that sum to 1 over the neighbours."""
    images = images.float()
    padded = _pad(images, max(dilations))
    count = 9 * len(dilations)
    # Several passes over views of the neighbours: a stack of them would hold 3 * 8 * len(dilations) images.
    mean = sum(_neighbours(padded, dilations), len(dilations) * images) / count
    variance = len(dilations) * (images - mean) ** 2
    for neighbour in _neighbours(padded, dilations):
        variance += (neighbour - mean) ** 2
    scale = SOFTNESS * (variance / (count - 1)).sqrt() + 1e-8
    kernel = [-((images - neighbour).abs() / scale).mean(1) for neighbour in _neighbours(padded, dilations)]
    return torch.stack(kernel, dim=1).softmax(1)


def _propagate(masks, weights, iterations: int, dilations) -> torch.Tensor:
    for _ in range(iterations):
        neighbours = _neighbours(_pad(masks, max(dilations)), dilations)
        refined = torch.zeros_like(masks)
        for neighbour, weight in zip(neighbours, weights.unbind(1), strict=True):
            refined.addcmul_(neighbour, weight[:, None])
        masks = refined
    return masks


def _pad(values: torch.Tensor, margin: int) -> torch.Tensor:
    return F.pad(values, (margin, margin, margin, margin), mode="replicate")


def _neighbours(padded: torch.Tensor, dilations):
    """Views of `padded` (margin = the largest dilation), one per neighbour, aligned with the pixels."""
    margin = max(dilations)
    height, width = padded.shape[-2] - 2 * margin, padded.shape[-1] - 2 * margin
    for dilation in dilations:
        for row, column in _DIRECTIONS:
            top, left = margin + row * dilation, margin + column * dilation
            yield padded[..., top : top + height, left : left + width]


def _check(images, masks, iterations: int, dilations) -> None:
    if images.ndim != 4 or masks.ndim != 4 or images[:, 0].shape != masks[:, 0].shape:
        raise ValueError(
            f"expected images (B, 3, H, W) and masks (B, C, H, W) of one size, got {tuple(images.shape)} and "
            f"{tuple(masks.shape)}; resize the masks to the images first."
        )
    if iterations < 0 or not dilations or min(dilations) < 1:
        raise ValueError(f"iterations is {iterations} (expected >= 0), dilations {tuple(dilations)} (expected >= 1).")
