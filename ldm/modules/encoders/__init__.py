"""Encoders of conditions: text, classes, images."""
