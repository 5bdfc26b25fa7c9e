"""Find the noise from which a model draws a given picture, so that real pictures can be edited.

DDIM inversion (Song et al. 2021, sec. 4.3) walks the sampler's steps backwards. Guidance makes the
way there and back differ; null-text inversion (Mokady et al. 2023) learns, for every step, the
unconditional embedding that leads back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.data.images import FILTERS, normalise
from ldm.models.diffusion.ddim import DDIMSampler, ddim_rule
from ldm.models.diffusion.sampler import Sampler
from ldm.models.diffusion.sampling import (
    Condition,
    Guide,
    Jump,
    Rule,
    ddim_step,
    plan,
    trajectory,
)
from ldm.modules.diffusionmodules.schedule import make_ddim_timesteps
from ldm.util import progress_bar


@dataclass(frozen=True)
class Inversion:
    """A way from pictures to noise, and what leads back.

    `path` are the latents (b, c, h, w), clean ones first, after each step towards the noise;
    `nulls` the unconditional embeddings (b, n, d) of every sampling step, noisiest first, which
    belong to the guidance `scale`; none after plain DDIM inversion.
    """

    prompts: tuple[str, ...]
    steps: int
    path: tuple[Tensor, ...] = field(repr=False)
    scale: float = 1.0
    nulls: tuple[Tensor, ...] = field(default=(), repr=False)

    @property
    def noise(self) -> Tensor:
        """The latents that sampling starts from (b, c, h, w)."""
        return self.path[-1]


class NullTextSampler(DDIMSampler):
    """DDIM with an unconditional embedding of its own for every step."""

    def __init__(self, model: Any, nulls: Sequence[Tensor]) -> None:
        super().__init__(model)
        self.nulls = nulls

    def rule(self) -> Rule:
        """The DDIM jump, guided away from the embedding of its step."""

        def jump_from_null(
            guide: Guide, x: Tensor, jump: Jump, noise: Callable[[], Tensor]
        ) -> tuple[Tensor, Tensor]:
            return ddim_rule(replace(guide, uncond=self.nulls[jump.index]), x, jump, noise)

        return jump_from_null


def inversion_rule(rounds: int = 0) -> Rule:
    """The DDIM jump backwards: from where `jump` lands to where it started.

    The noise that the network would see at the start is not known yet; as usual it is taken from
    the latent at hand. Each of the `rounds` asks again with the start that was found (a fixed
    point iteration), after which forth and back agree ever more closely.
    """

    def rule(
        guide: Guide, x: Tensor, jump: Jump, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor]:
        del noise
        found = start = x
        for _ in range(rounds + 1):
            seen = guide.predict(found, jump.t, jump.index).noise
            start = (x - (1 - jump.alpha_prev) ** 0.5 * seen) / jump.alpha_prev**0.5
            found = ddim_step(start, seen, jump.alpha)
        return found, start

    return rule


def sampling_plan(model: Any, steps: int) -> list[Jump]:
    """The jumps of deterministic DDIM sampling in `steps` steps, noisiest first."""
    total = model.schedule.num_timesteps
    visited = make_ddim_timesteps(DDIMSampler.discretize, steps, total, verbose=False)
    return plan(model.schedule, visited, 0.0)


@torch.no_grad()
def ddim_inversion(
    model: Any,
    latents: Tensor,
    prompts: Sequence[str],
    steps: int = 50,
    *,
    rounds: int = 0,
    progress: bool = False,
) -> Inversion:
    """The noise from which DDIM draws `latents` (b, c, h, w) with `prompts`, without guidance."""
    texts = _one_each(prompts, latents)
    guide = Guide(model, model.get_learned_conditioning(texts))
    backwards = sampling_plan(model, steps)[::-1]
    walk = trajectory(guide, backwards, latents, inversion_rule(rounds), progress=progress)
    return Inversion(tuple(texts), steps, (latents, *(step.x for step in walk)))


def _one_each(prompts: Sequence[str], latents: Tensor) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if len(texts) != len(latents):
        raise ValueError(
            f"{len(texts)} prompts for {len(latents)} pictures: give one prompt for each picture"
        )
    return texts


def null_text_inversion(
    model: Any,
    latents: Tensor,
    prompts: Sequence[str],
    steps: int = 50,
    scale: float = 5.0,
    *,
    rounds: int = 10,
    tolerance: float = 1e-5,
    progress: bool = False,
) -> Inversion:
    """DDIM inversion, and the unconditional embeddings with which guided sampling follows it back.

    For every step the embedding is fitted by at most `rounds` steps of Adam, fewer once the mean
    squared distance to the path is below `tolerance` (plus 2e-5 a step, for errors add up). The
    best one is kept, and the next step begins with it.

    Raises:
        ValueError: for a scale of 1, at which the unconditional embedding plays no part.
    """
    if scale == 1.0:
        raise ValueError(
            "null-text inversion fits guided sampling, but a scale of 1 is no guidance: use "
            "ddim_inversion, or a larger scale"
        )
    found = ddim_inversion(model, latents, prompts, steps, progress=progress)
    with torch.no_grad():
        cond = model.get_learned_conditioning(list(found.prompts))
        null = model.get_learned_conditioning([""] * len(latents))
    x, nulls = found.noise, []
    jumps = sampling_plan(model, steps)
    ways = list(zip(jumps, found.path[-2::-1], strict=True))
    for jump, goal in progress_bar(ways, "null-text" if progress else None):
        fit = _Fit(model, jump, scale, x, cond, goal)
        enough = tolerance + 2e-5 * jump.index
        null = fit.improve(null, rounds, 1e-2 * (1 - jump.index / (2 * len(jumps))), enough)
        with torch.no_grad():
            x = fit.land(null)
        nulls.append(null)
    return replace(found, scale=scale, nulls=tuple(nulls))


class _Fit:
    """One guided jump of null-text inversion, as a function of the unconditional embedding."""

    def __init__(
        self, model: Any, jump: Jump, scale: float, x: Tensor, cond: Condition, goal: Tensor
    ) -> None:
        self.model, self.jump, self.scale, self.x, self.goal = model, jump, scale, x, goal
        with torch.no_grad():
            self.given = Guide(model, cond).predict(x, jump.t, jump.index).noise

    def land(self, null: Tensor) -> Tensor:
        """Where the jump lands, guided away from `null` (b, n, d)."""
        jump = self.jump
        guide = Guide(self.model, null)
        without = guide.predict(self.x, jump.t, jump.index).noise
        seen = guide.read(self.x, jump.t, without + self.scale * (self.given - without))
        return ddim_step(seen.start, seen.noise, jump.alpha_prev)

    def improve(self, null: Tensor, rounds: int, rate: float, enough: float) -> Tensor:
        """An embedding from which every picture lands at least as near to its goal as from
        `null`."""
        with torch.enable_grad():
            tried = null.clone().requires_grad_(True)
            optimizer = torch.optim.Adam([tried], lr=rate)
            best, lowest = null, torch.full((len(null),), torch.inf, device=null.device)
            for turn in range(rounds + 1):
                losses = (self.land(tried) - self.goal).square().flatten(1).mean(1)
                better = losses.detach() < lowest
                best = torch.where(better[:, None, None], tried.detach(), best)
                lowest = torch.minimum(lowest, losses.detach())
                if turn == rounds or bool((lowest < enough).all()):
                    break
                (tried.grad,) = torch.autograd.grad(losses.sum(), [tried])
                optimizer.step()
        return best


@torch.no_grad()
def draw(
    model: Any,
    prompts: Sequence[str],
    noise: Tensor,
    steps: int,
    scale: float,
    *,
    nulls: Sequence[Tensor] = (),
    progress: bool = False,
    **hooks: Any,
) -> Tensor:
    """Latents of `prompts` by DDIM from `noise` (b, c, h, w), guided away from the empty prompt.

    Or from the `nulls` of an inversion; there may be several prompts for each inverted picture, all
    first ones before all second ones. `hooks` are those of the sampler.
    """
    sampler: Sampler = DDIMSampler(model)
    if nulls:
        times = len(prompts) // len(nulls[0])
        sampler = NullTextSampler(model, [torch.cat([null] * times) for null in nulls])
    uncond = None if scale == 1.0 else model.get_learned_conditioning([""] * len(prompts))
    latents, _ = sampler.sample(
        steps,
        len(prompts),
        noise.shape[1:],
        model.get_learned_conditioning(list(prompts)),
        x_T=noise,
        verbose=progress,
        unconditional_guidance_scale=scale,
        unconditional_conditioning=uncond,
        **hooks,
    )
    return latents


def reconstruct(
    model: Any, inversion: Inversion, scale: float | None = None, *, progress: bool = False
) -> Tensor:
    """The latents (b, c, h, w) that sampling from an inversion leads back to.

    By default with the guidance that it was made for.
    """
    found = inversion
    scale = found.scale if scale is None else scale
    return draw(
        model, found.prompts, found.noise, found.steps, scale, nulls=found.nulls, progress=progress
    )


# Pictures ----------------------------------------------------------------------------------------


def picture_size(model: Any, longest: int | None = None) -> tuple[int, int]:
    """The longer side of a picture for `model` (its own, unless `longest`), and what sides must
    be multiples of."""
    factor = 2 ** (len(model.first_stage_model.encoder.down) - 1)
    return longest or model.image_size * factor, factor * model.model.diffusion_model.shrinks_by


def fit_image(image: Image.Image, longest: int, multiple: int) -> Tensor:
    """The whole picture (1, 3, h, w) in [-1, 1], its longer side `longest` pixels.

    Nothing is cut off: sides are rounded to multiples of `multiple`, as the network needs them.

    Raises:
        ValueError: when `longest` is no positive multiple itself.
    """
    if longest < multiple or longest % multiple:
        raise ValueError(f"a size of {longest} pixels: give a positive multiple of {multiple}")
    scale = longest / max(image.size)
    width, height = (max(multiple, round(s * scale / multiple) * multiple) for s in image.size)
    pixels = np.asarray(image.resize((width, height), resample=FILTERS["bicubic"]))
    return torch.from_numpy(normalise(pixels)).permute(2, 0, 1)[None].contiguous()
