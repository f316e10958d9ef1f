"""CoCu and GroupViT: learnt from captions."""
