"""DPM-Solver++(2M): "Fast Solver for Guided Sampling of Diffusion Models" (Lu et al. 2022)."""

from collections.abc import Callable

from torch import Tensor

from ldm.models.diffusion.sampler import Sampler
from ldm.models.diffusion.sampling import Guide, Jump, Rule, dpm_solver_step


class DPMSolverRule:
    """A jump of second order in the log signal-to-noise ratio, from this and the last prediction.

    The first jump has no predecessor, and the last spans so large a ratio that extrapolating over
    it overshoots: both are of first order.
    """

    def __init__(self) -> None:
        self._before: tuple[Tensor, float] | None = None

    def __call__(
        self, guide: Guide, x: Tensor, jump: Jump, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The latent where `jump` lands and the start it headed for; no noise is drawn."""
        start = guide.predict(x, jump.t, jump.index).start
        before = None if jump.last else self._before
        landed = dpm_solver_step(x, start, jump.alpha, jump.alpha_prev, before)
        self._before = (start, jump.alpha)
        return landed, start


class DPMSolverSampler(Sampler):
    """Deterministic sampling that needs the fewest steps, crowded towards the clean end."""

    discretize = "karras"
    deterministic = True

    def rule(self) -> Rule:
        """A DPM-Solver++ jump without a predecessor."""
        return DPMSolverRule()
