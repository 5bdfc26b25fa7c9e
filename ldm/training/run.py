"""One training run: model and weights, data and words, trainer, and what is left at the end."""

import datetime
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from ldm.checkpoint import load_with_report, read_state_dict
from ldm.prompts.sentence import Sentence, apply_strategy, parse_released, parse_sentence
from ldm.training.cli import Options
from ldm.training.errors import UserError
from ldm.training.summary import Summary, log_table
from ldm.training.trainer import build_trainer
from ldm.training.words import learn_words
from ldm.util import instantiate_from_config

logger = logging.getLogger(__name__)

#: Parts without which a loaded model cannot work.
CORE_PREFIXES = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes: ``logs/<time>_<name>/{configs,checkpoints,images}``."""

    root: Path
    resumed_from: Path | None = None

    @property
    def checkpoints(self) -> Path:
        """Embeddings and ``last.ckpt``."""
        return self.root / "checkpoints"

    @property
    def configs(self) -> Path:
        """The configurations the run was started with."""
        return self.root / "configs"

    @property
    def images(self) -> Path:
        """Pictures."""
        return self.root / "images"


def open_run_folder(flags: Any) -> RunFolder:
    """The folder of a new run, or of the one to resume.

    Raises:
        UserError: when the folder cannot be written, or there is nothing to resume.
    """
    if flags.resume:
        return _resumed(Path(flags.resume))
    name = flags.name or (Path(flags.base[0]).stem if flags.base else "run")
    now = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    if flags.datadir_in_name and flags.data_root:
        now = Path(flags.data_root.removeprefix("playroom:")).name + now
    root = Path(flags.logdir) / f"{now}_{name}{flags.postfix}"
    try:
        for suffix in ("", *(f"-{i}" for i in range(1, 1000))):
            candidate = root.with_name(root.name + suffix)
            if not candidate.exists():
                (candidate / "checkpoints").mkdir(parents=True)
                return RunFolder(candidate)
    except OSError as error:
        raise UserError(
            f"cannot write to the log folder {flags.logdir!r}: {error.strerror or error}. "
            "Choose another with --logdir"
        ) from error
    raise UserError(f"too many runs named {root.name} in {flags.logdir}")


def _resumed(given: Path) -> RunFolder:
    if not given.exists():
        raise UserError(f"--resume {given}: no such run folder or checkpoint")
    if given.is_file():
        return RunFolder(given.resolve().parents[1], given)
    last = given / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise UserError(
            f"--resume {given}: this run has no checkpoints/last.ckpt yet, so there is nothing to "
            "continue; start it again without --resume"
        )
    return RunFolder(given, last)


def concept_sentence(config: DictConfig) -> Sentence | None:
    """The sentence with the words to learn that a configuration describes, or ``None``.

    Without a part ``concept``, the placeholder of a public ``personalization_config`` is the
    sentence.
    """
    concept = config.get("concept")
    if not concept:
        return _public_placeholder(config)
    if concept.get("sentence") is not None:
        sentence = parse_sentence(concept.sentence)
        return apply_strategy(sentence, concept.get("strategy", "one"))
    if concept.get("placeholder_string") is None:
        return None
    return parse_released(
        concept.placeholder_string,
        list(concept.pseudo_words),
        adjectives=list(concept.get("adjectives") or ()),
        init_word=concept.get("init_word"),
    )


def _public_placeholder(config: DictConfig) -> Sentence | None:
    params = OmegaConf.select(config, "model.params.personalization_config.params")
    if not params or not params.get("placeholder_strings"):
        return None
    names = list(params.placeholder_strings)
    starts = list(params.get("initializer_words") or [])
    return parse_released(" ".join(names), names, init_word=",".join(starts) or None)


def build_model(config: DictConfig) -> pl.LightningModule:
    """The model with its weights.

    Raises:
        ValueError: when the weights are of another architecture.
    """
    model = instantiate_from_config(OmegaConf.to_container(config.model, resolve=True))
    model.seed = config.seed
    weights = config.get("weights", OmegaConf.select(config, "backbone.weights"))
    if weights:
        state = read_state_dict(find_weights(weights))
        load_with_report(model, state, core=CORE_PREFIXES)
    return model


def find_weights(path: str) -> Path:
    """A weights file, looked for from the current folder and from the project's root."""
    given = Path(path).expanduser()
    rooted = Path(__file__).resolve().parents[2] / path
    return given if given.exists() or not rooted.exists() else rooted


def build_data(config: DictConfig, sentence: Sentence | None) -> pl.LightningDataModule:
    """The data module; its training set says the sentences, if it is for learning words."""
    data = OmegaConf.to_container(config.data, resolve=True)
    for part in ("train", "validation"):
        params = (data["params"].get(part) or {}).get("params")
        if params is not None and sentence is not None:
            params.pop("placeholder_token", None)
            params["sentence"] = sentence
        if params is not None and data["params"][part]["target"].startswith("ldm.data."):
            params.setdefault("seed", config.seed)
    module = instantiate_from_config(data)
    module.prepare_data()
    module.setup()
    return module


def scale_learning_rate(model: Any, config: DictConfig, trainer: pl.Trainer, scale: bool) -> None:
    """Set the learning rate: base x accumulation x devices x batch size, if `scale`."""
    base = config.model.base_learning_rate
    batch, accumulate = config.data.params.batch_size, trainer.accumulate_grad_batches
    factor = accumulate * trainer.num_devices * trainer.num_nodes * batch if scale else 1
    model.learning_rate = base * factor
    logger.info("learning rate %.3g = %d x %.3g", model.learning_rate, factor, base)


def train(config: DictConfig, options: Options) -> RunFolder:
    """Carry out a run from its configuration; returns its folder."""
    started, flags = time.monotonic(), options.flags
    limit_threads()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    sentence = concept_sentence(config)
    data = build_data(config, sentence)
    model = build_model(config)
    words = learn_words(model, data, config)
    if config.get("channels_last"):
        model.to(memory_format=torch.channels_last)
    folder = open_run_folder(flags)
    trainer = build_trainer(config, folder, learns_words=words is not None)
    scale_learning_rate(model, config, trainer, scale=config.get("scale_lr", flags.scale_lr))
    summary = None if words is None else Summary(model, data.datasets["train"])
    logger.info("first step after %.1f s", time.monotonic() - started)
    trainer.fit(model, datamodule=data, ckpt_path=folder.resumed_from, weights_only=False)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if summary is not None and trainer.is_global_zero:
        seconds = time.monotonic() - started
        log_table(summary.write(folder.root, seconds=seconds, seed=config.seed)["words"])
    return folder


def limit_threads() -> None:
    """Use as many threads as cores may be used, or as ``LDM_THREADS`` says."""
    threads = os.environ.get("LDM_THREADS")
    if threads:
        torch.set_num_threads(int(threads))
