"""The diffusion loss (MCPL eq. 1), optionally restricted to a mask (eq. 2)."""

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.concepts.objective import TermValue, TrainStep
from ldm.modules.diffusionmodules.schedule import NoiseSchedule
from ldm.util import mean_flat


def snr_weights(schedule: NoiseSchedule, t: Tensor, gamma: float, parameterization: str) -> Tensor:
    """Min-SNR weights (b,): the signal-to-noise ratio clipped at `gamma`, for the prediction."""
    alphas = schedule.alphas_cumprod.to(t.device)[t]
    snr = alphas / (1 - alphas)
    clipped = snr.clamp(max=gamma)
    return {"eps": clipped / snr, "x0": clipped, "v": clipped / (snr + 1)}[parameterization]


class Denoising:
    """``mean || target - prediction ||^2`` with the public model's options.

    Args:
        kind: ``l1`` or ``l2``.
        mask: gives (b, 1, h, w) for a step, or ``None`` for no mask. Prediction and target are both
        multiplied by it and the
            mean runs over all elements, as in eq. 2.
        weighting: ``uniform``, or ``min-snr-G`` for a clip at G.
        simple_weight, elbo_weight: weights of the simple and the variational form.
        log_variance: per-timestep log variance (timesteps,), learned or fixed, or ``None``.
    """

    name = "simple"
    weight = 1.0

    def __init__(
        self,
        kind: str = "l2",
        *,
        parameterization: str = "eps",
        mask: Callable[[TrainStep], Tensor | None] | None = None,
        weighting: str = "uniform",
        simple_weight: float = 1.0,
        elbo_weight: float = 0.0,
        log_variance: Tensor | None = None,
        log_learned: bool = False,
    ) -> None:
        if kind not in ("l1", "l2"):
            raise ValueError(f"loss_type {kind!r} is unknown; accepted are 'l1' and 'l2'")
        self.kind, self.mask, self.parameterization = kind, mask, parameterization
        self.simple_weight, self.elbo_weight = simple_weight, elbo_weight
        self.log_variance, self.log_learned = log_variance, log_learned
        self.snr_clip = self._parse(weighting)

    @property
    def reads_attention(self) -> bool:
        """Whether the mask is made from attention."""
        return self.mask is not None and getattr(self.mask, "reads_attention", True)

    @staticmethod
    def _parse(weighting: str) -> float | None:
        if weighting == "uniform":
            return None
        prefix, _, clip = weighting.rpartition("-")
        try:
            if prefix != "min-snr":
                raise ValueError(prefix)
            return float(clip)
        except ValueError:
            raise ValueError(
                f"loss weighting {weighting!r} is unknown; accepted are 'uniform' and 'min-snr-5' "
                "(any positive number in place of 5)"
            ) from None

    def per_image(self, step: TrainStep) -> Tensor:
        """The unweighted loss of every image, (b,)."""
        prediction, target = step.prediction.float(), step.target.float()
        mask = None if self.mask is None else self.mask(step)
        if mask is not None:
            prediction, target = prediction * mask, target * mask
        difference = target - prediction
        return mean_flat(difference.abs() if self.kind == "l1" else difference.square())

    def __call__(self, step: TrainStep) -> TermValue:
        """The weighted loss per run; logs the plain and the variational mean."""
        plain = self.per_image(step)
        loss, logs = plain, {"loss_simple": step.per_run(plain).mean()}
        if self.snr_clip is not None:
            loss = loss * snr_weights(step.schedule, step.t, self.snr_clip, self.parameterization)
        if self.log_variance is not None:
            log_variance = self.log_variance.to(loss.device)[step.t]
            loss = loss / torch.exp(log_variance) + log_variance
            if self.log_learned:
                logs["loss_gamma"] = step.per_run(loss).mean()
                logs["logvar"] = self.log_variance.mean()
        loss = self.simple_weight * loss
        variational = step.schedule.lvlb_weights.to(plain.device)[step.t] * plain
        logs["loss_vlb"] = step.per_run(variational).mean()
        if self.elbo_weight:
            loss = loss + self.elbo_weight * variational
        return TermValue(step.per_run(loss), logs)
