"""A GPU that is lent per request, as on Spaces with ZeroGPU; anywhere else functions stay as they are."""

import importlib
import importlib.util
from collections.abc import Callable

SECONDS = 60


def on_gpu(function: Callable) -> Callable:
    """`spaces.GPU(function)` where the package `spaces` is installed, otherwise `function` itself."""
    if importlib.util.find_spec("spaces") is None:
        return function
    return importlib.import_module("spaces").GPU(duration=SECONDS)(function)
