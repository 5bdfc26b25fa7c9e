"""Everything random in a training step, as a function of the step alone.

Image `slot` of step k of run r draws its timestep, its noise and its posterior sample from a
generator seeded by (seed, r, k, slot). So a resumed run repeats an uninterrupted one bit for bit,
the number of workers and of processes changes nothing, and a run packed with others sees exactly
what it would see alone.
"""

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
) -> Draws:
    """The draws for a batch of latents of `shape` (b, c, h, w).

    A batch that carries no ``step`` (a plain dataset) draws from torch's global generator instead.
    """
    if "step" not in batch:
        noise = torch.randn(2, *shape, device=device)
        return Draws(torch.randint(timesteps, (shape[0],), device=device), noise[0], noise[1])
    times, noises = [], []
    for run, step, slot in zip(
        batch["run"].tolist(), batch["step"].tolist(), batch["slot"].tolist(), strict=True
    ):
        generator = step_generator(seed, run, step, NOISE_STREAM + slot)
        times.append(torch.randint(timesteps, (), generator=generator))
        noises.append(torch.randn(2, *shape[1:], generator=generator))
    noise = torch.stack(noises, 1).to(device, non_blocking=True)
    return Draws(torch.stack(times).to(device, non_blocking=True), noise[0], noise[1])
