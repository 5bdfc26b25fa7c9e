"""A denoiser whose right answer is known, for tests of samplers."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ldm.modules.diffusionmodules.schedule import NoiseSchedule, make_beta_schedule


def ldm_schedule() -> NoiseSchedule:
    """The schedule of the public latent-diffusion models."""
    return NoiseSchedule.from_betas(make_beta_schedule("linear", 1000, 0.00085, 0.012))


@dataclass
class GaussianDenoiser:
    """The exact denoiser of data N(mean, std^2), which remembers what it was shown."""

    mean: float = 1.5
    std: float = 0.4
    parameterization: str = "eps"
    device: torch.device = field(default=torch.device("cpu"))
    schedule: NoiseSchedule = field(default_factory=ldm_schedule)
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def moments(self, a: float) -> tuple[float, float]:
        """Mean and standard deviation of the data noised to alphas_cumprod `a`."""
        return a**0.5 * self.mean, (a * self.std**2 + 1 - a) ** 0.5

    def apply_model(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.seen.append((x, t))
        a = self.schedule.alphas_cumprod[t].double().reshape(-1, *[1] * (x.ndim - 1))
        mean = self.mean if cond is None else self.mean + cond.reshape(a.shape)
        noise = (1 - a).sqrt() * (x - a.sqrt() * mean) / (a * self.std**2 + 1 - a)
        start = (x - (1 - a).sqrt() * noise) / a.sqrt()
        return self.schedule.target(self.parameterization, start, noise, t).to(x.dtype)
