"""The line that shows how far a run is."""

import math
import sys
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm


class RunProgressBar(ProgressBar):
    """One line for the whole training: steps done, loss, steps per second, time left.

    In a terminal the line is refreshed in place; elsewhere (a file, a job's log) a line is written
    every `quiet_seconds`. Values are read from the device only when the line is refreshed.
    """

    def __init__(self, refresh_rate: int = 10, quiet_seconds: float = 30.0) -> None:
        super().__init__()
        if refresh_rate < 1:
            raise ValueError(f"refresh_rate={refresh_rate}: expected 1 or more steps")
        self.refresh_rate, self.quiet_seconds = refresh_rate, quiet_seconds
        self._enabled, self._bar = True, None

    def disable(self) -> None:
        """Show nothing from now on."""
        self._enabled = False

    def enable(self) -> None:
        """Show the line again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the line at the step the run starts or resumes from."""
        total = trainer.estimated_stepping_batches
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=int(total) if math.isfinite(total) else None,
            initial=trainer.global_step,
            desc="learning",
            unit="step",
            dynamic_ncols=terminal,
            mininterval=0.1 if terminal else self.quiet_seconds,
            disable=not (self._enabled and trainer.is_global_zero),
            bar_format=None
            if terminal
            else "{desc} {n_fmt}/{total_fmt} {rate_fmt}, {remaining} left{postfix}",
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the line on."""
        self._refresh(trainer, pl_module, last=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the line with the final figures."""
        self._refresh(trainer, pl_module, last=True)
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the terminal in order."""
        self._close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Write a message above the line."""
        tqdm.write(kwargs.get("sep", " ").join(str(arg) for arg in args))

    def _refresh(self, trainer: Trainer, module: LightningModule, last: bool) -> None:
        bar, step = self._bar, trainer.global_step
        if bar is None or bar.disable or not (last or step % self.refresh_rate == 0):
            return
        shown = {k: v for k, v in self.get_metrics(trainer, module).items() if k != "v_num"}
        shown = {k.removeprefix("train/"): v for k, v in shown.items()}
        bar.set_postfix(
            {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in shown.items()}, refresh=False
        )
        bar.update(step - bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
