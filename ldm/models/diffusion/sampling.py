"""From noise to a latent: pure steps, guidance, and the one loop that every sampler runs.

A *jump* goes from one visited timestep to the next; a *rule* (DDIM, PLMS, DPM-Solver++, ancestral)
says where a jump lands; :func:`trajectory` walks all jumps and yields a :class:`Step` for each.
Symbols as in :mod:`ldm.modules.diffusionmodules.schedule`: `alpha` is alphas_cumprod where a jump
starts and `alpha_prev` where it lands, nearer to the clean latent.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ldm.modules.diffusionmodules.schedule import (
    NoiseSchedule,
    Prediction,
    make_ddim_sampling_parameters,
    noise_like,
)
from ldm.util import progress_bar

#: What a denoiser is conditioned on: a tensor, or a list or mapping of them; rows first.
Condition = Any
#: Where randomness comes from: the global state, one generator, or one for each row.
Generators = torch.Generator | Sequence[torch.Generator] | None
#: Told the number of a jump and the conditional rows before each pass of the network.
OnStep = Callable[[int, slice], None]


class Denoiser(Protocol):
    """The part of a model that samplers see."""

    parameterization: str

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule that the network was trained with."""

    @property
    def device(self) -> torch.device:
        """Where latents must lie."""

    def apply_model(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The network's output for latents `x` (b, ...) at timesteps `t` (b,)."""


@dataclass(frozen=True)
class Jump:
    """One move of a sampler and the noise levels at its two ends; `index` counts from 0."""

    index: int
    t: int
    t_prev: int
    alpha: float
    alpha_prev: float
    sigma: float
    last: bool


@dataclass(frozen=True)
class Step:
    """What a sampler knows after a jump: the new latent, and the clean latent it headed for."""

    index: int
    t: int
    x: Tensor
    pred_x0: Tensor


def plan(schedule: NoiseSchedule, timesteps: Sequence[int] | np.ndarray, eta: float) -> list[Jump]:
    """The jumps over increasing `timesteps`, noisiest first; `eta` as in DDIM, eq. 16."""
    sigmas, alphas, alphas_prev = make_ddim_sampling_parameters(
        schedule.alphas_cumprod, timesteps, eta, verbose=False
    )
    # Plain numbers, read from the device once: the loop then never waits for it.
    steps = [int(t) for t in timesteps]
    rows = zip(steps, [steps[0], *steps], alphas, alphas_prev, sigmas, strict=False)
    levels = [(t, before, float(a), float(b), float(s)) for t, before, a, b, s in rows]
    end = len(levels) - 1
    return [Jump(i, *level, last=i == end) for i, level in enumerate(reversed(levels))]


# Steps -------------------------------------------------------------------------------------------


def ddim_step(
    pred_x0: Tensor,
    pred_noise: Tensor,
    alpha_prev: float,
    sigma: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """Land at `alpha_prev`, `sigma` of the noise there new, the rest predicted (DDIM, eq. 12)."""
    kept = math.sqrt(max(1 - alpha_prev - sigma**2, 0.0))
    x = math.sqrt(alpha_prev) * pred_x0 + kept * pred_noise
    return x if noise is None else x + sigma * noise


def plms_epsilon(noise: Tensor, history: Sequence[Tensor]) -> Tensor:
    """The noise of a linear multistep jump; `history` has the predictions before, newest first.

    Adams-Bashforth of order 2 to 4 by the length of the history (Liu et al. 2022, PNDM, eq. 12).
    """
    weights = {
        0: (1.0,),
        1: (3 / 2, -1 / 2),
        2: (23 / 12, -16 / 12, 5 / 12),
        3: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    }[min(len(history), 3)]
    first, *others = (w * e for w, e in zip(weights, [noise, *history], strict=False))
    return sum(others, first)


def ancestral_step(
    schedule: NoiseSchedule, x: Tensor, pred_x0: Tensor, t: Tensor, noise: Tensor | None
) -> Tensor:
    """Draw x_{t-1} from the posterior of `x` at `t` (b,) and the predicted start (DDPM, alg. 2).

    Without `noise` the result is the posterior's mean, as it must be at the last step.
    """
    mean, _, log_variance = schedule.q_posterior(pred_x0, x, t)
    return mean if noise is None else mean + (0.5 * log_variance).exp() * noise


def dpm_solver_step(
    x: Tensor,
    pred_x0: Tensor,
    alpha: float,
    alpha_prev: float,
    before: tuple[Tensor, float] | None = None,
) -> Tensor:
    """A jump of DPM-Solver++(2M) (Lu et al. 2022, algorithm 2).

    `before` is the start predicted one jump earlier and the alpha there; without it the jump is of
    first order, and equals DDIM's.
    """
    # exp(-h), h the gain in lambda = log(sqrt(a) / sqrt(1 - a)); finite even at alpha_prev = 1.
    decay = math.sqrt((1 - alpha_prev) * alpha / ((1 - alpha) * alpha_prev))
    heading = pred_x0
    if before is not None:
        last_x0, last_alpha = before
        h, last_h = _gain(alpha, alpha_prev), _gain(last_alpha, alpha)
        heading = pred_x0 + h / (2 * last_h) * (pred_x0 - last_x0)
    shrink = math.sqrt((1 - alpha_prev) / (1 - alpha))
    return shrink * x + math.sqrt(alpha_prev) * (1 - decay) * heading


def _gain(alpha: float, alpha_prev: float) -> float:
    """How much log(sqrt(a) / sqrt(1 - a)) grows over a jump."""
    return 0.5 * math.log(alpha_prev / (1 - alpha_prev) * (1 - alpha) / alpha)


# Guidance ----------------------------------------------------------------------------------------


def guided(
    denoiser: Denoiser,
    x: Tensor,
    t: Tensor,
    cond: Condition,
    uncond: Condition = None,
    scale: float = 1.0,
    *,
    index: int = 0,
    on_step: OnStep | None = None,
) -> Tensor:
    """The network's output moved away from the unconditional one (Ho and Salimans 2022).

    uncond + scale (cond - uncond), both halves in one batch with the unconditional one first; a
    scale of 1 or no `uncond` needs one half only. Before the network runs, `on_step` is told the
    number of the jump, `index`, and which rows of the batch are conditional.
    """
    double = uncond is not None and scale != 1.0
    if on_step is not None:
        on_step(index, slice(len(x), 2 * len(x)) if double else slice(0, len(x)))
    if not double:
        return denoiser.apply_model(x, t, cond)
    both = denoiser.apply_model(torch.cat([x, x]), torch.cat([t, t]), join(uncond, cond))
    without, given = both.chunk(2)
    return without + scale * (given - without)


def join(first: Condition, second: Condition) -> Condition:
    """Two conditions of one structure (tensor, list, mapping) as one batch.

    Raises:
        ValueError: when their structures or shapes differ.
    """
    if isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape == second.shape:
        return torch.cat([first, second])
    if isinstance(first, Mapping) and isinstance(second, Mapping) and first.keys() == second.keys():
        return {key: join(first[key], second[key]) for key in first}
    lists = isinstance(first, list | tuple) and isinstance(second, list | tuple)
    if lists and len(first) == len(second):
        return [join(a, b) for a, b in zip(first, second, strict=True)]
    raise ValueError(
        f"the unconditional condition is {_describe(first)} but the condition is "
        f"{_describe(second)}: guidance needs the same structure and shapes in both"
    )


def _describe(cond: Condition) -> str:
    if isinstance(cond, Tensor):
        return f"a tensor {tuple(cond.shape)}"
    if isinstance(cond, Mapping):
        return f"a mapping of {sorted(cond)}"
    if isinstance(cond, list | tuple):
        return f"a list of {len(cond)}"
    return f"{type(cond).__name__}"


def rows(cond: Condition) -> int | None:
    """How many rows a condition has; ``None`` where it holds no tensor."""
    if isinstance(cond, Tensor):
        return len(cond)
    parts = cond.values() if isinstance(cond, Mapping) else cond
    if not isinstance(cond, Mapping | list | tuple):
        return None
    return next((n for n in map(rows, parts) if n is not None), None)


@dataclass(frozen=True)
class Guide:
    """A denoiser with all that decides what it predicts: condition, guidance, and corrections.

    `on_step(index, conditional)` is called before each pass of the network with the number of the
    jump and the conditional rows of the batch: attention controllers listen here. `correct(noise,
    x, t)` may change the predicted noise, `refine(pred_x0)` the predicted start (quantise, clip).
    """

    denoiser: Denoiser
    cond: Condition = None
    uncond: Condition = None
    scale: float = 1.0
    on_step: OnStep | None = None
    correct: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    refine: Callable[[Tensor], Tensor] | None = None
    schedule: NoiseSchedule = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", self.denoiser.schedule)

    def predict(self, x: Tensor, t: int, index: int) -> Prediction:
        """Noise and start that the guided network sees in `x` at timestep `t`, at jump `index`."""
        times = torch.full((len(x),), t, dtype=torch.long, device=x.device)
        output = guided(
            self.denoiser,
            x,
            times,
            self.cond,
            self.uncond,
            self.scale,
            index=index,
            on_step=self.on_step,
        )
        found = self.schedule.prediction(self.denoiser.parameterization, output, x, times)
        if self.correct is not None:
            return self.read(x, t, self.correct(found.noise, x, times))
        return found if self.refine is None else Prediction(found.noise, self.refine(found.start))

    def read(self, x: Tensor, t: int, noise: Tensor) -> Prediction:
        """The prediction that this `noise` in `x` at timestep `t` amounts to."""
        times = torch.full((len(x),), t, dtype=torch.long, device=x.device)
        start = self.schedule.predict_start_from_noise(x, times, noise)
        return Prediction(noise, start if self.refine is None else self.refine(start))


# The loop ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoiseSource:
    """Where the noise of stochastic jumps comes from: `given`, one tensor a jump, or drawn."""

    generator: Generators = None
    given: Sequence[Tensor] | Tensor | None = None
    temperature: float = 1.0
    dropout: float = 0.0

    def draw(self, like: Tensor) -> Tensor:
        """Fresh standard normal noise shaped and placed as `like`."""
        return noise_like(like.shape, like.device, generator=self.generator).to(like.dtype)

    def at(self, index: int, like: Tensor) -> Tensor:
        """The noise of jump `index`, with temperature and dropout."""
        noise = self.draw(like) if self.given is None else self.given[index].to(like)
        if self.dropout > 0:
            # Normal draws decide what is dropped, so that the generator decides everything.
            kept = torch.special.ndtr(self.draw(like)) >= self.dropout
            noise = noise * kept / (1 - self.dropout)
        return self.temperature * noise


@dataclass(frozen=True)
class Inpainting:
    """Keep the clean latent `x0` where `mask` is 1; both broadcast to the latent's shape."""

    mask: Tensor
    x0: Tensor

    def apply(self, schedule: NoiseSchedule, x: Tensor, t: int, noise: Tensor) -> Tensor:
        """`x` with the kept region replaced by `x0` at the noise level of `t`."""
        times = torch.full((len(x),), t, dtype=torch.long, device=x.device)
        known = schedule.q_sample(self.x0.to(x).expand_as(x), times, noise)
        mask = self.mask.to(x)
        return known * mask + x * (1 - mask)


class Rule(Protocol):
    """How one jump is made; a rule may remember earlier jumps, so make one for each trajectory."""

    def __call__(
        self, guide: Guide, x: Tensor, jump: Jump, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The latent where `jump` lands and the start it headed for; `noise` draws when called."""


@torch.no_grad()
def trajectory(
    guide: Guide,
    jumps: Iterable[Jump],
    x: Tensor,
    rule: Rule,
    *,
    noise: NoiseSource | None = None,
    inpainting: Inpainting | None = None,
    revise: Callable[[Step], Tensor] | None = None,
    progress: bool = False,
) -> Iterator[Step]:
    """Walk `jumps` from the noisy latent `x`, yielding every step as it is made.

    `revise` may return another latent to go on with (a local blend, say). Nothing is recorded for
    gradients; who needs one enables it inside the denoiser or `on_step`.
    """
    jumps, noise = list(jumps), noise or NoiseSource()
    if noise.given is not None and len(noise.given) < len(jumps):
        raise ValueError(
            f"noise is given for {len(noise.given)} steps, but {len(jumps)} timesteps are visited"
        )
    for jump in progress_bar(jumps, "sampling" if progress else None):
        if inpainting is not None:
            x = inpainting.apply(guide.schedule, x, jump.t, noise.draw(x))
        drawn = _drawer(noise, jump.index, x)
        x, pred_x0 = rule(guide, x, jump, drawn)
        step = Step(jump.index, jump.t, x, pred_x0)
        if revise is not None:
            x = revise(step)
            step = Step(jump.index, jump.t, x, pred_x0)
        yield step


def _drawer(noise: NoiseSource, index: int, like: Tensor) -> Callable[[], Tensor]:
    return lambda: noise.at(index, like)
