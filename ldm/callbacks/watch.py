"""Looks at the words at a set interval: the evaluation loss, where they look, what they render.

Nothing here changes what is learned: a run with and a run without it give the same words.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from ldm.callbacks.folders import run_root
from ldm.callbacks.images import previewing, show_live
from ldm.callbacks.words import words_folder
from ldm.evaluation.looking import Looker
from ldm.evaluation.looks import SavedLook, Shown, forget_looks
from ldm.evaluation.panels import attention_panel, samples_panel
from ldm.evaluation.pictures import Pictures

logger = logging.getLogger(__name__)

#: Name of the evaluation loss among the logged figures.
EVAL_LOSS = "val/eval_loss"


@dataclass(frozen=True)
class EarlyStop:
    """Stop after `patience` looks in a row none of which lowered the loss by `min_delta`."""

    patience: int
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 1 or self.min_delta < 0:
            raise ValueError(
                f"early_stop: patience={self.patience}, min_delta={self.min_delta}: expected 1 or "
                "more looks, and 0 or more"
            )

    def is_due(self, losses: Sequence[float]) -> bool:
        """Whether the losses of the looks so far say so."""
        best, waited = math.inf, 0
        for loss in losses:
            better = loss < best - self.min_delta
            best, waited = (loss, 0) if better else (best, waited + 1)
        return waited >= self.patience


class WordWatch(Callback):
    """Every so many steps one fixed look at the words (`ldm.evaluation.probe`), and what it shows.

    The evaluation loss goes to the loggers, the attention panel and, every `pictures.every` steps,
    samples to TensorBoard, everything to ``looks/`` in the run's folder. The words with the lowest
    loss are kept as ``embeddings_best.pt`` and ``.safetensors`` beside the newest. A run shorter
    than one interval is looked at only if it has `pictures`: then at its start and at its end.

    Args:
        every_n_train_steps: the interval; with `pictures` the end is looked at in any case.
        images: how many training pictures, the first ones, are looked at: eight passes each.
        keep_best: keep the words with the lowest loss.
        early_stop: ``{patience: looks, min_delta: loss}`` (see `EarlyStop`), or ``None``.
        pictures: what the run is summed up with, if with anything.
    """

    def __init__(
        self,
        every_n_train_steps: int = 100,
        images: int = 8,
        keep_best: bool = True,
        early_stop: Mapping[str, Any] | None = None,
        pictures: Pictures | None = None,
    ) -> None:
        super().__init__()
        if every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps={every_n_train_steps}: expected 1 or more")
        self.every_n_train_steps, self.images = every_n_train_steps, images
        self.keep_best, self.pictures = keep_best, pictures
        self.early_stop = None if early_stop is None else EarlyStop(**early_stop)
        self.history: list[tuple[int, float]] = []
        self.best: dict[str, Any] = {}
        self._start: dict[str, Any] = {}
        self._last: float = math.inf
        self._looker: Looker | None = None
        self._unlogged: list[tuple[int, float]] = []

    # -- when

    def is_due(self, step: int, last: float) -> bool:
        """Whether step `step` of a run of `last` steps is looked at."""
        if self.history and self.history[-1][0] >= step:
            return False
        if self.pictures is None and last < self.every_n_train_steps:
            return False
        return step % self.every_n_train_steps == 0 or (step == last and self.pictures is not None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the words as they start; of a run that continues, forget what came later."""
        if not can_look(trainer, pl_module):
            return
        self._last = trainer.estimated_stepping_batches
        if trainer.is_global_zero:
            forget_looks(run_root(trainer) / "looks", trainer.global_step)
            self._restore_best(trainer, pl_module)
        self._maybe_look(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look when it is time."""
        if can_look(trainer, pl_module):
            self._maybe_look(trainer, pl_module)
            self._log(trainer)

    def _maybe_look(self, trainer: Trainer, module: LightningModule) -> None:
        step = trainer.global_step
        if not self.is_due(step, self._last):
            return
        loss = self._look(trainer, module) if trainer.is_global_zero else math.nan
        self.history.append((step, loss))
        if self.early_stop is not None and step:
            due = self.early_stop.is_due([each for _, each in self.history])
            if trainer.strategy.broadcast(due):
                trainer.should_stop = True
                logger.info("stopped at step %d: the evaluation loss falls no more", step)

    # -- what

    def _look(self, trainer: Trainer, module: LightningModule) -> float:
        """Look, keep what is seen, show it; the evaluation loss."""
        step, folder = trainer.global_step, run_root(trainer) / "looks"
        looker = self._looker
        if looker is None:
            looker = Looker(module, training_set(trainer), self.pictures, self.images)
            self._looker = looker
            looker.start = self._start
            looker.shown.write(folder)
        every = self.pictures.every if self.pictures is not None else 0
        with previewing(module):
            look = looker(step, samples=bool(every) and (step == self._last or step % every == 0))
        self._start = looker.start
        look.write(folder)
        _show(trainer, looker.shown, look)
        self._keep_best(trainer, module, look)
        self._unlogged.append((step, look.loss))
        return look.loss

    def _log(self, trainer: Trainer) -> None:
        """Tell the loggers what was seen. Not before the first step, so that a run that is stopped
        there leaves no table behind."""
        for step, loss in self._unlogged:
            for board in trainer.loggers:
                board.log_metrics({EVAL_LOSS: loss}, step)
        self._unlogged = []

    # -- the best words

    def _keep_best(self, trainer: Trainer, module: LightningModule, look: SavedLook) -> None:
        if not self.keep_best or not look.step or look.loss >= self.best.get("loss", math.inf):
            return
        manager = cast(Any, module.embedding_manager)
        vectors = manager.string_to_param_dict.items()
        kept = {word: value.detach().cpu().clone() for word, value in vectors}
        self.best = {"step": look.step, "loss": look.loss, "vectors": kept}
        manager.save(_best_file(trainer))

    def _restore_best(self, trainer: Trainer, module: LightningModule) -> None:
        """Make the file of the best words that of the checkpoint that a run continues from."""
        path, manager = _best_file(trainer), cast(Any, module.embedding_manager)
        if self.best:
            manager.save(path, self.best["vectors"])
            return
        for each in (path, path.with_suffix(".safetensors")):
            each.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, for a checkpoint."""
        history = [list(seen) for seen in self.history]
        return {"history": history, "best": self.best, "start": self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.history = [(int(step), float(loss)) for step, loss in state_dict["history"]]
        self.best, self._start = state_dict["best"], state_dict["start"]


def training_set(trainer: Trainer) -> Any:
    """The data that is learned from, where our data module holds it."""
    return getattr(getattr(trainer, "datamodule", None), "datasets", {}).get("train")


def can_look(trainer: Trainer, module: LightningModule) -> bool:
    """Whether `module` learns words from pictures that can be enumerated."""
    learns = getattr(module, "embedding_manager", None) is not None
    return learns and hasattr(training_set(trainer), "caption_of")


def _best_file(trainer: Trainer) -> Path:
    return words_folder(trainer) / "embeddings_best.pt"


def _show(trainer: Trainer, shown: Shown, look: SavedLook) -> None:
    """The panels, live in TensorBoard."""
    if look.maps:
        show_live(trainer, "words/attention", attention_panel(shown, look), look.step)
    if look.samples is not None:
        show_live(trainer, "words/samples", samples_panel(shown, [look]), look.step)
