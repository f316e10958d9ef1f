"""MTA-CLIP: learnt from masks, mask by mask."""
