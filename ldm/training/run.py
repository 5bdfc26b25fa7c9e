"""One training run: model and weights, data and words, trainer, and what is left at the end."""

import inspect
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.model_helpers import is_overridden

from ldm.checkpoint import load_with_report, read_state_dict
from ldm.config_files import given_weights
from ldm.data.module import DataModuleFromConfig
from ldm.errors import UserError
from ldm.evaluation.pictures import Pictures
from ldm.evaluation.report import finished_steps, read_summary
from ldm.inference import rooted
from ldm.prompts.sentence import (
    Sentence,
    apply_strategy,
    as_words,
    parse_released,
    parse_sentence,
)
from ldm.training.cli import Options
from ldm.training.clock import seconds_running
from ldm.training.config import DATASETS, public_start, public_words
from ldm.training.folder import RunFolder, run_folder
from ldm.training.host import keep_freed_memory, settle
from ldm.training.summary import Summary, log_table
from ldm.training.trainer import build_trainer
from ldm.training.words import check_words, learn_words
from ldm.util import get_obj_from_str, instantiate_from_config

logger = logging.getLogger(__name__)

#: Parts without which a loaded model cannot work.
CORE_PREFIXES = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")


def concept_sentence(config: DictConfig) -> Sentence | None:
    """The sentence with the words to learn that a configuration describes, or ``None``.

    Without a part ``concept``, the placeholder of a public ``personalization_config`` is the
    sentence.
    """
    concept = config.get("concept") or OmegaConf.create()
    if concept.get("sentence") is not None:
        sentence = parse_sentence(concept.sentence)
        return apply_strategy(sentence, concept.get("strategy", "one"))
    if concept.get("placeholder_string") is None:
        return _public_placeholder(config)
    return _released(
        config,
        concept.placeholder_string,
        as_words(concept.pseudo_words),
        adjectives=as_words(concept.get("adjectives")),
        init_word=concept.get("init_word"),
    )


def _public_placeholder(config: DictConfig) -> Sentence | None:
    found = public_words(config)
    if found is None:
        return None
    return _released(config, *found, init_word=public_start(config, found[1]))


def _released(config: DictConfig, text: str, words: Sequence[str], **options: Any) -> Sentence:
    """The sentence of a placeholder; if that is one word, after ``coarse_class_text``."""
    coarse = OmegaConf.select(config, "data.params.train.params.coarse_class_text")
    if coarse and list(words) == [text]:
        text = f"{coarse} {text}"
    return parse_released(text, words, **options)


def build_model(config: DictConfig) -> pl.LightningModule:
    """The model with its weights.

    Raises:
        ValueError: when the weights are of another architecture, or the class takes no such params.
        UserError: when the backbone's own weights are not there.
    """
    with _telling("model", config.model.target):
        described = cast(dict[str, Any], OmegaConf.to_container(config.model, resolve=True))
        model = instantiate_from_config(described)
    model.seed = config.seed
    weights = given_weights(config)
    if weights:
        path = _weights_file(weights, config)
        load_with_report(model, read_state_dict(path), core=CORE_PREFIXES, source=path)
    return model


def _weights_file(weights: str, config: DictConfig) -> Path:
    """The file of the weights; says where a backbone's own are to be had if they are not there."""
    path = rooted(weights)
    backbone = config.get("backbone") or {}
    if weights == backbone.get("weights") and not path.exists():
        raise UserError(
            f"the backbone {backbone.get('name')} has its weights in {weights}, where there is no "
            "file: models/ldm/text2img-large/README.md says where to get them; a file elsewhere is "
            "named with --actual_resume CKPT"
        )
    return path


def build_data(config: DictConfig, sentence: Sentence | None) -> DataModuleFromConfig:
    """The data module; its training set says the sentences, if it is for learning words.

    Raises:
        ValueError: for bad pictures or sentences, or when a class takes no such params.
    """
    data = cast(dict[str, Any], OmegaConf.to_container(config.data, resolve=True))
    strategy = OmegaConf.select(config, "concept.strategy")
    for part in DATASETS:
        entry = data["params"].get(part) or {}
        _check_pictures(part, entry)
        params = entry.get("params")
        if params is None:
            continue
        if sentence is not None:
            _give_sentence(params, sentence, config)
        if strategy is not None:
            params["strategy"] = strategy
        if entry["target"].startswith("ldm.data."):
            params.setdefault("seed", config.seed)
    with _telling("data", config.data.target):
        module = instantiate_from_config(data)
        module.prepare_data()
        module.setup()
    return module


def _check_pictures(part: str, entry: Mapping[str, Any]) -> None:
    """Refuse a dataset that needs a folder of pictures and is given none.

    Raises:
        UserError: with the flag that names one.
    """
    if not entry.get("target"):
        return
    accepted = inspect.signature(get_obj_from_str(entry["target"])).parameters
    needed = "data_root" in accepted and accepted["data_root"].default is inspect.Parameter.empty
    if needed and not (entry.get("params") or {}).get("data_root"):
        raise UserError(
            f"data.params.{part} ({entry['target']}) has no pictures: give --data_root FOLDER"
        )


def _give_sentence(params: dict[str, Any], sentence: Sentence, config: DictConfig) -> None:
    """Have the pictures of a dataset shown with `sentence`, whatever else would say one."""
    params.pop("placeholder_token", None)
    params["sentence"] = sentence
    # A class before a placeholder is in the sentence already; before another it is refused.
    whole = f"{params.get('coarse_class_text')} {sentence.names[0]}"
    if OmegaConf.select(config, "concept.sentence") is None and sentence.caption.text == whole:
        params.pop("coarse_class_text", None)


@contextmanager
def _telling(part: str, target: str) -> Iterator[None]:
    """Turn a constructor's refusal of its arguments into a message on the configuration."""
    try:
        yield
    except TypeError as error:
        raise UserError(
            f"{part}.params do not fit {target}: {error} (the full traceback: --debug)"
        ) from error


def scale_learning_rate(model: Any, config: DictConfig, trainer: pl.Trainer) -> None:
    """Set the learning rate: base x accumulation x devices x batch, or base without scale_lr."""
    base = config.model.base_learning_rate
    batch, accumulate = config.data.params.batch_size, trainer.accumulate_grad_batches
    factor = accumulate * trainer.num_devices * trainer.num_nodes * batch
    factor = factor if config.get("scale_lr", True) else 1
    model.learning_rate = base * factor
    logger.info("learning rate %.3g = %d x %.3g", model.learning_rate, factor, base)


def hand_over_accumulation(model: Any, trainer: pl.Trainer) -> None:
    """Let a model that steps its optimizers itself sum up its batches itself, too.

    Lightning does neither for it, and refuses to.
    """
    if not model.automatic_optimization:
        model.accumulate_grad_batches = trainer.accumulate_grad_batches
        trainer.accumulate_grad_batches = 1


def train(config: DictConfig, options: Options) -> RunFolder:
    """Carry out a run from its configuration; returns its folder."""
    limit_threads()
    data = read_data(config, concept_sentence(config))
    with run_folder(options.flags) as folder:
        learn(config, data, folder, test=not options.flags.no_test)
    return folder


def read_data(config: DictConfig, sentence: Sentence | None) -> DataModuleFromConfig:
    """The data of a run, found to be good, with torch's generators seeded for what follows."""
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = build_data(config, sentence)
    check_words(data, config, sentence)
    return data


def learn(
    config: DictConfig, data: DataModuleFromConfig, folder: RunFolder, *, test: bool = False
) -> None:
    """Build the model of a run, train it on `data`, and write what it leaves to `folder`."""
    model = build_model(config)
    words = learn_words(model, data, config, trained=bool(given_weights(config)))
    settle(model, config)
    learns_words = words is not None
    network_too = learns_words and not model.learns_words
    trainer = build_trainer(config, folder, learns_words=learns_words, network_too=network_too)
    scale_learning_rate(model, config, trainer)
    hand_over_accumulation(model, trainer)
    _refuse_finished(folder, trainer.max_steps)
    # The time of earlier starts counts, as far as they wrote it down.
    before = read_summary(folder.root).get("seconds", 0.0) if folder.resumed_from else 0.0
    told = pictures(config)
    summary = None if words is None else Summary(model, data.datasets["train"], told)
    try:
        with explaining(trainer, folder, folder.root):
            trainer.fit(model, datamodule=data, ckpt_path=folder.resumed_from, weights_only=False)
    except KeyboardInterrupt:
        if summary is not None and trainer.is_global_zero and trainer.global_step:
            seconds = before + seconds_running()
            summary.write(folder.root, seconds=seconds, seed=config.seed, finished=False)
        raise
    if test and is_overridden("test_step", model):
        trainer.test(model, datamodule=data, verbose=False)
    if summary is not None and trainer.is_global_zero:
        seconds = before + seconds_running()
        written = summary.write(folder.root, seconds=seconds, seed=config.seed)
        log_table(written["words"])


def _refuse_finished(folder: RunFolder, max_steps: int) -> None:
    """Refuse to continue a run from its end when no step is left.

    Raises:
        UserError: when all of its steps are done and summed up.
    """
    from_end = folder.resumed_from is not None and folder.resumed_from.name == "last.ckpt"
    done = finished_steps(folder.root) if from_end else 0
    if done and 0 <= max_steps <= done:
        raise UserError(
            f"all {max_steps} steps of {folder.root} are done: go on with more, for example "
            f"--max_steps {2 * max_steps}"
        )


@contextmanager
def explaining(trainer: pl.Trainer, folder: RunFolder, root: Path) -> Iterator[None]:
    """Say how to continue the runs in `root` when the one of `folder` is interrupted.

    Raises:
        UserError: with what Lightning says when the trainer's arguments do not suit the model.
        KeyboardInterrupt: with the command that goes on from what was saved.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(
            f"Lightning refuses this run: {error} (the arguments are those of lightning.trainer)"
        ) from error
    except SystemExit:
        if not trainer.interrupted:
            raise
        saved = (folder.checkpoints / "last.ckpt").is_file()
        said = f"continue with --resume {root}" if saved else "nothing had been saved yet"
        raise KeyboardInterrupt(said) from None


def pictures(config: DictConfig) -> Pictures | None:
    """What a run is to be summed up with, as the part ``summary`` of its configuration says."""
    return Pictures.of(config.get("summary"))


def limit_threads() -> None:
    """Use as many threads as cores may be used, or as ``LDM_THREADS`` says, and keep memory."""
    keep_freed_memory()
    threads = os.environ.get("LDM_THREADS")
    if threads:
        torch.set_num_threads(int(threads))
