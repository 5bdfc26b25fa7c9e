"""Learning-rate factors for ``torch.optim.lr_scheduler.LambdaLR``, as the public configs name them.

Each class is a function of the step: ``schedule(n)`` is pure, calling the object also remembers
the value and now and then logs it. Give an optimizer a base learning rate of 1.0 to make the
factors absolute rates.
"""

import logging
import math
from collections.abc import Sequence

logger = logging.getLogger(__name__)


class _Schedule:
    """What all factors share: logging, and one call for one step."""

    def __init__(self, verbosity_interval: int = 0) -> None:
        self.verbosity_interval = verbosity_interval
        self.last_lr = 0.0

    def schedule(self, n: int) -> float:
        """The factor at step `n`, from 0."""
        raise NotImplementedError(f"{type(self).__name__} has no schedule")

    def __call__(self, n: int) -> float:
        """The factor at step `n`; logs it every `verbosity_interval` steps (0: never)."""
        self.last_lr = self.schedule(n)
        if self.verbosity_interval > 0 and n % self.verbosity_interval == 0:
            logger.info("step %d: learning rate factor %.4g", n, self.last_lr)
        return self.last_lr


def _warm_up(n: int, steps: int, start: float, top: float) -> float:
    """A straight line from `start` at step 0 to `top` at `steps`."""
    return start + (top - start) * n / steps


class LambdaWarmUpCosineScheduler(_Schedule):
    """A linear rise, then half a cosine down to `lr_min`, which is kept.

    `max_decay_steps` counts from step 0, warm-up included.
    """

    def __init__(
        self,
        warm_up_steps: int,
        lr_min: float,
        lr_max: float,
        lr_start: float,
        max_decay_steps: int,
        verbosity_interval: int = 0,
    ) -> None:
        super().__init__(verbosity_interval)
        if not 0 <= warm_up_steps < max_decay_steps:
            raise ValueError(
                f"warm_up_steps {warm_up_steps} and max_decay_steps {max_decay_steps}: the decay "
                "has to end after the warm-up, 0 <= warm_up_steps < max_decay_steps"
            )
        self.lr_warm_up_steps = warm_up_steps
        self.lr_start, self.lr_min, self.lr_max = lr_start, lr_min, lr_max
        self.lr_max_decay_steps = max_decay_steps

    def schedule(self, n: int) -> float:
        """The factor at step `n`, from 0."""
        if n < self.lr_warm_up_steps:
            return _warm_up(n, self.lr_warm_up_steps, self.lr_start, self.lr_max)
        decay = self.lr_max_decay_steps - self.lr_warm_up_steps
        progress = min((n - self.lr_warm_up_steps) / decay, 1.0)
        return self.lr_min + (self.lr_max - self.lr_min) * 0.5 * (1 + math.cos(progress * math.pi))


class LambdaWarmUpCosineScheduler2(_Schedule):
    """Cycles of a linear rise and a cosine decay, each with lengths and heights of its own.

    The lists have one entry a cycle. After the last cycle its final value is kept.
    """

    def __init__(
        self,
        warm_up_steps: Sequence[int],
        f_min: Sequence[float],
        f_max: Sequence[float],
        f_start: Sequence[float],
        cycle_lengths: Sequence[int],
        verbosity_interval: int = 0,
    ) -> None:
        super().__init__(verbosity_interval)
        given = {
            "warm_up_steps": warm_up_steps,
            "f_min": f_min,
            "f_max": f_max,
            "f_start": f_start,
            "cycle_lengths": cycle_lengths,
        }
        lengths = {name: len(values) for name, values in given.items()}
        if len(set(lengths.values())) != 1 or not cycle_lengths:
            raise ValueError(f"every list needs one entry a cycle, at least one; given {lengths}")
        for warm, length in zip(warm_up_steps, cycle_lengths, strict=True):
            if not 0 <= warm <= length or length < 1:
                raise ValueError(f"a cycle of {length} steps cannot have {warm} warm-up steps")
        self.lr_warm_up_steps, self.cycle_lengths = list(warm_up_steps), list(cycle_lengths)
        self.f_start, self.f_min, self.f_max = list(f_start), list(f_min), list(f_max)

    def _locate(self, n: int) -> tuple[int, int]:
        """The cycle of step `n` and the step within it.

        A boundary belongs to the cycle it ends; later steps stay at the end of the last one.
        """
        for cycle, length in enumerate(self.cycle_lengths):
            if n <= length:
                return cycle, n
            n -= length
        return len(self.cycle_lengths) - 1, self.cycle_lengths[-1]

    def schedule(self, n: int) -> float:
        """The factor at step `n`, from 0."""
        cycle, n = self._locate(n)
        warm_up = self.lr_warm_up_steps[cycle]
        if n < warm_up:
            return _warm_up(n, warm_up, self.f_start[cycle], self.f_max[cycle])
        return self._decay(cycle, n)

    def _decay(self, cycle: int, n: int) -> float:
        """The factor at step `n` of a cycle, after its warm-up."""
        decay = max(1, self.cycle_lengths[cycle] - self.lr_warm_up_steps[cycle])
        progress = (n - self.lr_warm_up_steps[cycle]) / decay
        low, high = self.f_min[cycle], self.f_max[cycle]
        return low + (high - low) * 0.5 * (1 + math.cos(progress * math.pi))


class LambdaLinearScheduler(LambdaWarmUpCosineScheduler2):
    """Cycles of a linear rise and a linear decay.

    The decay is measured over the whole cycle, warm-up included, so it sets in below `f_max`
    (unless `f_min` equals `f_max`, as in the public configs).
    """

    def _decay(self, cycle: int, n: int) -> float:
        """The factor at step `n` of a cycle, after its warm-up."""
        left = (self.cycle_lengths[cycle] - n) / self.cycle_lengths[cycle]
        low, high = self.f_min[cycle], self.f_max[cycle]
        return low + (high - low) * left
