"""Floor 1: bytes <-> blocks."""
