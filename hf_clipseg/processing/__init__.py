"""From pictures and names to what a model takes, and from its logits to label maps."""
