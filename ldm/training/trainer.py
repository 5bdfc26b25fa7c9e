"""Lightning's trainer, loggers and callbacks, from the ``lightning`` part of a configuration."""

import logging
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from ldm.callbacks import (
    AtomicCheckpointIO,
    CUDACallback,
    EmbeddingCheckpoint,
    ImageLogger,
    RunProgressBar,
    SetupCallback,
    WordWatch,
)
from ldm.errors import UserError
from ldm.evaluation.pictures import Pictures
from ldm.training.clock import FirstStep
from ldm.util import instantiate_from_config

logger = logging.getLogger(__name__)

#: Arguments of the Trainer that switch a kind of callback off.
SWITCHES = {
    "enable_progress_bar": pl.callbacks.ProgressBar,
    "enable_checkpointing": pl.callbacks.Checkpoint,
}


def devices(gpus: Any) -> dict[str, Any]:
    """Trainer arguments for the released ``--gpus 0,``: these GPUs, or else the CPU."""
    given = "" if gpus is None else str(gpus).strip()
    try:
        numbers = [int(number) for number in given.split(",") if number.strip()]
    except ValueError as error:
        raise UserError(
            f"--gpus {given}: expected numbers of GPUs such as '0,' or '0,1'"
        ) from error
    if numbers and not torch.cuda.is_available():
        logger.info("no GPU here: --gpus %s is read as the CPU", given)
    if not numbers or not torch.cuda.is_available():
        return {"accelerator": "auto", "devices": 1}
    return {"accelerator": "gpu", "devices": -1 if numbers == [-1] else numbers}


def build_trainer(config: DictConfig, folder: Any, *, learns_words: bool) -> pl.Trainer:
    """The trainer of a run that writes to `folder`."""
    lightning = config.get("lightning") or OmegaConf.create()
    arguments: Any = OmegaConf.to_container(
        lightning.get("trainer", OmegaConf.create()), resolve=True
    )
    arguments = {**devices(arguments.pop("gpus", None)), **arguments}
    arguments.setdefault("max_steps", 6100 if learns_words else -1)
    arguments.setdefault("log_every_n_steps", 10)
    if arguments.get("val_check_interval") is None:
        arguments.setdefault("limit_val_batches", 0)
        arguments.pop("val_check_interval", None)
    else:
        arguments.setdefault("check_val_every_n_epoch", None)
    wanted = [
        callback
        for callback in callbacks(config, folder, learns_words=learns_words)
        if not any(
            arguments.get(name) is False and isinstance(callback, kind)
            for name, kind in SWITCHES.items()
        )
    ]
    try:
        return pl.Trainer(
            **arguments,
            logger=loggers(folder),
            callbacks=wanted,
            plugins=[AtomicCheckpointIO()],
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    except (TypeError, ValueError, pl.utilities.exceptions.MisconfigurationException) as error:
        raise UserError(
            f"Lightning's Trainer refused its arguments {arguments}: {error}"
        ) from error


def loggers(folder: Any) -> list[Any]:
    """TensorBoard and CSV, in the run's folder."""
    return [
        TensorBoardLogger(folder.root, name="", version="tensorboard"),
        # A second start would delete the table of the first.
        CSVLogger(folder.root, name="", version=folder.fresh("csv")),
    ]


def callbacks(config: DictConfig, folder: Any, *, learns_words: bool) -> list[pl.Callback]:
    """Copies of the configuration, progress bar, checkpoints, pictures, and what is configured."""
    lightning: Any = OmegaConf.to_container(
        config.get("lightning") or OmegaConf.create(), resolve=True
    )
    checkpoints = (lightning.get("modelcheckpoint") or {}).get("params") or {}
    every = checkpoints.get("every_n_train_steps", 500)
    own: dict[str, tuple[type[pl.Callback], dict[str, Any]]] = {
        "setup_callback": (
            SetupCallback,
            {
                "resume": str(folder.resumed_from or ""),
                "now": folder.started,
                "logdir": folder.root,
                "ckptdir": folder.checkpoints,
                "cfgdir": folder.configs,
                "config": config,
                "lightning_config": OmegaConf.create(lightning),
            },
        ),
        "progress": (RunProgressBar, {}),
        "first_step": (FirstStep, {}),
        "image_logger": (ImageLogger, {"batch_frequency": 750, "max_images": 4, "clamp": True}),
        "cuda_callback": (CUDACallback, {}),
        "checkpoint_callback": (
            pl.callbacks.ModelCheckpoint,
            {
                "dirpath": folder.checkpoints,
                "filename": "step-{step:06d}",
                "auto_insert_metric_name": False,
                "every_n_train_steps": every,
                "save_last": True,
                # Those of words are small, so that every one is kept and can be resumed from.
                "save_top_k": -1 if learns_words else 0,
                "save_on_exception": True,
                "enable_version_counter": False,
                **checkpoints,
            },
        ),
    }
    if learns_words:
        own["evaluation"] = (WordWatch, {"pictures": Pictures.of(config.get("summary"))})
        own["embeddings"] = (
            EmbeddingCheckpoint,
            {"dirpath": folder.checkpoints, "every_n_train_steps": every},
        )
    return list(_configured(own, lightning.get("callbacks") or {}))


def _configured(
    own: dict[str, tuple[type[pl.Callback], dict[str, Any]]], wanted: dict[str, Any]
) -> Iterator[pl.Callback]:
    """Our `own` callbacks and those `wanted`: ``null`` removes, ``params`` change, others join.

    Raises:
        UserError: for a name without a target, and parameters that do not fit.
    """
    others: dict[str, Any] = {}
    for name, entry in wanted.items():
        if entry is None:
            own.pop(name, None)
        elif "target" in entry:
            own.pop(name, None)
            others[name] = entry
        elif name in own:
            kind, params = own[name]
            own[name] = (kind, {**params, **(entry.get("params") or {})})
        else:
            raise UserError(
                f"lightning.callbacks.{name} has no target and is none of {sorted(own)}"
            )
    for name, (kind, params) in own.items():
        try:
            yield kind(**params)
        except TypeError as error:
            raise UserError(f"lightning.callbacks.{name}.params do not fit: {error}") from error
    for entry in others.values():
        yield instantiate_from_config(entry)
