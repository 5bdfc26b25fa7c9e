"""What concerns the epochs and phases of a training: their cost, and what is trained in them."""

import logging
import time
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

logger = logging.getLogger(__name__)


class CUDACallback(Callback):
    """Logs how long each epoch took and the most memory it used; silent without a CUDA device."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
            torch.cuda.synchronize(pl_module.device)
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the mean over all processes."""
        if pl_module.device.type != "cuda":
            return
        torch.cuda.synchronize(pl_module.device)
        peak = torch.cuda.max_memory_allocated(pl_module.device) / 2**20
        figures = torch.tensor([time.monotonic() - self._started, peak], device=pl_module.device)
        seconds, mebibytes = trainer.strategy.reduce(figures, reduce_op="mean").tolist()
        if trainer.is_global_zero:
            logger.info("epoch took %.1f s, peak memory %.0f MiB", seconds, mebibytes)


class ModeSwapCallback(Callback):
    """Trains the embeddings until `swap_step`, then the model (two-phase personalisation).

    The module offers ``configure_opt_embedding()`` and ``configure_opt_model()``; each returns an
    optimizer.
    """

    def __init__(self, swap_step: int = 2000) -> None:
        super().__init__()
        self.swap_step = swap_step
        self._phase: str | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a module without the two phases before any step is taken."""
        for name in ("configure_opt_embedding", "configure_opt_model"):
            if not callable(getattr(pl_module, name, None)):
                raise ValueError(
                    f"ModeSwapCallback needs {type(pl_module).__name__}.{name}(), which does not "
                    "exist; remove the callback from the config or use a module with two phases"
                )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Exchange the optimizer when the phase changes."""
        phase = "embedding" if trainer.global_step < self.swap_step else "model"
        if phase != self._phase:
            self._phase = phase
            trainer.optimizers = [getattr(pl_module, f"configure_opt_{phase}")()]
            logger.info("step %d: training the %s", trainer.global_step, phase)
