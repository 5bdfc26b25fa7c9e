"""PLMS: "Pseudo Numerical Methods for Diffusion Models on Manifolds" (Liu et al. 2022)."""

from collections import deque
from collections.abc import Callable

from torch import Tensor

from ldm.models.diffusion.sampler import Sampler
from ldm.models.diffusion.sampling import Guide, Jump, Rule, ddim_step, plms_epsilon


class PLMSRule:
    """A DDIM jump along a noise extrapolated from up to three earlier predictions.

    The first jump has none to extrapolate from: it looks ahead with a second pass of the network
    and takes the mean of both ends.
    """

    def __init__(self) -> None:
        self._history: deque[Tensor] = deque(maxlen=3)

    def __call__(
        self, guide: Guide, x: Tensor, jump: Jump, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The latent where `jump` lands and the start it headed for; no noise is drawn."""
        seen = guide.predict(x, jump.t, jump.index)
        if self._history:
            direction = plms_epsilon(seen.noise, self._history)
        else:
            ahead = ddim_step(seen.start, seen.noise, jump.alpha_prev)
            there = guide.predict(ahead, jump.t_prev, jump.index)
            direction = (seen.noise + there.noise) / 2
        self._history.appendleft(seen.noise)
        _, start = guide.read(x, jump.t, direction)
        return ddim_step(start, direction, jump.alpha_prev), start


class PLMSSampler(Sampler):
    """Deterministic sampling of higher order; one more pass of the network than steps."""

    deterministic = True

    def rule(self) -> Rule:
        """A PLMS jump with an empty history."""
        return PLMSRule()
