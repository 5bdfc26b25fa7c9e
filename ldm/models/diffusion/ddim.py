"""DDIM: "Denoising Diffusion Implicit Models" (Song, Meng and Ermon 2021)."""

from collections.abc import Callable

from torch import Tensor

from ldm.models.diffusion.sampler import Sampler
from ldm.models.diffusion.sampling import Guide, Jump, Rule, ddim_step


def ddim_rule(
    guide: Guide, x: Tensor, jump: Jump, noise: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """One jump along the predicted noise, with fresh noise where the plan has a sigma (eq. 12)."""
    seen = guide.predict(x, jump.t, jump.index)
    fresh = noise() if jump.sigma > 0 else None
    return ddim_step(seen.start, seen.noise, jump.alpha_prev, jump.sigma, fresh), seen.start


class DDIMSampler(Sampler):
    """Samples with any `eta` from 0 (deterministic) to 1 (the noise of ancestral sampling)."""

    def rule(self) -> Rule:
        """The DDIM jump; it remembers nothing."""
        return ddim_rule
