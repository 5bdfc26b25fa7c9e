"""Measures of learned words: where they look, what they render."""
