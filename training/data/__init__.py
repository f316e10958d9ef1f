"""Images with masks, tags or captions, wherever they come from, and what is cached of them."""
