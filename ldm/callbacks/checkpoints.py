"""How checkpoints are written and read."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from ldm.checkpoint import read_checkpoint, save_torch


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written all or nothing and read without running code.

    A file appears under its name only when all of it is on the disk, so a killed run never leaves
    half a checkpoint. Reading goes through :func:`ldm.checkpoint.read_checkpoint`: whoever wrote
    the file, it yields tensors and containers only.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to a temporary name beside `path` and rename it."""
        if storage_options is not None:
            raise TypeError("storage_options are for remote stores; this plugin writes local files")
        save_torch(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint's tensors and containers; `weights_only` is accepted and always holds."""
        return read_checkpoint(path, "cpu" if callable(map_location) else map_location)


class WholeSteps(Callback):
    """Resumes at the last step of the optimizer, where a run was stopped between two of them.

    Batches that were accumulated towards a step that was not taken are learned from again: without
    this, Lightning counts on from them, and every later step is made of other batches.
    """

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the batches of a step that was not taken out of Lightning's counts."""
        loop = checkpoint.get("loops", {}).get("fit_loop", {})
        counts = loop.get("epoch_loop.batch_progress")
        if not counts:
            return
        epoch, whole = counts["current"], counts["total"]
        extra = epoch["processed"] % trainer.accumulate_grad_batches
        # The last batches of an epoch make a step, however few they are.
        ended = counts["is_last_batch"] and epoch["processed"] == epoch["ready"]
        if extra and not ended:
            counts["is_last_batch"] = False
            for part in (epoch, whole):
                part.update(dict.fromkeys(part, part["processed"] - extra))


class LastCheckpoint(ModelCheckpoint):
    """Lightning's checkpoints, and the end of the training in ``last.ckpt`` whatever the interval.

    `train_time_interval` may be said in units of time, ``{minutes: 30}``, as a file can say it.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        *,
        train_time_interval: timedelta | Mapping[str, float] | None = None,
        **params: Any,
    ) -> None:
        interval = time_span(train_time_interval)
        super().__init__(dirpath, filename, train_time_interval=interval, **params)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last state, unless that has just been done."""
        if not self.save_last or self._should_skip_saving_checkpoint(trainer):
            return
        metrics = self._monitor_candidates(trainer)
        if self.save_last == "link" and self.save_top_k != 0:  # a link needs a file to point to
            self._save_checkpoint(trainer, self.format_checkpoint_name(metrics))
        self._save_last_checkpoint(trainer, metrics)


def time_span(given: timedelta | Mapping[str, float] | None) -> timedelta | None:
    """A span of time as a configuration says it: ``{hours: 1, minutes: 30}``.

    Raises:
        ValueError: for anything but units of time.
        TypeError: for a unit that there is not.
    """
    if given is None or isinstance(given, timedelta):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(
            f"train_time_interval={given!r}: expected units of time such as {{minutes: 30}}"
        )
    return timedelta(**given)
