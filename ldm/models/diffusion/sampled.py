"""What a latent-diffusion model draws: `sample`, `sample_log` and `log_images`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.ancestral import sample_ddpm
from ldm.models.diffusion.base import DDPM
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.previews import Preview, preview
from ldm.models.diffusion.sampler import quantizer


class SampledDDPM(DDPM):
    """The part of `LatentDiffusion` that samples, by its public names."""

    def latent_shape(self, height: int | None = None, width: int | None = None) -> list[int]:
        """(channels, height, width) of the latents; the config's square unless given."""
        return [self.channels, height or self.image_size, width or self.image_size]

    @torch.no_grad()
    def sample_log(
        self, cond: Any, batch_size: int, ddim: bool = True, ddim_steps: int = 50, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        """Latents sampled with DDIM in `ddim_steps` steps; without `ddim`, over all of them.

        They have the shape of the noise `x_T` where that is given.
        """
        if not ddim:
            kwargs, ddim_steps = {**kwargs, "eta": 1.0}, self.num_timesteps
        x_T = kwargs.get("x_T")
        shape = self.latent_shape() if x_T is None else x_T.shape[1:]
        return DDIMSampler(self).sample(
            ddim_steps, batch_size, shape, cond, verbose=False, **kwargs
        )

    @torch.no_grad()
    def sample(  # noqa: PLR0913, PLR0917 (the public signature)
        self,
        cond: Any,
        batch_size: int = 16,
        return_intermediates: bool = False,
        x_T: Tensor | None = None,
        verbose: bool = True,
        timesteps: int | None = None,
        quantize_denoised: bool = False,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        shape: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Latents of the whole `shape` (b, c, h, w), sampled over all timesteps (`sample_ddpm`).

        With `return_intermediates` also the list of those on the way, from the noise on.
        """
        if shape is None:
            shape = (batch_size, *self.latent_shape()) if x_T is None else x_T.shape
        latents, on_the_way = sample_ddpm(
            self, shape[0], shape[1:], cond, timesteps=timesteps, mask=mask, x0=x0, x_T=x_T,
            verbose=verbose, refine=quantizer(self) if quantize_denoised else None,
            **{"log_every_t": self.log_every_t, **kwargs},
        )  # fmt: skip
        return (latents, on_the_way["x_inter"]) if return_intermediates else latents

    @torch.no_grad()
    def log_images(
        self,
        batch: Mapping[str, Any],
        N: int = 8,
        sample: bool = True,
        ddim_steps: int = 50,
        ddim_eta: float = 0.0,
        unconditional_guidance_scale: float = 3.0,
        seed: int = 0,
        **_: Any,
    ) -> dict[str, Any]:
        """Inputs, reconstructions and guided samples at fixed noise, as images in [-1, 1]."""
        wanted = Preview(N, sample, ddim_steps, ddim_eta, unconditional_guidance_scale, seed)
        return preview(self, batch, wanted)
