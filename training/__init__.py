"""Accelerate training and evaluation scripts; they import `hf_clipseg`, which never imports them."""
