"""Everything random in a training step, as a function of the step alone.

Image `slot` of step k of run r draws its timestep, its noise and its posterior sample from a
generator seeded by (seed, r, k, slot). So a resumed run repeats an uninterrupted one bit for bit,
the number of workers and of processes changes nothing, and a run packed with others sees exactly
what it would see alone.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.util import step_generator

#: Streams of `step_generator` below this number belong to the datasets (one per slot).
NOISE_STREAM = 1 << 20


class Draws(NamedTuple):
    """Timesteps (b,), noise (b, c, h, w) and posterior noise (b, c, h, w) of one batch."""

    t: Tensor
    noise: Tensor
    posterior: Tensor


def draw(
    batch: Mapping[str, Any],
    shape: Sequence[int],
    timesteps: int,
    *,
    seed: int,
    device: torch.device,
    weights: Tensor | None = None,
) -> Draws:
    """The draws for a batch of latents of `shape` (b, c, h, w).

    Timesteps are drawn uniformly, or as often as `weights` (timesteps,) say. A batch that carries
    no ``step`` (a plain dataset) draws from torch's global generator instead.
    """
    if "step" not in batch:
        noise = torch.randn(2, *shape, device=device)
        times = draw_timesteps(timesteps, weights, shape[:1], device=device)
        return Draws(times, noise[0], noise[1])
    numbers, noise = [], torch.empty(len(batch["step"]), 2, *shape[1:])
    for run, step, slot, one in zip(
        batch["run"].tolist(), batch["step"].tolist(), batch["slot"].tolist(), noise, strict=True
    ):
        generator = step_generator(seed, run, step, NOISE_STREAM + slot)
        numbers.append(_numbers(timesteps, weights, (), generator=generator))
        one.normal_(generator=generator)
    times = _as_timesteps(torch.stack(numbers), weights)
    noise = noise.transpose(0, 1).contiguous().to(device, non_blocking=True)
    return Draws(times.to(device, non_blocking=True), noise[0], noise[1])


def noise_of(shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal noise of `shape` that depends on `seed` alone: that of a sample."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def noise_at_level(latents: Tensor, seed: int, level: int) -> Tensor:
    """Noise like `latents` (b, c, h, w) for one of several noise levels they are looked at.

    Each level has noise of its own, lest its grain stay in the mean over levels; and each picture,
    whatever other pictures there are.
    """
    shape = latents.shape[1:]
    noises = [
        torch.randn(shape, generator=step_generator(seed, 0, level, image))
        for image in range(len(latents))
    ]
    return torch.stack(noises).to(latents)


def draw_timesteps(
    timesteps: int,
    weights: Tensor | None,
    shape: Sequence[int],
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Timesteps of `shape`, uniform or weighted; either way one number is drawn for each."""
    numbers = _numbers(timesteps, weights, shape, generator=generator, device=device)
    return _as_timesteps(numbers, weights)


def _numbers(timesteps: int, weights: Tensor | None, shape: Sequence[int], **source: Any) -> Tensor:
    """Timesteps of `shape` or, where they are weighted, numbers in [0, 1) that choose them.

    `source` is the generator and the device.
    """
    if weights is None:
        return torch.randint(timesteps, tuple(shape), **source)
    return torch.rand(tuple(shape), **source)


def _as_timesteps(numbers: Tensor, weights: Tensor | None) -> Tensor:
    """The timesteps that what `_numbers` drew stands for."""
    if weights is None:
        return numbers
    cumulative = weights.to(numbers.device).cumsum(0)
    return torch.searchsorted(cumulative, numbers.to(cumulative) * cumulative[-1], right=True)


def importance_weights(timesteps: int, skew: float) -> Tensor | None:
    """How often each timestep is drawn: ``f(t) = (1 - skew cos(pi t / T)) / T``, (timesteps,).

    ReVersion's importance sampling, published with a skew of 0.5: the noisy end, where the text
    decides, more often. ``None``, which stands for uniform, for a skew of 0. Sums to one.

    Raises:
        ValueError: when `skew` is outside 0..1.
    """
    if not 0 <= skew <= 1:
        raise ValueError(f"timestep skew {skew}: give a number from 0 (uniform) to 1")
    if not skew:
        return None
    t = torch.arange(timesteps, dtype=torch.float64)
    weights = 1 - skew * torch.cos(math.pi * t / timesteps)
    return weights / weights.sum()
