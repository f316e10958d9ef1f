"""Fixtures shared by all tests. No test may reach the network."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_CLIPSEG_TEXT_CACHE", "off")  # no test leaves a file in the home of its user
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import pytest
import torch

from .precision import double_precision


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def in_double_precision():
    """What a test makes and computes has 64 bits; see `tests/precision.py`."""
    with double_precision():
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real photographs and real CLIP outputs, described in CONTRIBUTING.md; tests that need it skip without it."""
    folder = os.environ.get("HF_CLIPSEG_REAL_DATA")
    if not folder:
        pytest.skip("HF_CLIPSEG_REAL_DATA is unset: no real photographs to check against")
    return Path(folder)
