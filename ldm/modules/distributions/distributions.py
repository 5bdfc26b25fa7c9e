"""The Gaussian that an image is encoded to (latent diffusion, section 3.1), and divergences."""

import math

import torch
from torch import Tensor

LOG_2PI = math.log(2.0 * math.pi)


def _sum_pixels(x: Tensor) -> Tensor:
    """The sum over all axes but the first: (b, ...) -> (b,)."""
    return x.flatten(1).sum(1)


def _randn_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of the shape of `x`, drawn where the generator lives."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


class DiagonalGaussianDistribution:
    """Independent Gaussians, one for every value of a latent.

    `parameters` (b,2c,h,w) holds the mean and the log-variance, which is clamped to [-30, 20]. A
    deterministic distribution has all its mass at the mean.
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        self.parameters = parameters
        self.deterministic = deterministic
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = torch.zeros_like(self.mean) if deterministic else (0.5 * self.logvar).exp()
        self.var = torch.zeros_like(self.mean) if deterministic else self.logvar.exp()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One latent (b,c,h,w). A CPU `generator` gives the same latent on every device."""
        return self.mean + self.std * _randn_like(self.mean, generator)

    def mode(self) -> Tensor:
        """The most likely latent (b,c,h,w)."""
        return self.mean

    def kl(self, other: "DiagonalGaussianDistribution | None" = None) -> Tensor:
        """The divergence from `other`, or from the standard normal, in nats an image: (b,)."""
        if self.deterministic:
            return self.mean.new_zeros(len(self.mean))
        mean, logvar = self.mean.float(), self.logvar.float()
        if other is None:
            return _sum_pixels(normal_kl(mean, logvar, torch.zeros_like(mean), 0.0))
        return _sum_pixels(normal_kl(mean, logvar, other.mean.float(), other.logvar.float()))

    def nll(self, sample: Tensor) -> Tensor:
        """The negative log-likelihood of latent `sample`, in nats an image: (b,)."""
        if self.deterministic:
            return self.mean.new_zeros(len(self.mean))
        return _sum_pixels(0.5 * (LOG_2PI + self.logvar + (sample - self.mean) ** 2 / self.var))


def normal_kl(
    mean1: Tensor, logvar1: Tensor | float, mean2: Tensor | float, logvar2: Tensor | float
) -> Tensor:
    """The divergence of Gaussian 1 from Gaussian 2, in nats, element by element (broadcast)."""
    difference = torch.as_tensor(logvar1 - logvar2, dtype=mean1.dtype, device=mean1.device)
    precision = torch.exp(-torch.as_tensor(logvar2, dtype=mean1.dtype, device=mean1.device))
    return 0.5 * (difference.exp() - 1.0 - difference + (mean1 - mean2) ** 2 * precision)
