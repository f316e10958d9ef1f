"""The dense CRF against brute force over all pairs of pixels, and against results published by its authors' code."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_clipseg.refinement.crf import (
    PermutohedralLattice,
    SymmetricFilter,
    dense_crf,
    elevate,
    pixel_positions,
    ranks,
    simplex_corners,
)
from hf_clipseg.refinement.refinements import REFINEMENTS


def crf_by_brute_force(image, probabilities, iterations, smooth, colour):
    """Mean field with the exact kernels, in float64."""
    classes, height, width = probabilities.shape
    positions = pixel_positions(height, width).double()
    colours = image.flatten(1).T.double()

    def kernel(features):
        weights = torch.exp(-(torch.cdist(features, features) ** 2) / 2)
        scale = weights.sum(1, keepdim=True).rsqrt()
        return scale * weights * scale.T

    pairs = (
        (smooth[0], kernel(positions / smooth[1])),
        (
            colour[0],
            kernel(torch.cat([positions / colour[1], colours / colour[2]], dim=1)),
        ),
    )
    scores = probabilities.flatten(1).T.double().log()
    beliefs = scores.softmax(1)
    for _ in range(iterations):
        beliefs = (scores + sum(weight * (matrix @ beliefs) for weight, matrix in pairs)).softmax(1)
    return beliefs.T.reshape(classes, height, width)


def test_the_lattice_is_a_gaussian_filter():
    features = pixel_positions(40, 40) / 4
    values = torch.zeros(1600, 1)
    values[20 * 40 + 20] = 1
    exact = torch.exp(-(torch.cdist(features, features) ** 2) / 2) @ values
    filtered = PermutohedralLattice(features)(values)
    assert np.corrcoef(exact[:, 0], filtered[:, 0])[0, 1] > 0.98


def test_the_kernel_is_normalised_symmetrically():
    """D^-1/2 K D^-1/2, as the reference code does: rows of border pixels sum to less than 1 there, to 1 in D^-1 K."""
    features = pixel_positions(6, 9).double() / 2
    lattice = PermutohedralLattice(features)
    kernel = lattice(torch.eye(len(features)))
    row_sums = kernel.sum(1)
    assert row_sums.max() / row_sums.min() > 1.5  # corners have fewer neighbours, so the two normalisations differ
    expected = kernel / (row_sums[:, None] * row_sums[None]).sqrt()
    filtered = torch.ones_like(expected)
    SymmetricFilter(features.float(), weight=3.0).add_to(filtered, torch.eye(len(features)))
    torch.testing.assert_close(filtered, 1 + 3 * expected)


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_corners_surround_their_point(dimensions):
    features = 3 * torch.randn(200, dimensions, dtype=torch.float64)
    corners, weights = simplex_corners(features)
    assert weights.min() >= -1e-12
    torch.testing.assert_close(weights.sum(1), torch.ones(200, dtype=torch.float64))
    assert all(len(set(map(tuple, simplex.tolist()))) == dimensions + 1 for simplex in corners)
    # The last coordinate is implied; the weighted mean of the corners is the elevated point itself.
    mean = (corners.double() * weights[:, :, None]).sum(1)
    torch.testing.assert_close(mean, elevate(features)[:, :dimensions])


def test_ranks_are_those_of_a_stable_sort():
    for values in (torch.randn(300, 6), torch.randint(0, 3, (300, 6)).float()):  # the second full of equals
        order = values.flip(1).argsort(dim=1, descending=True, stable=True)
        assert torch.equal(ranks(values), order.argsort(dim=1).flip(1))


def test_agrees_with_brute_force():
    generator = torch.Generator().manual_seed(3)
    image = torch.full((3, 20, 24), 60.0)
    image[:, 5:15, 6:18] = 190.0
    image += 6 * torch.randn(3, 20, 24, generator=generator)
    truth = (image[0] > 125).long()
    noise = torch.rand(20, 24, generator=generator) < 0.25
    noisy = torch.where(noise, 1 - truth, truth)
    probabilities = torch.stack([1 - noisy, noisy]).float() * 0.4 + 0.3
    exact = crf_by_brute_force(image, probabilities, 5, (3.0, 3.0), (10.0, 20.0, 13.0))
    result = dense_crf(image[None], probabilities[None], colour_distance=20.0)[0]
    assert (result.argmax(0) == exact.argmax(0)).float().mean() > 0.99
    assert (result.double() - exact).abs().mean() < 0.03
    assert (result.argmax(0) == truth).float().mean() > 0.99 > (noisy == truth).float().mean()


def test_images_of_a_batch_do_not_mix():
    images, probabilities = 255 * torch.rand(3, 3, 12, 16), torch.rand(3, 4, 12, 16)
    together = dense_crf(images, probabilities)
    alone = torch.cat([dense_crf(images[i : i + 1], probabilities[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together.sum(1), torch.ones(3, 12, 16))


def test_no_iterations_normalise_only():
    probabilities = torch.rand(1, 3, 6, 6) + 0.1
    expected = probabilities / probabilities.sum(1, keepdim=True)
    torch.testing.assert_close(dense_crf(torch.zeros(1, 3, 6, 6), 5 * probabilities, iterations=0), expected)


def test_degenerate_inputs_stay_finite():
    for probabilities in (torch.zeros(1, 2, 5, 5), torch.eye(2)[:, None, :].expand(2, 5, 2)[None]):
        result = dense_crf(torch.zeros(1, 3, *probabilities.shape[-2:]), probabilities)
        assert torch.isfinite(result).all()
    assert (dense_crf(torch.zeros(1, 3, 4, 4), torch.rand(1, 1, 4, 4)) == 1).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="one size"):
        dense_crf(torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 4, 4))
    for scale in (1e5, 1e9):
        with pytest.raises(ValueError, match="larger standard deviations"):
            PermutohedralLattice(scale * torch.rand(10, 5))


def test_it_is_registered_for_post_processing():
    assert REFINEMENTS["crf"] is dense_crf


def colour_codes(path) -> np.ndarray:
    pixels = np.array(Image.open(path).convert("RGB")).astype(np.int64)
    return pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]


@pytest.mark.parametrize("image, annotation", [("1", "1"), ("1", "1-b"), ("2", "2"), ("3", "3")])
def test_agrees_with_the_published_results(real_data, image, annotation):
    """pydensecrf's example: rough labels, right with probability 0.7, black is unknown; its settings are our defaults."""
    folder = real_data / "crf_pydensecrf"
    pixels = torch.from_numpy(np.array(Image.open(folder / f"im{image}.png").convert("RGB"))).permute(2, 0, 1)
    rough, published = colour_codes(folder / f"anno{annotation}.png"), colour_codes(folder / f"out{annotation}.png")
    colours = np.unique(rough[rough != 0])
    probabilities = np.full((len(colours), *rough.shape), 0.3 / (len(colours) - 1), dtype=np.float32)
    for index, colour in enumerate(colours):
        probabilities[index][rough == colour] = 0.7
    probabilities[:, rough == 0] = 1 / len(colours)
    labels = colours[dense_crf(pixels[None], torch.from_numpy(probabilities)[None])[0].argmax(0).numpy()]
    agreement = (labels == published).mean()
    print(f"agreement with the published result, photo {annotation}: {100 * agreement:.2f} %")
    assert agreement > 0.995
