"""The public face that all fast samplers share: choose timesteps, sample, re-noise, decode.

:class:`Sampler` turns the keyword arguments of the public samplers into a guide, a plan and a call
of :func:`~ldm.models.diffusion.sampling.trajectory`. A subclass names its rule.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.models.diffusion.sampling import (
    Condition,
    Denoiser,
    Generators,
    Guide,
    Inpainting,
    NoiseSource,
    OnStep,
    Rule,
    Step,
    plan,
    rows,
    trajectory,
)
from ldm.modules.diffusionmodules.schedule import (
    make_ddim_sampling_parameters,
    make_ddim_timesteps,
    make_karras_timesteps,
    noise_like,
)

Intermediates = dict[str, list[Tensor]]


class Sampler(ABC):
    """A sampler of few steps over a denoiser; cheap to make.

    In :meth:`sample`, `x_T` is the noise to start from, and `normals_sequence` the noise of every
    step, which is otherwise drawn from `generator` (one, or a list with one for each row). Where
    `mask` is 1 the clean latent `x0` is kept. `callback(i)` and `img_callback(pred_x0, i)` run
    after step i, `on_step(i, conditional rows)` before each pass of the network; `revise(step)` may
    replace the latent after a step. `discretize` is how timesteps are spread: uniform, quad,
    trailing or karras. `verbose` shows a progress bar.
    """

    discretize = "uniform"  # How timesteps are spread unless the caller says otherwise.
    deterministic = False  # Whether `eta` must be 0.

    def __init__(self, model: Denoiser, schedule: str = "linear") -> None:
        """The noise levels are the model's own; `schedule` is a public keyword without effect."""
        self.model = model
        self.ddpm_num_timesteps = model.schedule.num_timesteps
        self.ddim_timesteps: np.ndarray | None = None
        self.ddim_eta = 0.0

    @abstractmethod
    def rule(self) -> Rule:
        """A fresh rule for one trajectory."""

    def make_schedule(
        self,
        ddim_num_steps: int,
        ddim_discretize: str | None = None,
        ddim_eta: float = 0.0,
        verbose: bool = True,
    ) -> None:
        """Choose the timesteps to visit and their noise levels (the ``ddim_*`` attributes).

        `ddim_discretize` is how they are spread: uniform, quad, trailing or karras.

        Raises:
            ValueError: for a number of steps outside the schedule, an unknown spacing, or an eta
                that this sampler cannot have.
        """
        if self.deterministic and ddim_eta != 0:
            raise ValueError(
                f"{type(self).__name__} adds no noise: eta must be 0, got {ddim_eta}. "
                "Use DDIMSampler for eta > 0."
            )
        self.ddim_eta = ddim_eta
        a, spread = self.model.schedule.alphas_cumprod, ddim_discretize or self.discretize
        if spread == "karras":
            self.ddim_timesteps = make_karras_timesteps(a, ddim_num_steps)
        else:
            self.ddim_timesteps = make_ddim_timesteps(spread, ddim_num_steps, len(a), verbose)
        self.ddim_sigmas, self.ddim_alphas, self.ddim_alphas_prev = make_ddim_sampling_parameters(
            a, self.ddim_timesteps, ddim_eta, verbose
        )
        self.ddim_sqrt_one_minus_alphas = np.sqrt(1.0 - self.ddim_alphas)

    @property
    def steps(self) -> int:
        """How many timesteps are visited: with some spacings not as many as were asked for."""
        return len(self._visited())

    def _visited(self, use_original_steps: bool = False) -> np.ndarray:
        if use_original_steps:
            return np.arange(self.ddpm_num_timesteps)
        if self.ddim_timesteps is None:
            raise RuntimeError("no timesteps chosen yet: call make_schedule(steps) first")
        return self.ddim_timesteps

    @torch.no_grad()
    def sample(  # noqa: PLR0913, PLR0917 (the public signature)
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Condition = None,
        callback: Callable[[int], None] | None = None,
        normals_sequence: Sequence[Tensor] | Tensor | None = None,
        img_callback: Callable[[Tensor, int], None] | None = None,
        quantize_x0: bool = False,
        eta: float = 0.0,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        score_corrector: Any = None,
        corrector_kwargs: Mapping[str, Any] | None = None,
        verbose: bool = True,
        x_T: Tensor | None = None,
        log_every_t: int = 100,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Condition = None,
        *,
        generator: Generators = None,
        on_step: OnStep | None = None,
        revise: Callable[[Step], Tensor] | None = None,
        discretize: str | None = None,
    ) -> tuple[Tensor, Intermediates]:
        """Latents (batch_size, *shape) from noise, and some on the way (see the class)."""
        self.make_schedule(S, discretize, eta, verbose=False)
        x = start_latent(self.model, (batch_size, *shape), x_T, generator)
        guide = Guide(
            self.model,
            check_rows(conditioning, batch_size),
            unconditional_conditioning,
            unconditional_guidance_scale,
            on_step,
            self._corrector(score_corrector, conditioning, corrector_kwargs),
            quantizer(self.model) if quantize_x0 else None,
        )
        noise = NoiseSource(generator, normals_sequence, temperature, noise_dropout)
        known, visited = make_inpainting(mask, x0), self._visited()
        steps = self._walk(guide, x, visited, noise, known, revise, verbose)
        return collect(steps, x, len(visited), log_every_t, callback, img_callback)

    def _walk(
        self,
        guide: Guide,
        x: Tensor,
        visited: np.ndarray,
        noise: NoiseSource,
        inpainting: Inpainting | None = None,
        revise: Callable[[Step], Tensor] | None = None,
        progress: bool = False,
    ) -> Iterator[Step]:
        """The trajectory of this sampler's rule over `visited` timesteps."""
        jumps = plan(guide.schedule, visited, self.ddim_eta) if len(visited) else []
        return trajectory(
            guide,
            jumps,
            x,
            self.rule(),
            noise=noise,
            inpainting=inpainting,
            revise=revise,
            progress=progress,
        )

    def _corrector(
        self, corrector: Any, cond: Condition, kwargs: Mapping[str, Any] | None
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        if corrector is None:
            return None
        return lambda noise, x, t: corrector.modify_score(
            self.model, noise, x, t, cond, **(kwargs or {})
        )

    @torch.no_grad()
    def stochastic_encode(
        self,
        x0: Tensor,
        t: Tensor | int,
        use_original_steps: bool = False,
        noise: Tensor | None = None,
        *,
        generator: Generators = None,
    ) -> Tensor:
        """Clean latents `x0` noised to the level of visited step number `t`, for :meth:`decode`.

        As in the public sampler this is one visited step noisier than `decode` from `t` assumes,
        except from the very last, which has no noisier neighbour.
        """
        visited = torch.as_tensor(self._visited(use_original_steps), device=x0.device)
        index = torch.as_tensor(t, device=x0.device).clamp(max=len(visited) - 1)
        times = visited[index].expand(len(x0))
        if noise is None:
            noise = noise_like(x0.shape, x0.device, generator=generator)
        return self.model.schedule.q_sample(x0, times, noise.to(x0))

    @torch.no_grad()
    def decode(  # noqa: PLR0913 (the public signature)
        self,
        x_latent: Tensor,
        cond: Condition,
        t_start: int,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Condition = None,
        use_original_steps: bool = False,
        *,
        generator: Generators = None,
        on_step: OnStep | None = None,
        revise: Callable[[Step], Tensor] | None = None,
        verbose: bool = False,
    ) -> Tensor:
        """The clean latents under noisy `x_latent`, by the last `t_start` visited steps."""
        visited = self._visited(use_original_steps)
        if not 0 <= t_start <= len(visited):
            raise ValueError(f"t_start is {t_start}: use 0 to {len(visited)}, the visited steps")
        guide = Guide(
            self.model,
            check_rows(cond, len(x_latent)),
            unconditional_conditioning,
            unconditional_guidance_scale,
            on_step=on_step,
        )
        noise = NoiseSource(generator)
        steps = self._walk(guide, x_latent, visited[:t_start], noise, None, revise, verbose)
        return collect(steps, x_latent, t_start)[0]


def quantizer(model: Any) -> Callable[[Tensor], Tensor]:
    """What puts the nearest entries of the first stage's codebook in place of a predicted start.

    Raises:
        ValueError: when there is no codebook.
    """
    quantize = getattr(getattr(model, "first_stage_model", None), "quantize", None)
    if quantize is None:
        raise ValueError(
            "quantize_x0 and quantize_denoised need a model whose first stage has a codebook, such "
            "as VQModel: leave them out"
        )
    return lambda pred_x0: quantize(pred_x0)[0]


def start_latent(
    model: Denoiser, size: tuple[int, ...], x_T: Tensor | None, generator: Generators
) -> Tensor:
    """The noise a trajectory starts from: `x_T` if given (its shape checked), else drawn."""
    if x_T is None:
        return noise_like(size, model.device, generator=generator)
    if tuple(x_T.shape) != size:
        raise ValueError(f"x_T has shape {tuple(x_T.shape)}; batch size and shape ask for {size}")
    return x_T.to(model.device)


def check_rows(cond: Condition, batch_size: int) -> Condition:
    """`cond`, if it has as many rows as the batch.

    Raises:
        ValueError: otherwise.
    """
    if (given := rows(cond)) not in (None, batch_size):
        raise ValueError(f"the condition has {given} rows for a batch of {batch_size}")
    return cond


def make_inpainting(mask: Tensor | None, x0: Tensor | None) -> Inpainting | None:
    """What to keep, if there is a mask.

    Raises:
        ValueError: for a mask without the latent to keep.
    """
    if mask is None:
        return None
    if x0 is None:
        raise ValueError("a mask says where to keep x0, but no x0 was given")
    return Inpainting(mask, x0)


def collect(
    steps: Iterator[Step],
    x_T: Tensor,
    total: int,
    log_every_t: int = 100,
    callback: Callable[[int], None] | None = None,
    img_callback: Callable[[Tensor, int], None] | None = None,
) -> tuple[Tensor, Intermediates]:
    """Run a trajectory of `total` steps; keep the first and, from the last, every n-th step."""
    x, kept = x_T, {"x_inter": [x_T], "pred_x0": [x_T]}
    for step in steps:
        x = step.x
        if callback is not None:
            callback(step.index)
        if img_callback is not None:
            img_callback(step.pred_x0, step.index)
        if step.index == 0 or (total - 1 - step.index) % log_every_t == 0:
            kept["x_inter"].append(x)
            kept["pred_x0"].append(step.pred_x0)
    return x, kept
