"""MVP-SEG+: a student of MVP-SEG's prompts."""
