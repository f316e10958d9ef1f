"""The loop, its checkpoints, and how a result is written and published."""
