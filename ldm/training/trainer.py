"""Lightning's trainer, loggers and callbacks, from the ``lightning`` part of a configuration."""

import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from ldm.callbacks import (
    AtomicCheckpointIO,
    CUDACallback,
    EmbeddingCheckpoint,
    ImageLogger,
    LastCheckpoint,
    RunProgressBar,
    SetupCallback,
    WholeSteps,
    WordWatch,
)
from ldm.errors import UserError
from ldm.evaluation.pictures import Pictures
from ldm.training.clock import FirstStep
from ldm.training.config import TRIGGERS
from ldm.util import (
    get_obj_from_str,
    has_bfloat16,
    instantiate_from_config,
    tell_no_bfloat16,
)

logger = logging.getLogger(__name__)

#: Arguments of the Trainer that switch a kind of callback off.
SWITCHES = {
    "enable_progress_bar": pl.callbacks.ProgressBar,
    "enable_checkpointing": pl.callbacks.Checkpoint,
}
#: Arguments of the Trainer that say when, or on how much, a run is validated.
VALIDATION = ("val_check_interval", "check_val_every_n_epoch", "limit_val_batches")
#: Arguments of the Trainer that are made here, and where to say instead what they are for.
MADE_HERE = {
    "logger": "a further logger is lightning.logger={target: ..., params: {...}}",
    "callbacks": "a further callback is lightning.callbacks.NAME={target: ..., params: {...}}",
    "plugins": "the precision is lightning.trainer.precision, several devices are "
    "lightning.trainer.strategy",
}
#: What a run has unless its trainer arguments say otherwise.
DEFAULTS = {
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}
#: Steps between checkpoints where nobody says when they are written.
EVERY = 500


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


def build_trainer(
    config: DictConfig, folder: Any, *, learns_words: bool, network_too: bool = False
) -> pl.Trainer:
    """The trainer of a run that writes to `folder`.

    `network_too` says of a run that learns words that it trains the network as well.

    Raises:
        UserError: for arguments, loggers or callbacks that Lightning refuses or that are made here.
    """
    arguments = _arguments(config, learns_words=learns_words)
    wanted = [
        callback
        for callback in callbacks(
            config, folder, learns_words=learns_words, network_too=network_too
        )
        if not any(
            arguments.get(name) is False and isinstance(callback, kind)
            for name, kind in SWITCHES.items()
        )
    ]
    try:
        return pl.Trainer(
            # Where callbacks write when there is no logger to say it, as in a --fast_dev_run.
            **{"default_root_dir": folder.root, **arguments},
            logger=loggers(config, folder),
            callbacks=wanted,
            plugins=[AtomicCheckpointIO()],
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"Lightning's Trainer refused its arguments {arguments}: {error}"
        ) from error


def _lightning(config: DictConfig) -> dict[str, Any]:
    """The part ``lightning`` of a configuration, as plain values."""
    part: Any = OmegaConf.to_container(config.get("lightning") or OmegaConf.create(), resolve=True)
    return part


def _arguments(config: DictConfig, *, learns_words: bool) -> dict[str, Any]:
    """What the Trainer is given from ``lightning.trainer``."""
    given = dict(_lightning(config).get("trainer") or {})
    for name, instead in MADE_HERE.items():
        if name in given:
            raise UserError(f"lightning.trainer.{name} is made by the run itself: {instead}")
    given = {**DEFAULTS, **devices(given.pop("gpus", None)), **given}
    given.setdefault("max_steps", 6100 if learns_words else -1)
    if str(given.get("precision")) in ("bf16-mixed", "bf16") and not _computes_bfloat16(given):
        tell_no_bfloat16()
        given["precision"] = "32-true"
    return _with_validation(config, given, learns_words=learns_words)


def _computes_bfloat16(given: Mapping[str, Any]) -> bool:
    """Whether the device that the Trainer is asked for has bfloat16."""
    others = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_cpu = given["accelerator"] == "cpu" or (given["accelerator"] == "auto" and not others)
    return not on_cpu or has_bfloat16(torch.device("cpu"))


def _with_validation(
    config: DictConfig, given: dict[str, Any], *, learns_words: bool
) -> dict[str, Any]:
    """Arguments of the Trainer, without validation in a run of words that does not ask for it.

    It asks for it by an argument on validation or a checkpoint's ``monitor``.
    """
    given = {
        name: value for name, value in given.items() if name not in VALIDATION or value is not None
    }
    if "val_check_interval" in given:
        return {"check_val_every_n_epoch": None, **given}  # the interval is counted in steps
    asked = any(name in given for name in VALIDATION) or checkpoint_params(config).get("monitor")
    if asked or not learns_words:
        return given
    if OmegaConf.select(config, "data.params.validation") is not None:
        logger.info(
            "validation is off, as in every run that learns words unless it is asked for: "
            "--val_check_interval 500 (in steps) or --check_val_every_n_epoch 1"
        )
    return {**given, "limit_val_batches": 0}


def loggers(config: DictConfig, folder: Any) -> list[Any]:
    """TensorBoard and CSV, in the run's folder, and what ``lightning.logger`` adds.

    That is one logger, ``{target: ..., params: ...}``, or several by names.

    Raises:
        UserError: for a logger without a target, and parameters that do not fit.
    """
    given = _lightning(config).get("logger") or {}
    entries = {"": given} if "target" in given else given
    added = [_logger(".".join(filter(None, ("lightning.logger", name))), entry, folder.root)
             for name, entry in entries.items()]  # fmt: skip
    return [
        TensorBoardLogger(folder.root, name="", version="tensorboard"),
        # A second start would delete the table of the first.
        CSVLogger(folder.root, name="", version=folder.fresh("csv")),
        *(each for each in added if each is not None),
    ]


def _logger(name: str, entry: Any, root: Any) -> Any:
    """A logger that a configuration describes under `name`; it writes to the run's folder."""
    if entry is None:
        return None
    if not isinstance(entry, Mapping) or not entry.get("target"):
        raise UserError(
            f"{name} has no target: a logger is described as {{target: "
            "pytorch_lightning.loggers.WandbLogger, params: {...}}"
        )
    if entry["target"].endswith("TestTubeLogger"):
        logger.info("%s: the TestTube logger is no more; CSV and TensorBoard stand in", name)
        return None
    params = dict(entry.get("params") or {})
    if "save_dir" in inspect.signature(get_obj_from_str(entry["target"])).parameters:
        params.setdefault("save_dir", str(root))
    return _made(f"{name}.params", {"target": entry["target"], "params": params})


def _made(place: str, entry: Mapping[str, Any]) -> Any:
    """The object that a configuration describes; `place` is where its parameters stand."""
    try:
        return instantiate_from_config(entry)
    except (TypeError, MisconfigurationException) as error:
        raise UserError(f"{place} do not fit {entry['target']}: {error}") from error


def checkpoint_params(config: DictConfig) -> dict[str, Any]:
    """What a configuration says of checkpoints: ``modelcheckpoint``, or as of any callback."""
    lightning = _lightning(config)
    as_callback = (lightning.get("callbacks") or {}).get("checkpoint_callback")
    said: dict[str, Any] = {}
    for part in (lightning.get("modelcheckpoint"), as_callback):
        said |= (part or {}).get("params") or {}
    return said


def callbacks(
    config: DictConfig, folder: Any, *, learns_words: bool, network_too: bool = False
) -> list[pl.Callback]:
    """Copies of the configuration, progress bar, checkpoints, pictures, and what is configured.

    Raises:
        UserError: for a name without a target, and parameters that do not fit.
    """
    lightning, checkpoints = _lightning(config), checkpoint_params(config)
    if all(checkpoints.get(name) is None for name in TRIGGERS):
        checkpoints["every_n_train_steps"] = EVERY
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
        "whole_steps": (WholeSteps, {}),
        "image_logger": (ImageLogger, {"batch_frequency": 750, "max_images": 4, "clamp": True}),
        "cuda_callback": (CUDACallback, {}),
        "checkpoint_callback": (
            LastCheckpoint,
            {
                "dirpath": folder.checkpoints,
                "filename": "step-{step:06d}",
                "auto_insert_metric_name": False,
                "save_last": True,
                # Those of words alone are small: every one is kept and can be resumed from.
                "save_top_k": -1 if learns_words and not network_too else 0,
                "save_on_exception": True,
                "enable_version_counter": False,
                **checkpoints,
            },
        ),
    }
    if learns_words:
        every = checkpoints.get("every_n_train_steps") or EVERY
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
        place = "modelcheckpoint" if name == "checkpoint_callback" else f"callbacks.{name}"
        try:
            yield kind(**params)
        except (TypeError, MisconfigurationException) as error:
            raise UserError(f"lightning.{place}.params do not fit: {error}") from error
    for name, entry in others.items():
        yield _made(f"lightning.callbacks.{name}.params", entry)
