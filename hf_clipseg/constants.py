"""Values that every module must agree on."""

IGNORE_INDEX = 255
"""Label of pixels that take part in no loss and no metric."""
