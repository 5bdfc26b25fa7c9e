"""The files of the learned words, written while they are learned."""

import logging
import re
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from ldm.callbacks.folders import run_root

logger = logging.getLogger(__name__)


class EmbeddingCheckpoint(Callback):
    """Saves the learned words while they are learned, through ``pl_module.embedding_manager.save``.

    Every `every_n_train_steps` and at the end, also that by an interruption, it writes
    ``embeddings_gs-<step>.pt`` and ``embeddings.pt`` (the newest), each with its ``.safetensors``
    twin. With `keep_last` only so many of the numbered files stay. The folder is `dirpath`, else
    that of the ``ModelCheckpoint``, else ``checkpoints`` in the run's folder.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        every_n_train_steps: int = 500,
        keep_last: int | None = None,
    ) -> None:
        super().__init__()
        if every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps={every_n_train_steps}: expected 1 or more")
        if keep_last is not None and keep_last < 1:
            raise ValueError(f"keep_last={keep_last}: expected 1 or more, or None to keep all")
        self.every_n_train_steps, self.keep_last = every_n_train_steps, keep_last
        self.dirpath = dirpath
        self._saved: int | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when a multiple of the interval has been reached."""
        step = trainer.global_step
        if step and step % self.every_n_train_steps == 0 and step != self._saved:
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last state, unless that has just been done."""
        if trainer.global_step and trainer.global_step != self._saved:
            self.save(trainer, pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save what there is; a disk that is full must not hide what went wrong."""
        try:
            self.on_train_end(trainer, pl_module)
        except OSError as error:
            logger.warning("the words of step %d are not saved: %s", trainer.global_step, error)

    def save(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the files for the present step, on the first process only."""
        manager = getattr(module, "embedding_manager", None)
        if manager is None or not trainer.is_global_zero:
            return
        folder = words_folder(trainer, self.dirpath)
        for name in (f"embeddings_gs-{trainer.global_step}.pt", "embeddings.pt"):
            manager.save(str(folder / name))
        self._saved = trainer.global_step
        self._remove_old(folder)

    def _remove_old(self, folder: Path) -> None:
        if self.keep_last is None:
            return
        numbered: dict[int, list[Path]] = {}
        for path in folder.iterdir():
            if match := re.fullmatch(r"embeddings_gs-(\d+)\.(pt|safetensors)", path.name):
                numbered.setdefault(int(match[1]), []).append(path)
        for step in sorted(numbered)[: -self.keep_last]:
            for path in numbered[step]:
                path.unlink(missing_ok=True)


def words_folder(trainer: Trainer, dirpath: str | Path | None = None) -> Path:
    """Where files of words go: `dirpath`, else beside the checkpoints."""
    found = dirpath or getattr(trainer.checkpoint_callback, "dirpath", None)
    return Path(found) if found else run_root(trainer) / "checkpoints"
