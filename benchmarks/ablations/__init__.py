"""The tables of the cards: one driver per method."""
