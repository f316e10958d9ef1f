"""CoCu's concepts: mined from captions, searched, ranked, stored."""
