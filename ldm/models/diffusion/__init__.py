"""Diffusion models and samplers, at the public paths."""
