"""The pixel-text baseline: learnt from masks, pixel by pixel."""
