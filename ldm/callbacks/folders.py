"""The folder of a run: made at its start, with what the run was started with."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from ldm.checkpoint import write_atomic

logger = logging.getLogger(__name__)


class SetupCallback(Callback):
    """Makes the folder of a run and writes down what the run was started with.

    ``configs/<now>-project.yaml`` is the merged configuration, ``configs/<now>-lightning.yaml`` the
    part for the Trainer. A resumed run adds its own pair and leaves earlier ones alone.
    """

    def __init__(
        self,
        resume: str | bool,
        now: str,
        logdir: str | Path,
        ckptdir: str | Path,
        cfgdir: str | Path,
        config: Any,
        lightning_config: Any,
    ) -> None:
        super().__init__()
        self.resume, self.now = resume, now
        self.logdir, self.ckptdir, self.cfgdir = Path(logdir), Path(ckptdir), Path(cfgdir)
        self.config, self.lightning_config = config, lightning_config

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create the folders and write both files, on the first process only."""
        if not trainer.is_global_zero:
            return
        for folder in (self.logdir, self.ckptdir, self.cfgdir, self.logdir / "images"):
            folder.mkdir(parents=True, exist_ok=True)
        self._write("project", self.config)
        self._write("lightning", {"lightning": self.lightning_config})

    def _write(self, kind: str, config: Any) -> None:
        path = self.cfgdir / f"{self.now}-{kind}.yaml"
        if path.exists():
            logger.info("%s exists already and stays as it is", path)
            return
        with write_atomic(path) as temporary:
            OmegaConf.save(OmegaConf.create(config), temporary)


def run_root(trainer: Trainer) -> Path:
    """The folder of the run: where the first logger saves, else the Trainer's own."""
    saved = trainer.loggers[0].save_dir if trainer.loggers else None
    return Path(saved or trainer.default_root_dir)
