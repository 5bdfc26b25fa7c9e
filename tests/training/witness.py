"""Callbacks that a configuration of a test names, to look into a run or to end it."""

import os
import signal
from typing import Any

import torch
from pytorch_lightning import Callback


class Witness(Callback):
    """Notes what a run changes: every parameter and buffer, and whatever receives a gradient."""

    #: The one of the latest run.
    latest: "Witness"

    def __init__(self) -> None:
        type(self).latest = self
        self.with_gradient: set[str] = set()
        self.changed: set[str] = set()
        self.names: set[str] = set()

    @staticmethod
    def _state(module: Any) -> dict[str, torch.Tensor]:
        # Buffers that are not kept in checkpoints count as well.
        held = [*module.named_parameters(), *module.named_buffers()]
        return {name: value.detach().clone() for name, value in held}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Remember everything."""
        self.before = self._state(pl_module)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Note who has a gradient, and in which mode the modules are."""
        self.with_gradient |= {n for n, p in pl_module.named_parameters() if p.grad is not None}
        self.training = {n for n, m in pl_module.named_modules() if m.training}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Compare bit by bit."""
        after = self._state(pl_module)
        self.names = set(after)
        self.changed = {
            name
            for name, value in after.items()
            if not torch.equal(value.view(torch.uint8), self.before[name].view(torch.uint8))
        }


class Kill(Callback):
    """Ends the process in the middle of a step, as a power cut does."""

    def __init__(self, step: int, with_signal: str = "SIGKILL") -> None:
        self.step, self.signal = step, signal.Signals[with_signal]

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Between the gradient and the optimizer."""
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signal)
