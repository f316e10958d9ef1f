"""Running CLIP on images and on names of classes, and comparing the two."""
