"""MaskCLIP, SCLIP, ClearCLIP, NACLIP: nothing is trained."""
