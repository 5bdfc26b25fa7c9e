"""Latent diffusion that learns new words. Old names outside, new code inside.

Module paths, class names, constructor keywords and checkpoint keys are those of the public
latent-diffusion code base, so that public configs, checkpoints and embedding files work unchanged;
what is behind them is written for this project.
"""

__version__ = "0.1.0"
