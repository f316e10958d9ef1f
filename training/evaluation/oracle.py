"""What the frozen features could give: ceilings that are reported beside every score.

- The grid limit: the ground truth as shares on the model's logit grid, up-sampled again. No head on that grid that is
  read out bilinearly can be expected to do much better.
- The oracle probe: multinomial logistic regression on the dense features, fitted with ground truth of the train split.
- The oracle prototypes: the mean feature of each class's ground-truth regions, compared by cosine, as texts are.

What a method adds is the share of the way from its baseline to the oracle. All three use ground truth that the method
never sees; none of them is a method.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from hf_clipseg.constants import IGNORE_INDEX
from hf_clipseg.processing.image_io import batches_of_one_size
from hf_clipseg.processing.upsampling import upsample_argmax

MAX_PATCHES = 150_000
"""Patches that the probe is fitted on at most; more are thinned out evenly."""


WHOLE = (1.0, 1.0)
"""The extent of an image that was not padded: see `SegmentationImageProcessor.content_extents`."""


def padded_size(size: tuple[int, int], extent: tuple[float, float]) -> tuple[int, int]:
    """`(height, width)` of what the model saw, in pixels of the mask, where the mask is the `extent` of it."""
    return round(size[0] / extent[0]), round(size[1] / extent[1])


def grid_shares(
    mask: np.ndarray, grid: tuple[int, int], extent: tuple[float, float] = WHOLE
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(H, W)` class ids -> ids of the K classes present, and their shares of every cell `(K, h, w)`.

    Ignored pixels and padding count for no class, so shares of a cell sum to less than 1 where it has some.
    """
    height, width = padded_size(mask.shape, extent)
    below = ((0, height - mask.shape[0]), (0, width - mask.shape[1]))
    mask = np.pad(mask, below, constant_values=IGNORE_INDEX)
    mask = torch.from_numpy(np.ascontiguousarray(mask)).long()
    ids = mask.unique()
    ids = ids[ids != IGNORE_INDEX]
    shares = [F.interpolate((mask == class_id).float()[None, None], size=grid, mode="area")[0, 0] for class_id in ids]
    return ids, torch.stack(shares) if shares else torch.zeros(0, *grid)


def through_the_grid(mask: np.ndarray, grid: tuple[int, int], extent: tuple[float, float] = WHOLE) -> np.ndarray:
    """The map that a perfect model with logits of size `grid` would give: area average down, bilinear up, argmax."""
    ids, shares = grid_shares(mask, grid, extent)
    if not len(ids):
        return np.zeros_like(mask)
    labels = ids[upsample_argmax(shares, padded_size(mask.shape, extent))].numpy()
    return labels[: mask.shape[0], : mask.shape[1]]


@dataclass
class PatchClassifier:
    """Linear scores of dense features.

    Attributes:
        weight: `(C, D)`.
        bias: `(C,)`, -inf for classes that were not there to be fitted.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def label_map(self, features: torch.Tensor, size: tuple[int, int], extent: tuple[float, float] = WHOLE) -> np.ndarray:
        """`(h, w, D)` features -> `(H, W)` class ids, read out as models are: bilinear, then argmax."""
        scores = features.float().cpu() @ self.weight.T + self.bias
        labels = upsample_argmax(scores.permute(2, 0, 1), padded_size(size, extent)).numpy()
        return labels[: size[0], : size[1]]


def fit_prototypes(features: torch.Tensor, shares: torch.Tensor) -> PatchClassifier:
    """The normalised mean feature of each class, patches weighted by the share of it that the class covers.

    Args:
        features: `(N, D)`, L2-normalised.
        shares: `(N, C)`.
    """
    return PatchClassifier(F.normalize(shares.T @ features, dim=1), _mask_absent(shares))


def fit_linear_probe(
    features: torch.Tensor, shares: torch.Tensor, weight_decay: float = 1e-4, max_iterations: int = 100
) -> PatchClassifier:
    """Multinomial logistic regression on soft labels, by L-BFGS on standardised features; deterministic.

    Minimises `mean cross-entropy + weight_decay / 2 * |W|^2`, W acting on the standardised features; the standardisation
    is folded into the result. Arguments as in `fit_prototypes`.
    """
    mean, deviation = features.mean(0), features.std(0).clamp(min=1e-6)
    inputs, present = (features - mean) / deviation, shares.sum(0) > 0
    targets = shares[:, present]
    weight = torch.zeros(targets.shape[1], features.shape[1], requires_grad=True)
    bias = torch.zeros(targets.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=max_iterations, line_search_fn="strong_wolfe")
    total = targets.sum()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        log_probabilities = (inputs @ weight.T + bias).log_softmax(1)
        loss = -(targets * log_probabilities).sum() / total + weight_decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    scaled = weight.detach() / deviation
    all_weights, all_biases = torch.zeros(len(present), features.shape[1]), _mask_absent(shares)
    all_weights[present] = scaled
    all_biases[present] = bias.detach() - scaled @ mean
    return PatchClassifier(all_weights, all_biases)


def _mask_absent(shares: torch.Tensor) -> torch.Tensor:
    return torch.zeros(shares.shape[1]).masked_fill(shares.sum(0) == 0, -torch.inf)


@torch.no_grad()
def dense_features(model, processor, images) -> list[torch.Tensor]:
    """`(h, w, D)` features on the CPU per image, through the hook that every method has; images of one size at a time."""
    if not hasattr(model, "dense_features"):
        raise ValueError(f"{type(model).__name__} has no dense_features(pixel_values), which --oracle needs; leave it out.")
    features = [None] * len(images)
    for batch in batches_of_one_size(images, len(images)):
        inputs = processor(images=[images[index] for index in batch], return_tensors="pt")
        for index, dense in zip(batch, model.dense_features(inputs["pixel_values"].to(model.device, model.dtype)), strict=True):
            features[index] = dense.float().cpu()
    return features


def collect_patches(samples, model, processor, num_images: int, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features `(N, D)` and class shares `(N, C)` of the labelled patches of `samples`, an iterator of source items.

    At most `MAX_PATCHES` in all: images are thinned as they come, so memory does not depend on the data set.
    """
    features, shares = [], []
    quota = max(1, MAX_PATCHES // num_images)
    generator = torch.Generator().manual_seed(0)
    for sample in samples:
        (dense,) = dense_features(model, processor, [sample["image"]])
        (extent,) = processor.image_processor.content_extents([sample["mask"].shape])
        ids, present_shares = grid_shares(sample["mask"], dense.shape[:2], extent)
        image_shares = torch.zeros(dense.shape[0] * dense.shape[1], num_classes)
        image_shares[:, ids] = present_shares.flatten(1).T
        labelled = (image_shares.sum(1) > 0).nonzero()[:, 0]
        chosen = labelled[torch.randperm(len(labelled), generator=generator)[:quota]]
        features.append(dense.flatten(0, 1)[chosen])
        shares.append(image_shares[chosen])
    return torch.cat(features), torch.cat(shares)
