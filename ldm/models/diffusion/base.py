"""`DDPM` and `DiffusionWrapper`: the network, the schedule and the loss, without a first stage.

They only wire: the schedule is in ``modules/diffusionmodules/schedule.py``, what is minimised in
``concepts/``, what is random in ``draws.py``, samplers in ``sampling.py``. Method names,
constructor keywords and state-dict keys are public; import both classes from
``ldm.models.diffusion.ddpm``.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ldm.checkpoint import load_with_report, read_state_dict
from ldm.concepts.denoising import Denoising
from ldm.concepts.objective import LossTerm, Objective, TrainStep
from ldm.models.diffusion.draws import Draws, draw, importance_weights
from ldm.models.diffusion.optim import OPTIMIZERS, adamw, describe, matrices
from ldm.modules.diffusionmodules.schedule import NoiseSchedule, make_beta_schedule
from ldm.modules.ema import LitEma
from ldm.util import instantiate_from_config

logger = logging.getLogger(__name__)

PARAMETERIZATIONS = ("eps", "x0", "v")


class DiffusionWrapper(pl.LightningModule):
    """Feeds the conditioning to the U-Net in the way `conditioning_key` names.

    ``None``: unconditional; ``concat``: channels beside the input; ``crossattn``: context tokens;
    ``hybrid``: both; ``adm``: a class label or vector.
    """

    MODES = (None, "concat", "crossattn", "hybrid", "adm")

    def __init__(self, diff_model_config: Mapping[str, Any], conditioning_key: str | None) -> None:
        super().__init__()
        if conditioning_key not in self.MODES:
            raise ValueError(
                f"conditioning_key {conditioning_key!r} is unknown; accepted are {self.MODES}"
            )
        self.diffusion_model = instantiate_from_config(diff_model_config)
        self.conditioning_key = conditioning_key

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Sequence[Tensor] | None = None,
        c_crossattn: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The U-Net's output for x (b, c, h, w) at timesteps t (b,)."""
        key = self.conditioning_key
        beside, text = list(c_concat or ()), list(c_crossattn or ())
        if key in ("concat", "hybrid"):
            x = torch.cat([x, *beside], dim=1)
        if key in ("crossattn", "hybrid"):
            return self.diffusion_model(x, t, context=torch.cat(text, dim=1))
        if key == "adm":
            return self.diffusion_model(x, t, y=text[0])
        return self.diffusion_model(x, t)


class DDPM(pl.LightningModule):
    """Denoising diffusion without a first stage: the network, the schedule, the loss."""

    #: Set by whoever trains, from ``base_learning_rate``.
    learning_rate: float

    def __init__(  # noqa: PLR0913, PLR0917 (the public signature)
        self,
        unet_config: Mapping[str, Any],
        timesteps: int = 1000,
        beta_schedule: str = "linear",
        loss_type: str = "l2",
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        load_only_unet: bool = False,
        monitor: str | None = "val/loss",
        use_ema: bool = True,
        first_stage_key: str = "image",
        image_size: int = 256,
        channels: int = 3,
        log_every_t: int = 100,
        clip_denoised: bool = True,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
        given_betas: Any = None,
        original_elbo_weight: float = 0.0,
        embedding_reg_weight: float = 0.0,
        unfreeze_model: bool = False,
        model_lr: float = 0.0,
        v_posterior: float = 0.0,
        l_simple_weight: float = 1.0,
        conditioning_key: str | None = None,
        parameterization: str = "eps",
        scheduler_config: Mapping[str, Any] | None = None,
        use_positional_encodings: bool = False,
        learn_logvar: bool = False,
        logvar_init: float = 0.0,
        *,
        loss_weighting: str = "uniform",
        ema_decay: float = 0.9999,
        weight_decay: float = 1e-2,
        seed: int = 23,
        timestep_skew: float = 0.0,
        optimizer: str = "adamw",
    ) -> None:
        super().__init__()
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {optimizer!r} is unknown; accepted are {OPTIMIZERS}")
        self.optimizer_kind = optimizer
        if parameterization not in PARAMETERIZATIONS:
            raise ValueError(
                f"parameterization {parameterization!r} is unknown; accepted are "
                f"{PARAMETERIZATIONS}"
            )
        self.parameterization, self.loss_type, self.v_posterior = (
            parameterization,
            loss_type,
            v_posterior,
        )
        self.first_stage_key, self.image_size, self.channels = first_stage_key, image_size, channels
        self.log_every_t, self.clip_denoised = log_every_t, clip_denoised
        self.original_elbo_weight, self.l_simple_weight = original_elbo_weight, l_simple_weight
        self.embedding_reg_weight, self.unfreeze_model = embedding_reg_weight, unfreeze_model
        self.model_lr, self.scheduler_config, self.monitor = model_lr, scheduler_config, monitor
        self.use_positional_encodings, self.loss_weighting = (
            use_positional_encodings,
            loss_weighting,
        )
        self.weight_decay, self.seed = weight_decay, seed
        self.cond_stage_model: Any = None
        self._objective: Objective | None = None
        self.model = DiffusionWrapper(unet_config, conditioning_key)
        logger.info("%s", describe(self.model.diffusion_model))
        self.use_ema = use_ema
        if use_ema:
            self.model_ema = LitEma(self.model, decay=ema_decay)
        self.register_schedule(
            given_betas, beta_schedule, timesteps, linear_start, linear_end, cosine_s
        )
        #: How often training draws each timestep, (timesteps,); uniformly if `None`.
        self.timestep_weights = importance_weights(self.num_timesteps, timestep_skew)
        self.learn_logvar = learn_logvar
        logvar = torch.full((self.num_timesteps,), float(logvar_init))
        if learn_logvar:
            self.logvar: Tensor = nn.Parameter(logvar)
        else:
            self.register_buffer("logvar", logvar, persistent=False)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys, only_model=load_only_unet)

    # -- the schedule

    def register_schedule(
        self,
        given_betas: Any = None,
        beta_schedule: str = "linear",
        timesteps: int = 1000,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
    ) -> None:
        """Keep the noise schedule as the flat buffers of the public checkpoints."""
        betas = given_betas
        if betas is None:
            betas = make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        schedule = NoiseSchedule.from_betas(
            np.asarray(betas), v_posterior=self.v_posterior, parameterization=self.parameterization
        )
        self.num_timesteps = len(schedule.betas)
        for name in NoiseSchedule.names():
            value, keep = getattr(schedule, name), name != "lvlb_weights"
            self.register_buffer(name, value, persistent=keep)

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule, as a view of the buffers (it follows the module's device)."""
        return NoiseSchedule.from_buffers(self)

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Noise x_start (b, ...) to timestep t (b,)."""
        noise = torch.randn_like(x_start) if noise is None else noise
        return self.schedule.q_sample(x_start, t, noise)

    # -- weights

    @contextmanager
    def ema_scope(self, context: str | None = None) -> Iterator[None]:
        """Use the averaged weights inside the block; the trained ones come back after it."""
        if not self.use_ema:
            yield
            return
        self.model_ema.store(self.model.parameters())
        self.model_ema.copy_to(self.model)
        if context:
            logger.info("%s: using averaged weights", context)
        try:
            yield
        finally:
            self.model_ema.restore(self.model.parameters())

    def init_from_ckpt(
        self, path: str, ignore_keys: Sequence[str] = (), only_model: bool = False
    ) -> None:
        """Load weights from a checkpoint of any known layout; raises when it does not fit."""
        module = self.model if only_model else self
        state = read_state_dict(path)
        if only_model:
            state = {
                k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")
            }
        load_with_report(module, state, ignore=tuple(ignore_keys))

    # -- loss

    def denoising_term(self, mask: Any = None) -> Denoising:
        """The diffusion loss with this model's options; `mask` restricts it (MCPL eq. 2)."""
        return Denoising(
            self.loss_type,
            parameterization=self.parameterization,
            mask=mask,
            weighting=self.loss_weighting,
            simple_weight=self.l_simple_weight,
            elbo_weight=self.original_elbo_weight,
            log_variance=self.logvar,
            log_learned=self.learn_logvar,
        )

    def terms(self) -> list[LossTerm]:
        """What this model minimises; methods add terms by overriding this."""
        return [self.denoising_term()]

    @property
    def objective(self) -> Objective:
        """The terms, built once."""
        if self._objective is None:
            self._objective = Objective(self.terms())
        return self._objective

    def apply_model(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The network's raw output (eps, x0 or v, as `parameterization` says)."""
        return self.model(x, t)

    def predict(self, x: Tensor, t: Tensor, cond: Any, **details: Any) -> tuple[Tensor, Any]:
        """The network's output and, where the objective reads attention, the recorded maps."""
        return self.apply_model(x, t, cond), None

    def p_losses(
        self, x_start: Tensor, cond: Any, t: Tensor, noise: Tensor | None = None, **details: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective for x_start (b, c, h, w) at t (b,), and its parts by their public names."""
        noise = torch.randn_like(x_start) if noise is None else noise
        noisy = self.schedule.q_sample(x_start, t, noise)
        predicted = self.predict(noisy, t, cond, **details)
        return self.weigh(predicted, x_start, cond, t, noise, **details)

    def weigh(
        self,
        predicted: tuple[Tensor, Any],
        x_start: Tensor,
        cond: Any,
        t: Tensor,
        noise: Tensor,
        **details: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective for what `predict` gave, and its parts; see :meth:`p_losses`."""
        schedule = self.schedule
        prediction, attention = predicted
        step = TrainStep(
            prediction=prediction,
            target=schedule.target(self.parameterization, x_start, noise, t),
            t=t,
            schedule=schedule,
            context=cond if isinstance(cond, Tensor) else None,
            attention=attention,
            **details,
        )
        loss, parts = self.objective(step)
        prefix = "train" if self.training else "val"
        return loss, {f"{prefix}/{name}": value for name, value in parts.items()}

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of images x at random timesteps."""
        t = torch.randint(self.num_timesteps, (x.shape[0],), device=x.device)
        return self.p_losses(x, None, t, *args, **kwargs)

    def get_input(self, batch: Mapping[str, Any], k: str) -> Any:
        """Entry `k` of the batch; pictures (b, h, w, c) come as (b, c, h, w) float."""
        value = batch[k]
        if not isinstance(value, Tensor) or value.ndim < 3:
            return value
        value = value.unsqueeze(-1) if value.ndim == 3 else value
        return value.movedim(-1, 1).float().contiguous()

    def draws(self, batch: Mapping[str, Any], shape: Sequence[int]) -> Draws:
        """Everything random of this batch (see `draws.py`)."""
        return draw(
            batch,
            shape,
            self.num_timesteps,
            seed=self.seed,
            device=self.device,
            weights=self.timestep_weights,
        )

    def shared_step(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch."""
        x = self.get_input(batch, self.first_stage_key)
        draws = self.draws(batch, x.shape)
        return self.p_losses(x, None, draws.t, draws.noise)

    # -- Lightning

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """One step; nothing is read back from the device."""
        loss, parts = self.shared_step(batch)
        size = len(next(iter(batch.values())))
        self.log_dict(parts, prog_bar=False, logger=True, on_step=True, batch_size=size)
        self.log("loss", parts["train/loss"], prog_bar=True, logger=False, batch_size=size)
        return loss

    @torch.no_grad()
    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """The loss with trained and with averaged weights."""
        size = len(next(iter(batch.values())))
        _, parts = self.shared_step(batch)
        self.log_dict(parts, on_step=False, on_epoch=True, batch_size=size)
        if self.use_ema:
            with self.ema_scope():
                _, parts = self.shared_step(batch)
            averaged = {f"{name}_ema": value for name, value in parts.items()}
            self.log_dict(averaged, on_step=False, on_epoch=True, batch_size=size)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Move the averaged weights along."""
        if self.use_ema and any(weight.requires_grad for weight in self.model.parameters()):
            self.model_ema(self.model)

    def orthogonal(self) -> list[nn.Parameter]:
        """The weights that take Muon's steps: the matrices, with ``optimizer: muon``."""
        return matrices(self) if self.optimizer_kind == "muon" else []

    def configure_optimizers(self) -> Any:
        """AdamW, or what `optimizer` says, over what is trained."""
        parameters: list[Any] = [p for p in self.model.parameters() if p.requires_grad]
        if self.learn_logvar:
            parameters.append(self.logvar)
        return adamw(
            parameters,
            self.learning_rate,
            scheduler_config=self.scheduler_config,
            weight_decay=self.weight_decay,
            orthogonal=self.orthogonal(),
        )
