"""Dense CRF in plain torch: fully connected mean-field inference without a compiled extension.

Paper: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NeurIPS 2011,
arXiv 1210.5644; the filter is that of Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
Eurographics 2010.

Every pixel is connected with every other by two Potts terms, one that falls with distance, one that falls with distance and
difference in colour. A mean-field step filters the class probabilities with both Gaussians. The lattice makes that linear in
the pixels: a pixel spreads its value over the d + 1 corners of the simplex it lies in, the lattice is blurred along its d + 1
axes, and every pixel reads its corners back.

Deviations from the usual C++: corners are found with one sort instead of a hash table, the neighbours of a corner lie at a
constant distance in its packed integer code, and spreading and reading are products with one sparse matrix, so that everything
is a handful of tensor operations. Kernels are normalised symmetrically, as the reference code does by default. All arithmetic
is fp32.
"""

import functools
import warnings

import torch

MINIMUM_PROBABILITY = 1e-6


def dense_crf(
    images: torch.Tensor,
    probabilities: torch.Tensor,
    iterations: int = 5,
    smooth_weight: float = 3.0,
    smooth_distance: float = 3.0,
    colour_weight: float = 10.0,
    colour_distance: float = 80.0,
    colour_difference: float = 13.0,
) -> torch.Tensor:
    """Refines class probabilities with the colours of the image.

    Args:
        images: `(B, 3, H, W)` pixels in 0 .. 255, uint8 or float.
        probabilities: `(B, C, H, W)` at the same size; they are normalised over the classes.
        iterations: mean-field steps; 0 returns the normalised probabilities.
        smooth_weight, smooth_distance: weight and standard deviation (pixels) of the term that ignores colour.
        colour_weight, colour_distance, colour_difference: weight and standard deviations (pixels; levels of 0 .. 255) of the
            term that follows colour edges.

    Returns:
        `(B, C, H, W)` float32, summing to 1 over the classes.
    """
    check_sizes(images, probabilities)
    pairwise = (smooth_weight, smooth_distance), (colour_weight, colour_distance, colour_difference)
    device = probabilities.device
    work_device = device if device.type in ("cpu", "cuda") else "cpu"  # others have no sparse matrices
    rows = zip(images.to(work_device).float(), probabilities.to(work_device).float(), strict=True)
    return torch.stack([_mean_field(image, row, iterations, *pairwise) for image, row in rows]).to(device)


def _mean_field(image, probabilities, iterations: int, smooth, colour) -> torch.Tensor:
    num_classes, height, width = probabilities.shape
    scores = probabilities.flatten(1).T.contiguous().clamp(min=0)  # (pixels, classes), what is read together side by side
    scores = (scores / scores.sum(1, keepdim=True).clamp(min=MINIMUM_PROBABILITY)).clamp(min=MINIMUM_PROBABILITY).log()
    beliefs = scores.softmax(1)
    if iterations == 0 or num_classes == 1:
        return beliefs.T.unflatten(1, (height, width))
    positions = pixel_positions(height, width, image.device)
    colours = image.flatten(1).T / colour[2]
    terms = (
        smoothness_filter(height, width, smooth[1], smooth[0], image.device, scores.dtype),
        SymmetricFilter(torch.cat([positions / colour[1], colours], dim=1), colour[0]),
    )
    for _ in range(iterations):
        total = scores.clone()
        for term in terms:
            term.add_to(total, beliefs)
        beliefs = total.softmax(1)
    return beliefs.T.unflatten(1, (height, width))


@functools.lru_cache(maxsize=2)
def smoothness_filter(
    height: int, width: int, distance: float, weight: float, device: torch.device, dtype: torch.dtype
) -> "SymmetricFilter":
    """The term without colours is the same for all images of a size."""
    return SymmetricFilter(pixel_positions(height, width, device).to(dtype) / distance, weight)


def pixel_positions(height: int, width: int, device=None) -> torch.Tensor:
    """`(height * width, 2)` float coordinates (x, y), row by row."""
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device).float(),
        torch.arange(width, device=device).float(),
        indexing="ij",
    )
    return torch.stack([columns.flatten(), rows.flatten()], dim=1)


class SymmetricFilter:
    """Gaussian filter K over `features (N, d)`, normalised as D^-1/2 K D^-1/2 with D the row sums of K, times `weight`.

    Scale and weight are part of the sparse matrices: pictures are large and lattices small, so every pass over the values of
    all pixels that is saved counts.
    """

    def __init__(self, features: torch.Tensor, weight: float = 1.0):
        self.kernel = PermutohedralLattice(features)
        row_sums = self.kernel(features.new_ones(len(features), 1))[:, 0]
        scale = (row_sums + 1e-20).rsqrt()
        spread, read = self.kernel.spread, self.kernel.read
        spread.values().mul_(scale[spread.col_indices()])
        read.values().mul_((scale * (weight * self.kernel.gain)).repeat_interleave(self.kernel.dimensions + 1))

    def add_to(self, total: torch.Tensor, values: torch.Tensor) -> None:
        """Adds the filtered `values (N, C)` to `total (N, C)`."""
        total.addmm_(self.kernel.read, self.kernel.blurred(values))


class PermutohedralLattice:
    """Approximates sum_j exp(-|f_i - f_j|^2 / 2) v_j for all i at once.

    Args:
        features: `(N, d)`, already divided by the standard deviations.

    Raises:
        ValueError: the features span so many cells that a corner has no 63-bit code (tiny standard deviations).
    """

    def __init__(self, features: torch.Tensor):
        self.dimensions = features.shape[1]
        if features.abs().amax() > 1e6:  # positions within a cell would be lost to rounding
            raise ValueError(f"Features reach {features.abs().amax():.3g} standard deviations; use larger standard deviations.")
        corners, weights = simplex_corners(features.float())  # (N, d + 1, d), (N, d + 1)
        strides, codes = pack(corners)
        in_order, order = codes.sort(stable=True)  # one sort for the ids, and for all points of a corner side by side
        self.codes, ids, counts = in_order.unique_consecutive(return_inverse=True, return_counts=True)
        self.read = self._matrix(torch.empty_like(ids).scatter_(0, order, ids), weights, len(features))
        self.spread = self._transposed(order, counts, weights, len(features))
        self.neighbours = self._neighbours(strides)  # (d + 1, 2, corners)

    def _matrix(self, corner_ids: torch.Tensor, weights: torch.Tensor, points: int) -> torch.Tensor:
        """`(N, corners)`: how much of every corner a point reads."""
        row_starts = torch.arange(0, corner_ids.numel() + 1, self.dimensions + 1, device=weights.device)
        return sparse_rows(row_starts, corner_ids, weights.flatten(), (points, len(self.codes)))

    def _transposed(self, order: torch.Tensor, counts: torch.Tensor, weights: torch.Tensor, points: int) -> torch.Tensor:
        """`(corners, N)`: how much every point gives to a corner."""
        row_starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        columns = order.div(self.dimensions + 1, rounding_mode="floor")
        return sparse_rows(row_starts, columns, weights.flatten()[order], (len(self.codes), points))

    def _neighbours(self, strides: torch.Tensor) -> torch.Tensor:
        """Along axis j a neighbour differs by -1 in every coordinate but +d in the j-th; the last id stands for none."""
        steps = torch.full((self.dimensions + 1, self.dimensions), -1, device=strides.device)
        steps[: self.dimensions] += (self.dimensions + 1) * torch.eye(self.dimensions, dtype=torch.int64, device=strides.device)
        offsets = (steps * strides).sum(1)
        wanted = self.codes + torch.stack([offsets, -offsets], dim=1)[:, :, None]
        found = torch.searchsorted(self.codes, wanted).clamp(max=len(self.codes) - 1)
        return torch.where(self.codes[found] == wanted, found, len(self.codes))

    @property
    def gain(self) -> float:
        """What the sum over the corners has to be multiplied with: the blur alone would make constants larger."""
        return 1 / (1 + 2.0**-self.dimensions)

    def blurred(self, values: torch.Tensor) -> torch.Tensor:
        """`(N, C)` float32 -> `(corners, C)`: spread over the lattice and blurred along its axes."""
        lattice = torch.nn.functional.pad(self.spread @ values, (0, 0, 0, 1))  # the last row stays 0: a missing neighbour
        for first, second in self.neighbours:
            beside = lattice.index_select(0, first).add_(lattice.index_select(0, second))
            lattice[:-1].add_(beside, alpha=0.5)
        return lattice[:-1]

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """`(N, C)` float32 -> the filtered `(N, C)`."""
        return self.gain * (self.read @ self.blurred(values))


def sparse_rows(row_starts: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """A sparse matrix, row by row: the columns of row i are `columns[row_starts[i] : row_starts[i + 1]]`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(row_starts.int(), columns.int(), values, size=shape, check_invariants=False)


def simplex_corners(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Corners of the lattice simplex around each point, and its barycentric coordinates in them.

    Args:
        features: `(N, d)`.

    Returns:
        `(N, d + 1, d)` int64 lattice coordinates (the last is redundant: they sum to 0) and `(N, d + 1)` weights, summing to 1.
    """
    dimensions = features.shape[1]
    size = dimensions + 1
    elevated = elevate(features)
    multiples = (elevated / size).round()
    remainder = elevated - multiples * size
    rank = ranks(remainder) + multiples.sum(1, keepdim=True).long()
    wrap = (rank < 0).long() - (rank > dimensions).long()  # the rounded point may lie off the plane: step back onto it
    rank = rank + wrap * size
    base = (multiples.long() + wrap) * size

    offset = (elevated - base) / size
    weights = features.new_zeros(len(features), size + 1)
    weights.scatter_add_(1, dimensions - rank, offset)
    weights.scatter_add_(1, size - rank, -offset)
    weights[:, 0] += 1 + weights[:, size]
    colour = torch.arange(size, device=features.device).view(1, size, 1)
    corners = base[:, None, :dimensions] + colour - size * (rank[:, None, :dimensions] > dimensions - colour)
    return corners, weights[:, :size]


def ranks(values: torch.Tensor) -> torch.Tensor:
    """`(N, k)` -> int64: the place of each value in its row, the largest first; among equals the earlier one comes last.

    By comparing all pairs: a sort of so few values costs torch ten times as much.
    """
    columns = values.T.contiguous()
    places = torch.zeros_like(columns, dtype=torch.int64)
    for later in range(1, len(columns)):
        for earlier in range(later):
            larger = columns[earlier] > columns[later]
            places[later] += larger
            places[earlier] += ~larger
    return places.T


def elevate(features: torch.Tensor) -> torch.Tensor:
    """`(N, d)` -> `(N, d + 1)` on the hyperplane that the lattice lies in, scaled so that its blur has unit deviation."""
    dimensions = features.shape[1]
    index = torch.arange(1, dimensions + 1, device=features.device, dtype=features.dtype)
    scaled = features * (2 / 3) ** 0.5 * (dimensions + 1) / (index * (index + 1)).sqrt()
    suffix_sums = scaled.flip(1).cumsum(1).flip(1)  # coordinate j holds the sum of the scaled features j .. d - 1
    later = torch.nn.functional.pad(suffix_sums, (0, 1))
    return later - torch.nn.functional.pad(index * scaled, (1, 0))


def pack(corners: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One integer per corner, linear in its coordinates, with room for the neighbours; returns (strides (d,), codes)."""
    dimensions = corners.shape[-1]
    flat = corners.flatten(0, 1)
    low = flat.amin(0) - dimensions
    extent = flat.amax(0) + dimensions + 1 - low
    if extent.double().log2().sum() > 62:
        raise ValueError(
            f"The features span {extent.tolist()} lattice cells, more than a 63-bit code can tell apart. Use larger standard "
            "deviations, or a smaller image."
        )
    strides = torch.cat([extent.new_ones(1), extent.cumprod(0)[:-1]])
    return strides, ((flat - low) * strides).sum(1)


def check_sizes(images: torch.Tensor, probabilities: torch.Tensor) -> None:
    if images.ndim != 4 or probabilities.ndim != 4 or images.shape[1] != 3 or images[:, 0].shape != probabilities[:, 0].shape:
        raise ValueError(
            f"expected images (B, 3, H, W) and probabilities (B, C, H, W) of one size, got {tuple(images.shape)} and "
            f"{tuple(probabilities.shape)}; resize the probabilities to the images first."
        )
