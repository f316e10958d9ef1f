"""Pictures of the cards, and figures on photographs."""
