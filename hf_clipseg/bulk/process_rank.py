"""Which part of the work is this process's, where `accelerate launch` or `torchrun` started several."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class ProcessRank:
    """
    Args:
        index, count: this process among all, and how many there are.
        local: this process among those of its machine, which is the number of its device.
    """

    index: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls) -> "ProcessRank":
        """What the launcher says; nothing talks to the other processes."""
        index, count, local = (int(os.environ.get(name, value)) for name, value in zip(VARIABLES, (0, 1, 0), strict=True))
        return cls(index, count, local)

    def device(self, name: str) -> str:
        """`cuda` is the device of this process; others, and devices with a number, are what they are."""
        return f"cuda:{self.local}" if name == "cuda" and self.count > 1 else name


VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
