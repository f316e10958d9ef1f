"""MVP-SEG: prompts learnt from masks of seen classes."""
