"""What every run of a pack has of its own while they learn together: folder, tables, looks, end."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import CSVLogger

from ldm.callbacks import EmbeddingCheckpoint, SetupCallback, WordWatch
from ldm.training.folder import RunFolder
from ldm.training.jobs import Job
from ldm.training.trainer import callbacks

logger = logging.getLogger(__name__)

#: What a run alone does beside learning, and does in a pack as well, by its name in configurations.
KEPT = {
    "setup_callback": SetupCallback,
    "embeddings": EmbeddingCheckpoint,
    "evaluation": WordWatch,
}


@dataclass(frozen=True)
class Member:
    """A run of a pack: its job, configuration and data, and where it leaves its words."""

    job: Job
    config: DictConfig
    data: Any
    folder: RunFolder

    def callbacks(self) -> list[pl.Callback]:
        """Those of a run alone that belong to its words."""
        own: Any = OmegaConf.create(OmegaConf.to_container(self.config))
        given = OmegaConf.select(own, "lightning.callbacks") or {}
        wanted = {name: given[name] for name in given if name in KEPT}
        OmegaConf.update(own, "lightning.callbacks", wanted, merge=False, force_add=True)
        found = callbacks(own, self.folder, learns_words=True)
        return [callback for callback in found if isinstance(callback, tuple(KEPT.values()))]


class RunView:
    """The trainer as one run of a pack sees it: with its own data, tables, files and end."""

    def __init__(self, trainer: pl.Trainer, member: Member) -> None:
        folder = member.folder
        self.shared: Any = trainer
        self.datamodule = member.data
        self.loggers = [CSVLogger(folder.root, name="", version=folder.fresh("csv"))]
        self.checkpoint_callback = SimpleNamespace(dirpath=folder.checkpoints)
        self.default_root_dir = str(folder.root)
        self.should_stop = False
        self.estimated_stepping_batches = min(
            member.job.steps or math.inf, trainer.estimated_stepping_batches
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shared, name)


class EachRun(pl.Callback):
    """Does for every run of a pack what is done for a run alone, and lets go who has finished.

    A run leaves the batch when its steps are over, when one of its callbacks stops it, or when its
    loss is not a number. `ended` says after how many steps those of the first two kinds did.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        self.callbacks = [member.callbacks() for member in members]
        self.views: list[Any] = []
        self.ended: dict[int, int] = {}
        self._logged = 0

    def is_complete(self, number: int, active: Sequence[int]) -> bool:
        """Whether a run has learned what it was to learn, once training is over."""
        return number in active or number in self.ended

    # -- in step with the trainer

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Make the folders."""
        self.views = [RunView(trainer, member) for member in self.members]
        for number in range(len(self.members)):
            self._tell(number, "on_fit_start", pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin."""
        self._logged = trainer.global_step
        for number in pl_module.active:
            self._tell(number, "on_train_start", pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, look and log where it is due, and let go who has finished."""
        step, every = trainer.global_step, self.views[0].log_every_n_steps
        due = step % every == 0 and step != self._logged
        for number in list(pl_module.active):
            view = self.views[number]
            self._tell(number, "on_train_batch_end", pl_module, outputs, batch, batch_idx)
            if due and not self._log(number, pl_module):
                name = self.members[number].job.name
                logger.error("%s ends: its loss at step %d is not a number", name, step)
                pl_module.leave(number)
            elif view.should_stop or step >= (self.members[number].job.steps or math.inf):
                self.ended[number] = step
                self._tell(number, "on_train_end", pl_module)
                pl_module.leave(number)
        self._logged = step if due else self._logged
        trainer.should_stop = trainer.should_stop or not pl_module.active

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """End the runs that are left, and close the tables."""
        for number in pl_module.active:
            self._tell(number, "on_train_end", pl_module)
        for view in self.views:
            view.loggers[0].finalize("success")

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Save what there is."""
        for number in pl_module.active if self.views else ():
            self._tell(number, "on_exception", pl_module, exception)

    def _tell(self, number: int, hook: str, module: Any, *arguments: Any) -> None:
        """Call a hook of the callbacks of one run."""
        for callback in self.callbacks[number]:
            getattr(callback, hook)(self.views[number], module.runs[number], *arguments)

    def _log(self, number: int, module: Any) -> bool:
        """Write a row of a run's table; whether its loss is a number."""
        view = self.views[number]
        values = {name: float(value) for name, value in module.reports[number].items()}
        view.loggers[0].log_metrics({**values, "epoch": view.current_epoch}, view.global_step - 1)
        return math.isfinite(values["train/loss"])

    # -- checkpoints

    def state_of(self, number: int) -> dict[str, Any]:
        """What a checkpoint of one run alone keeps of its callbacks."""
        found = {each.state_key: each.state_dict() for each in self.callbacks[number]}
        return {key: state for key, state in found.items() if state}

    def state_dict(self) -> dict[str, Any]:
        """Who ended when, and what the runs' callbacks keep."""
        return {
            "ended": dict(self.ended),
            "runs": [self.state_of(number) for number in range(len(self.members))],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.ended = dict(state_dict["ended"])
        for callbacks_, states in zip(self.callbacks, state_dict["runs"], strict=True):
            for callback in callbacks_:
                if callback.state_key in states:
                    callback.load_state_dict(states[callback.state_key])
