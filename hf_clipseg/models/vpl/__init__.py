"""VPL: learnt from image labels."""
