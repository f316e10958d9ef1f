"""Moving the boundaries of class maps to the edges of the picture."""
