"""Where the classes of a tagged image are: gradient maps, prototypes, pseudo labels."""
