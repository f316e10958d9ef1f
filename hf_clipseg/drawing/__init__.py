"""Label maps as pictures and files for people."""
