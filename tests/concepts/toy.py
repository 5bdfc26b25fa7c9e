"""Training steps made by hand: attention from given queries and keys, text from given outputs."""

import torch
from torch import Tensor

from ldm.concepts.objective import TrainStep
from ldm.concepts.recorder import WordAttention, named_positions
from ldm.modules.attention import AttentionSite
from ldm.modules.diffusionmodules.schedule import NoiseSchedule, make_beta_schedule
from ldm.modules.encoders.tokens import NOWHERE, Tokens

SITE = AttentionSite("down", 0, True, "toy")
SCHEDULE = NoiseSchedule.from_betas(make_beta_schedule("linear", 10, 1e-3, 2e-2, 8e-3))
LENGTH = 9
#: Two words and their adjectives in two captions, one word (of two tokens) in the third.
LEARNABLE = [{"<a>": [2], "<b>": [5]}, {"<a>": [3], "<b>": [6]}, {"<b>": [4, 5]}]
BOUND = [{"<a>": [1], "<b>": [4]}, {"<a>": [2], "<b>": [5]}, {"<b>": [3]}]


def tokens(learnable=LEARNABLE, bound=None) -> Tokens:
    """Word positions without text."""
    size = len(learnable)
    return Tokens(
        ids=torch.zeros(size, LENGTH, dtype=torch.long),
        learnable=list(learnable),
        bound=list(bound or [{}] * size),
        offsets=[[NOWHERE] * LENGTH] * size,
    )


def queries_and_keys(size: int, grid=(4, 4), heads: int = 2, width: int = 3) -> tuple:
    """Random q (b, heads, pixels, d) and k (b, heads, tokens, d)."""
    pixels = grid[0] * grid[1]
    return torch.randn(size, heads, pixels, width) * 3, torch.randn(size, heads, LENGTH, width)


def recorded(words, q: Tensor, k: Tensor, grid=(4, 4), **options) -> WordAttention:
    """The recorder after it saw one layer."""
    names = named_positions(words) if hasattr(words, "learnable") else words
    recorder = WordAttention(names, [max(grid)], **options)
    recorder.observe(q, k, 1.0, SITE, grid)
    return recorder


def make_step(size: int, latent=(8, 8), **details) -> TrainStep:
    """A step of `size` images with random prediction and target."""
    prediction = torch.randn(size, 4, *latent, requires_grad=True)
    return TrainStep(
        prediction=prediction,
        target=torch.randn(size, 4, *latent),
        t=torch.arange(size) % 10,
        schedule=SCHEDULE,
        **details,
    )
