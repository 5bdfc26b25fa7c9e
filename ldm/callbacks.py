"""Lightning callbacks of a run: its folder, its pictures, its embedding files, its progress bar.

``SetupCallback``, ``ImageLogger``, ``CUDACallback`` and ``ModeSwapCallback`` stand under the names
public configs use (``main.ImageLogger``, ...); ``EmbeddingCheckpoint``, ``RunProgressBar`` and the
checkpoint plugin ``AtomicCheckpointIO`` are what the default run adds.
"""

import logging
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor
from tqdm import tqdm

from ldm import visual
from ldm.checkpoint import read_checkpoint, save_torch, write_atomic

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
        with _previewing(module):
            produced = log_images(batch, split=split, **self.log_images_kwargs)
        if not self.rescale:
            produced = {k: v * 2 - 1 if isinstance(v, Tensor) else v for k, v in produced.items()}
        folder = _run_folder(trainer) / "images" / split
        step, moment = trainer.global_step, f"e-{trainer.current_epoch:06}_b-{batch_idx:06}"
        for key, picture in visual.render(produced, self.max_images).items():
            path = folder / f"{key}_gs-{step:06}_{moment}.png"
            visual.save_png(path, picture, {"step": str(step), "split": split})
            for board in trainer.loggers:
                if isinstance(board, TensorBoardLogger):
                    board.experiment.add_image(f"{split}/{key}", picture, step, dataformats="HWC")


def _run_folder(trainer: Trainer) -> Path:
    """The folder of the run: where the first logger saves, else the Trainer's own."""
    saved = trainer.loggers[0].save_dir if trainer.loggers else None
    return Path(saved or trainer.default_root_dir)


@contextmanager
def _previewing(module: LightningModule) -> Iterator[None]:
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


class EmbeddingCheckpoint(Callback):
    """Saves the learned words while they are learned, through ``pl_module.embedding_manager.save``.

    Every `every_n_train_steps` and at the end it writes ``embeddings_gs-<step>.pt`` and
    ``embeddings.pt`` (the newest), each with its ``.safetensors`` twin. With `keep_last` only so
    many of the numbered files stay. The folder is `dirpath`, else that of the ``ModelCheckpoint``,
    else ``checkpoints`` in the run's folder.
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

    def save(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the files for the present step, on the first process only."""
        manager = getattr(module, "embedding_manager", None)
        if manager is None or not trainer.is_global_zero:
            return
        folder = self._folder(trainer)
        for name in (f"embeddings_gs-{trainer.global_step}.pt", "embeddings.pt"):
            manager.save(str(folder / name))
        self._saved = trainer.global_step
        self._remove_old(folder)

    def _folder(self, trainer: Trainer) -> Path:
        checkpoint = trainer.checkpoint_callback
        found = self.dirpath or getattr(checkpoint, "dirpath", None)
        return Path(found) if found else _run_folder(trainer) / "checkpoints"

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
