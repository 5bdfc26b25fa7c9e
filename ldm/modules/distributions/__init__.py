"""Distributions that latents are drawn from."""
