"""Pictures that a model makes of its batches, now and then during training."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from ldm import visual
from ldm.callbacks.folders import run_root


class ImageLogger(Callback):
    """Now and then asks the model for pictures and keeps them as files and in TensorBoard.

    What ``log_images(batch, split=..., **log_images_kwargs)`` returns becomes pictures as
    :func:`ldm.visual.render` says, in ``images/<split>/<key>_gs-<step>_e-<epoch>_b-<batch>.png``.
    `rescale` says that images are in [-1, 1] rather than [0, 1]; they are always clamped.

    They are drawn with random numbers of their own, the same ones every time: pictures can be
    compared from step to step, and making them changes nothing in the run.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the public signature
        self,
        batch_frequency: int,
        max_images: int,
        clamp: bool = True,
        increase_log_steps: bool = True,
        rescale: bool = True,
        disabled: bool = False,
        log_on_batch_idx: bool = False,
        log_first_step: bool = False,
        log_images_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if batch_frequency < 1:
            raise ValueError(f"batch_frequency={batch_frequency}: expected 1 or more steps")
        self.batch_frequency, self.max_images = batch_frequency, max_images
        self.rescale, self.disabled = rescale, disabled
        self.log_on_batch_idx, self.log_first_step = log_on_batch_idx, log_first_step
        self.log_images_kwargs = dict(log_images_kwargs or {})
        powers = range(int(math.log2(batch_frequency)) + 1) if increase_log_steps else ()
        self.early_steps = frozenset(2**power for power in powers)
        self._last: dict[str, int] = {}

    def is_due(self, step: int) -> bool:
        """Whether pictures are due: every `batch_frequency` steps and at early powers of two."""
        if step == 0:
            return self.log_first_step
        return step % self.batch_frequency == 0 or step in self.early_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log pictures of the batch just trained on."""
        self._maybe_log(trainer, pl_module, batch, batch_idx, "train")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log pictures of the first validation batch, once training has begun."""
        if batch_idx == 0 and trainer.global_step > 0 and not trainer.sanity_checking:
            self._maybe_log(trainer, pl_module, batch, batch_idx, "val")

    def _maybe_log(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int, split: str
    ) -> None:
        step = batch_idx if self.log_on_batch_idx else trainer.global_step
        if self.disabled or self.max_images < 1 or not trainer.is_global_zero:
            return
        if self._last.get(split) == step or not (split == "val" or self.is_due(step)):
            return
        log_images = getattr(module, "log_images", None)
        if not callable(log_images):
            return
        self._last[split] = step
        with previewing(module):
            produced = log_images(batch, split=split, **self.log_images_kwargs)
        if not self.rescale:
            produced = {k: v * 2 - 1 if isinstance(v, Tensor) else v for k, v in produced.items()}
        folder = run_root(trainer) / "images" / split
        step, moment = trainer.global_step, f"e-{trainer.current_epoch:06}_b-{batch_idx:06}"
        for key, picture in visual.render(produced, self.max_images).items():
            path = folder / f"{key}_gs-{step:06}_{moment}.png"
            visual.save_png(path, picture, {"step": str(step), "split": split})
            show_live(trainer, f"{split}/{key}", picture, step)


def show_live(trainer: Trainer, name: str, picture: visual.Picture, step: int) -> None:
    """Show `picture` in TensorBoard, if that is among the loggers."""
    for board in trainer.loggers:
        if isinstance(board, TensorBoardLogger):
            board.experiment.add_image(name, picture, step, dataformats="HWC")


@contextmanager
def previewing(module: LightningModule) -> Iterator[None]:
    """Evaluation mode, no gradients, random numbers of its own; all undone on exit."""
    training = module.training
    devices = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(0)
        module.eval()
        try:
            yield
        finally:
            module.train(training)
