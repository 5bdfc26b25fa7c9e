"""Ancestral sampling: "Denoising Diffusion Probabilistic Models" (Ho et al. 2020), algorithm 2."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ldm.models.diffusion.sampler import (
    Intermediates,
    check_rows,
    collect,
    make_inpainting,
    start_latent,
)
from ldm.models.diffusion.sampling import (
    Condition,
    Denoiser,
    Generators,
    Guide,
    Jump,
    NoiseSource,
    OnStep,
    ancestral_step,
    plan,
    trajectory,
)


def ancestral_rule(
    guide: Guide, x: Tensor, jump: Jump, noise: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """One draw from the posterior of the next timestep; the last one is its mean."""
    start = guide.predict(x, jump.t, jump.index).start
    times = torch.full((len(x),), jump.t, dtype=torch.long, device=x.device)
    fresh = noise() if jump.t > 0 else None
    return ancestral_step(guide.schedule, x, start, times, fresh), start


@torch.no_grad()
def sample_ddpm(  # noqa: PLR0913 (keywords of the public samplers)
    model: Denoiser,
    batch_size: int,
    shape: Sequence[int],
    conditioning: Condition = None,
    *,
    timesteps: int | None = None,
    callback: Callable[[int], None] | None = None,
    img_callback: Callable[[Tensor, int], None] | None = None,
    normals_sequence: Sequence[Tensor] | Tensor | None = None,
    mask: Tensor | None = None,
    x0: Tensor | None = None,
    temperature: float = 1.0,
    verbose: bool = True,
    x_T: Tensor | None = None,
    log_every_t: int = 100,
    unconditional_guidance_scale: float = 1.0,
    unconditional_conditioning: Condition = None,
    generator: Generators = None,
    on_step: OnStep | None = None,
    refine: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Intermediates]:
    """Latents (batch_size, *shape) through every timestep, or through the lowest `timesteps`.

    `refine` maps each predicted start (to clip or quantise it); the other keywords mean what they
    mean for :meth:`Sampler.sample <ldm.models.diffusion.sampler.Sampler.sample>`.
    """
    guide = Guide(
        model,
        check_rows(conditioning, batch_size),
        unconditional_conditioning,
        unconditional_guidance_scale,
        on_step=on_step,
        refine=refine,
    )
    available = guide.schedule.num_timesteps
    count = available if timesteps is None else min(timesteps, available)
    x = start_latent(model, (batch_size, *shape), x_T, generator)
    steps = trajectory(
        guide,
        plan(guide.schedule, np.arange(count), eta=1.0),
        x,
        ancestral_rule,
        noise=NoiseSource(generator, normals_sequence, temperature),
        inpainting=make_inpainting(mask, x0),
        progress=verbose,
    )
    return collect(steps, x, count, log_every_t, callback, img_callback)
