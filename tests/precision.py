"""Comparing two ways to compute the same: in double precision, where rounding and defects are ten powers of ten apart.

A bound for single precision would have to follow every sum, its length, the size of its terms and what comes after it (maps
that are stretched to [0, 1] magnify rounding a thousandfold), and what one build of torch prints says nothing about the next.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest import mock

import torch
from torch import nn

BOUND = 1e-8
"""Relative, or absolute for values of about 1. Rounding in double precision is 1e-16, magnified by a few thousand additions and
by stretching; a term that is missing, doubled or taken from elsewhere shows at 1e-4 and above."""


@contextmanager
def double_precision() -> Iterator[None]:
    """New tensors have 64 bits, and so has what the code asks to have in full precision, `tensor.float()`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(before)


def doubled(module: nn.Module) -> nn.Module:
    """A copy of `module` with weights of 64 bits."""
    return copy.deepcopy(module).double()


def in_double(inputs: Mapping) -> dict:
    """What a model is called with, floats in 64 bits."""
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def assert_same(actual: torch.Tensor, expected: torch.Tensor, name: str | None = None, scale: float = 1.0) -> None:
    """Equal but for rounding in double precision; `scale` is the size of the terms where sums cancel to less.

    Raises:
        AssertionError: they differ, or are not in double precision, where the bound would mean nothing.
    """
    assert actual.dtype == expected.dtype == torch.float64, f"{name}: {actual.dtype} and {expected.dtype}"
    prefix = None if name is None else lambda message: f"{name}: {message}"
    torch.testing.assert_close(actual, expected, rtol=BOUND, atol=BOUND * scale, msg=prefix)
