"""The noise schedule: how much signal and how much noise there is at every timestep.

Pure functions of tensors after "Denoising Diffusion Probabilistic Models" (Ho et al. 2020, DDPM
below), "Denoising Diffusion Implicit Models" (Song et al. 2021, DDIM) and, for the velocity,
"Progressive Distillation" (Salimans and Ho 2022). :class:`NoiseSchedule` holds every table that a
model saves or uses; nothing here knows a network.

Symbols: ``a`` is alphas_cumprod at t, so that x_t = sqrt(a) x_0 + sqrt(1 - a) eps, and the velocity
v = sqrt(a) eps - sqrt(1 - a) x_0.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ldm.util import append_dims

logger = logging.getLogger(__name__)

#: What a network may be trained to predict: the noise, the clean latent, or the velocity.
PARAMETERIZATIONS = ("eps", "x0", "v")


def make_beta_schedule(
    schedule: str,
    n_timestep: int,
    linear_start: float = 1e-4,
    linear_end: float = 2e-2,
    cosine_s: float = 8e-3,
) -> np.ndarray:
    """The variance of the noise added at each of `n_timestep` steps, in double precision.

    ``linear`` is linear in sqrt(beta), as all public latent-diffusion models use it;
    ``sqrt_linear`` is linear in beta; ``sqrt`` is the square root of that; ``cosine`` is Nichol and
    Dhariwal (2021), eq. 17, with betas at most 0.999.

    Raises:
        ValueError: for another name.
    """
    if schedule == "linear":
        return np.linspace(linear_start**0.5, linear_end**0.5, n_timestep) ** 2
    if schedule == "sqrt_linear":
        return np.linspace(linear_start, linear_end, n_timestep)
    if schedule == "sqrt":
        return np.linspace(linear_start, linear_end, n_timestep) ** 0.5
    if schedule == "cosine":
        phase = (np.arange(n_timestep + 1) / n_timestep + cosine_s) / (1 + cosine_s)
        signal = np.cos(phase * np.pi / 2) ** 2
        return np.clip(1 - signal[1:] / signal[:-1], 0, 0.999)
    raise ValueError(
        f"unknown beta schedule {schedule!r}: use 'linear', 'sqrt_linear', 'sqrt' or 'cosine'"
    )


def make_ddim_timesteps(
    ddim_discr_method: str,
    num_ddim_timesteps: int,
    num_ddpm_timesteps: int,
    verbose: bool = True,
) -> np.ndarray:
    """The timesteps that a fast sampler visits, increasing, all within the schedule.

    ``uniform`` walks with the integer stride N // S and therefore visits more than S steps when S
    does not divide N; ``quad`` puts more steps near the clean end, and visits fewer when neighbours
    coincide. Their steps are shifted by one, away from the almost noiseless step 0, unless that
    would leave the schedule: then they start at 0. ``trailing`` visits exactly S steps and always
    starts sampling from the noisiest one, N - 1.

    Raises:
        ValueError: for another method, or a number of steps outside 1..N.
    """
    wanted, available = num_ddim_timesteps, num_ddpm_timesteps
    _check_count(wanted, available)
    if ddim_discr_method == "uniform":
        steps = np.arange(0, available, available // wanted)
    elif ddim_discr_method == "quad":
        steps = np.unique((np.linspace(0, np.sqrt(0.8 * available), wanted) ** 2).astype(int))
    elif ddim_discr_method == "trailing":
        steps = np.round(np.arange(1, wanted + 1) * (available / wanted)).astype(int) - 1
    else:
        raise ValueError(
            f"unknown spacing of sampling steps {ddim_discr_method!r}: use 'uniform', 'quad' or "
            "'trailing'"
        )
    if ddim_discr_method != "trailing" and steps[-1] + 1 < available:
        steps = steps + 1
    if verbose:
        logger.info("sampling visits %d timesteps: %s", len(steps), steps)
    return steps


def make_karras_timesteps(
    alphacums: Tensor | np.ndarray, num_timesteps: int, rho: float = 7.0
) -> np.ndarray:
    """Timesteps, increasing, that crowd towards the clean end (Karras et al. 2022, eq. 5).

    Even in sigma^(1/rho), sigma = sqrt((1 - a) / a), from the noisiest step on. Fewer than
    `num_timesteps` when several round to one step of the schedule.

    Raises:
        ValueError: for a number of steps outside 1..N.
    """
    a = np.asarray(torch.as_tensor(alphacums).detach().cpu(), dtype=np.float64)
    _check_count(num_timesteps, len(a))
    log_sigmas = 0.5 * np.log((1 - a) / a)
    top, bottom = np.exp(log_sigmas[[-1, 0]] / rho)
    wanted = rho * np.log(np.linspace(top, bottom, num_timesteps + 1)[:-1])
    return np.unique(np.round(np.interp(wanted, log_sigmas, np.arange(len(a)))).astype(int))


def _check_count(wanted: int, available: int) -> None:
    if not 1 <= wanted <= available:
        raise ValueError(
            f"{wanted} sampling steps asked of a schedule of {available}: use 1 to {available}"
        )


def make_ddim_sampling_parameters(
    alphacums: Tensor | np.ndarray,
    ddim_timesteps: Sequence[int] | np.ndarray,
    eta: float,
    verbose: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sigmas, alphas, alphas_prev) of the visited steps, in double precision (DDIM, eq. 16).

    The step before the first one has alphas_cumprod[0], as in the public samplers, unless the first
    one is step 0 itself: before that there is no noise at all (1).
    """
    alphas_cumprod = np.asarray(torch.as_tensor(alphacums).detach().cpu(), dtype=np.float64)
    steps = np.asarray(ddim_timesteps)
    alphas = alphas_cumprod[steps]
    first = alphas_cumprod[0] if steps[0] > 0 else 1.0
    alphas_prev = np.concatenate([[first], alphas[:-1]])
    sigmas = eta * np.sqrt((1 - alphas_prev) / (1 - alphas) * (1 - alphas / alphas_prev))
    if verbose:
        logger.info("sampling with eta %g, sigmas %s", eta, sigmas)
    return sigmas, alphas, alphas_prev


def extract_into_tensor(a: Tensor, t: Tensor, x_shape: Sequence[int]) -> Tensor:
    """The entries of table `a` at timesteps `t` (b,), shaped (b, 1, ...) to scale an `x_shape`."""
    return append_dims(a.gather(-1, t), len(x_shape))


def noise_like(
    shape: Sequence[int],
    device: torch.device | str,
    repeat: bool = False,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Standard normal noise of `shape` on `device`; with `repeat` the same for every row.

    A generator may live on another device than the result, so that a seed means the same noise
    everywhere. A list of generators, one a row, makes each row independent of its neighbours.
    """
    size = (1, *shape[1:]) if repeat else tuple(shape)
    if generator is None:
        noise = torch.randn(size, device=device)
    elif isinstance(generator, torch.Generator):
        noise = torch.randn(size, generator=generator, device=generator.device).to(device)
    elif len(generator) == size[0]:
        rows = [torch.randn(size[1:], generator=g, device=g.device).to(device) for g in generator]
        noise = torch.stack(rows)
    else:
        raise ValueError(
            f"{len(generator)} generators for {size[0]} rows: give one, or one for every row"
        )
    return noise.expand(*shape).clone() if repeat else noise


class Prediction(NamedTuple):
    """What the network says about x_t: the noise in it and the clean latent under it."""

    noise: Tensor
    start: Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """Every table of a schedule, each of shape (timesteps,), under its public buffer name."""

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    log_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor
    lvlb_weights: Tensor

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The buffer names, in order; the last, ``lvlb_weights``, is not saved in checkpoints."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def from_buffers(cls, module: nn.Module) -> "NoiseSchedule":
        """The schedule whose tables are buffers of `module`, on whatever device they are now."""
        return cls(**{name: getattr(module, name) for name in cls.names()})

    @classmethod
    def from_betas(
        cls,
        betas: np.ndarray | Tensor | Sequence[float],
        v_posterior: float = 0.0,
        parameterization: str = "eps",
    ) -> "NoiseSchedule":
        """All tables of a schedule, computed in double precision and rounded once.

        `v_posterior` mixes the two variances of DDPM, sec. 3.2: 0 is the posterior's, 1 is beta.

        Raises:
            ValueError: for fewer than two betas, betas outside (0, 1), or an unknown
                parameterization.
        """
        betas = np.asarray(betas, dtype=np.float64)
        if betas.ndim != 1 or len(betas) < 2 or not ((betas > 0) & (betas < 1)).all():
            raise ValueError(
                "betas must be one row of at least two numbers, each above 0 and below 1; got "
                f"shape {betas.shape}, smallest {betas.min(initial=1):g}, "
                f"largest {betas.max(initial=0):g}"
            )
        alphas = 1.0 - betas
        a = np.cumprod(alphas)
        a_prev = np.append(1.0, a[:-1])
        variance = (1 - v_posterior) * betas * (1 - a_prev) / (1 - a) + v_posterior * betas
        tables = {
            "betas": betas,
            "alphas_cumprod": a,
            "alphas_cumprod_prev": a_prev,
            "sqrt_alphas_cumprod": np.sqrt(a),
            "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - a),
            "log_one_minus_alphas_cumprod": np.log(1 - a),
            "sqrt_recip_alphas_cumprod": np.sqrt(1 / a),
            "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / a - 1),
            "posterior_variance": variance,
            # The posterior of the first step has no variance: its logarithm is cut off.
            "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
            "posterior_mean_coef1": betas * np.sqrt(a_prev) / (1 - a),
            "posterior_mean_coef2": (1 - a_prev) * np.sqrt(alphas) / (1 - a),
        }
        rounded = {k: torch.tensor(v, dtype=torch.float32) for k, v in tables.items()}
        kept = torch.tensor(alphas, dtype=torch.float32)
        return cls(**rounded, lvlb_weights=_lvlb_weights(parameterization, rounded, kept))

    @property
    def num_timesteps(self) -> int:
        """How many steps the schedule has."""
        return len(self.betas)

    def _at(self, table: Tensor, t: Tensor, x: Tensor) -> Tensor:
        return extract_into_tensor(table, t, x.shape)

    def q_mean_variance(self, x_start: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and log variance of q(x_t | x_0) (DDPM, eq. 4)."""
        mean = self._at(self.sqrt_alphas_cumprod, t, x_start) * x_start
        variance = self._at(1.0 - self.alphas_cumprod, t, x_start)
        return mean, variance, self._at(self.log_one_minus_alphas_cumprod, t, x_start)

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The noised latent x_t = sqrt(a) x_0 + sqrt(1 - a) eps (DDPM, eq. 4)."""
        signal = self._at(self.sqrt_alphas_cumprod, t, x_start) * x_start
        return signal + self._at(self.sqrt_one_minus_alphas_cumprod, t, x_start) * noise

    def predict_start_from_noise(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The x_0 under `x_t` if the noise in it is `noise` (DDPM, eq. 15)."""
        scaled = self._at(self.sqrt_recip_alphas_cumprod, t, x_t) * x_t
        return scaled - self._at(self.sqrt_recipm1_alphas_cumprod, t, x_t) * noise

    def predict_noise_from_start(self, x_t: Tensor, t: Tensor, x_start: Tensor) -> Tensor:
        """The noise in `x_t` if the clean latent under it is `x_start`."""
        scaled = self._at(self.sqrt_recip_alphas_cumprod, t, x_t) * x_t
        return (scaled - x_start) / self._at(self.sqrt_recipm1_alphas_cumprod, t, x_t)

    def velocity(self, x_start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """v = sqrt(a) eps - sqrt(1 - a) x_0 (Salimans and Ho, appendix D)."""
        turned = self._at(self.sqrt_alphas_cumprod, t, noise) * noise
        return turned - self._at(self.sqrt_one_minus_alphas_cumprod, t, x_start) * x_start

    def predict_start_from_v(self, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """The x_0 under `x_t` if its velocity is `v`."""
        signal = self._at(self.sqrt_alphas_cumprod, t, x_t) * x_t
        return signal - self._at(self.sqrt_one_minus_alphas_cumprod, t, x_t) * v

    def predict_eps_from_v(self, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """The noise in `x_t` if its velocity is `v`."""
        turned = self._at(self.sqrt_alphas_cumprod, t, x_t) * v
        return turned + self._at(self.sqrt_one_minus_alphas_cumprod, t, x_t) * x_t

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and clipped log variance of q(x_{t-1} | x_t, x_0) (DDPM, eqs. 6 and 7)."""
        mean = (
            self._at(self.posterior_mean_coef1, t, x_t) * x_start
            + self._at(self.posterior_mean_coef2, t, x_t) * x_t
        )
        variance = self._at(self.posterior_variance, t, x_t)
        return mean, variance, self._at(self.posterior_log_variance_clipped, t, x_t)

    def target(self, parameterization: str, x_start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a network of this parameterization should have answered for this noise and start."""
        if _known(parameterization) == "eps":
            return noise
        return x_start if parameterization == "x0" else self.velocity(x_start, noise, t)

    def prediction(
        self, parameterization: str, output: Tensor, x_t: Tensor, t: Tensor
    ) -> Prediction:
        """Read a network's `output` at (`x_t`, `t`) as noise and clean latent."""
        if _known(parameterization) == "eps":
            return Prediction(output, self.predict_start_from_noise(x_t, t, output))
        if parameterization == "x0":
            return Prediction(self.predict_noise_from_start(x_t, t, output), output)
        return Prediction(
            self.predict_eps_from_v(x_t, t, output), self.predict_start_from_v(x_t, t, output)
        )


def _known(parameterization: str) -> str:
    if parameterization not in PARAMETERIZATIONS:
        raise ValueError(
            f"unknown parameterization {parameterization!r}: use one of {PARAMETERIZATIONS}"
        )
    return parameterization


def _lvlb_weights(parameterization: str, tables: Mapping[str, Tensor], alphas: Tensor) -> Tensor:
    """The weight of each step's squared error in the variational bound (DDPM, eq. 12)."""
    betas, a, variance = (tables[k] for k in ("betas", "alphas_cumprod", "posterior_variance"))
    if _known(parameterization) == "x0":
        # The denominator of the public code, so that logged losses compare; the bound has
        # 2 (1 - a) there.
        weights = 0.5 * a.sqrt() / (2.0 - a)
    else:
        weights = betas**2 / (2 * variance * alphas * (1 - a))
        # At a given x_t an error e in v is an error sqrt(a) e in eps.
        weights = weights * a if parameterization == "v" else weights
    # The first step is exact, its weight infinite: it borrows its neighbour's.
    return torch.cat([weights[1:2], weights[1:]])
