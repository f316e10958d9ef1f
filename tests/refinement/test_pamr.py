"""PAMR against a naive loop over pixels, and what it must and must not change."""

import numpy as np
import pytest
import torch

from hf_clipseg.refinement.pamr import SOFTNESS, local_affinity, pamr


def pamr_by_loops(image, masks, iterations, dilations):
    """`image (3, H, W)` and `masks (C, H, W)` in float64, neighbour by neighbour."""
    _, height, width = image.shape

    def neighbours(y, x):
        for dilation in dilations:
            for dy in (-dilation, 0, dilation):
                for dx in (-dilation, 0, dilation):
                    if (dy, dx) != (0, 0):
                        yield min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)

    for _ in range(iterations):
        refined = np.zeros_like(masks)
        for y in range(height):
            for x in range(width):
                places = list(neighbours(y, x))
                values = np.array([image[:, j, i] for j, i in places])
                sigma = np.vstack([values, *[image[:, y, x]] * len(dilations)]).std(0, ddof=1)
                kernel = -(np.abs(values - image[:, y, x]) / (SOFTNESS * sigma + 1e-8)).mean(1)
                weights = np.exp(kernel - kernel.max())
                weights /= weights.sum()
                refined[:, y, x] = sum(w * masks[:, j, i] for w, (j, i) in zip(weights, places, strict=True))
        masks = refined
    return masks


@pytest.mark.parametrize("dilations", [(1,), (1, 2), (1, 3, 5)])
def test_parity_with_loops(dilations):
    generator = np.random.default_rng(0)
    images, masks = generator.random((2, 3, 7, 9)), generator.random((2, 4, 7, 9))
    expected = np.stack([pamr_by_loops(*pair, 3, dilations) for pair in zip(images, masks, strict=True)])
    result = pamr(torch.from_numpy(images), torch.from_numpy(masks), 3, dilations)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)


def test_more_classes_than_a_chunk_are_refined_alike():
    image, masks = torch.rand(1, 3, 12, 12), torch.rand(1, 40, 12, 12)
    together = pamr(image, masks, 2)
    alone = torch.cat([pamr(image, masks[:, [channel]], 2) for channel in range(40)], dim=1)
    torch.testing.assert_close(together, alone)


def test_zero_iterations_change_nothing():
    masks = torch.rand(1, 2, 8, 8)
    assert torch.equal(pamr(torch.rand(1, 3, 8, 8), masks, iterations=0), masks)


def test_on_a_constant_image_it_is_a_plain_mean_of_the_neighbours():
    masks = torch.zeros(1, 1, 9, 9)
    masks[0, 0, 4, 4] = 1
    result = pamr(torch.full((1, 3, 9, 9), 7.0), masks, iterations=1, dilations=(1,))
    expected = torch.zeros(9, 9)
    expected[3:6, 3:6] = 1 / 8
    expected[4, 4] = 0
    torch.testing.assert_close(result[0, 0], expected)


def test_weights_are_a_distribution_and_ignore_range_and_offset():
    image = torch.rand(1, 3, 16, 20)
    weights = local_affinity(image)
    assert weights.shape == (1, 48, 16, 20)
    torch.testing.assert_close(weights.sum(1), torch.ones(1, 16, 20))
    torch.testing.assert_close(local_affinity(image * 255 - 40), weights, atol=1e-4, rtol=1e-3)


def test_probabilities_stay_probabilities():
    masks = torch.randn(1, 5, 20, 20).softmax(1)
    result = pamr(torch.rand(1, 3, 20, 20), masks)
    torch.testing.assert_close(result.sum(1), torch.ones(1, 20, 20))
    assert result.min() >= masks.min() - 1e-6 and result.max() <= masks.max() + 1e-6


def two_colours(edge, noise=0.02):
    image = torch.zeros(3, 64, 64)
    image[:, :, edge:] = 1.0
    return image + noise * torch.randn(3, 64, 64)


def test_a_blurred_contour_moves_to_the_edge_of_the_image():
    """Coarse scores put the contour 4 pixels beside the colour edge; PAMR pulls it back."""
    edge = 36
    truth = (torch.arange(64) >= edge).expand(64, 64)
    coarse = torch.zeros(1, 2, 8, 8)
    coarse[:, 0, :, :4], coarse[:, 1, :, 4:] = 2.0, 2.0  # contour at 32
    masks = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear").softmax(1)
    before, after = masks[0].argmax(0) == 1, pamr(two_colours(edge)[None], masks)[0].argmax(0) == 1
    assert (before != truth).float().mean() > 0.05
    assert (after != truth).float().mean() < 0.01


@pytest.mark.parametrize(
    ("images", "masks", "options", "message"),
    [
        ((1, 3, 8, 8), (1, 2, 4, 4), {}, "resize the masks"),
        ((2, 3, 8, 8), (1, 2, 8, 8), {}, "of one size"),
        ((1, 3, 8, 8), (1, 2, 8, 8), {"iterations": -1}, "iterations is -1"),
        ((1, 3, 8, 8), (1, 2, 8, 8), {"dilations": ()}, r"dilations \(\)"),
    ],
)
def test_impossible_input_is_refused(images, masks, options, message):
    with pytest.raises(ValueError, match=message):
        pamr(torch.rand(images), torch.rand(masks), **options)
