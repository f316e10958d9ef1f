"""What the tests of training commands share."""

import pytest
from accelerate.state import AcceleratorState

from ..tiny import save_tiny_clip


@pytest.fixture
def fresh_accelerate():
    """Every run is a new script to Accelerate, which keeps its settings for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))
