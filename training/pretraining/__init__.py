"""What only pre-training on captions needs."""
