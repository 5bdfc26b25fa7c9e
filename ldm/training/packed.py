"""Many independent runs through one frozen network, several of them in one batch.

They share one configuration (network, terms, steps, batch) and differ in pictures, sentences, words
and seeds. Each leaves the folder that it leaves alone.
"""

import datetime
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from ldm.checkpoint import read_checkpoint, save_torch, write_atomic
from ldm.config_files import given_weights
from ldm.data.module import DataModuleFromConfig
from ldm.models.diffusion.packed import PackedRuns, checkpoint_of
from ldm.training.cli import Options
from ldm.training.each_run import EachRun, Member
from ldm.training.folder import PACKS, RunFolder, run_folder
from ldm.training.host import settle
from ldm.training.jobs import Job, is_complete, job_config, job_sentence, record
from ldm.training.overview import write_overview
from ldm.training.run import (
    build_model,
    explaining,
    limit_threads,
    pictures,
    read_data,
    scale_learning_rate,
)
from ldm.training.summary import Summary
from ldm.training.trainer import build_trainer
from ldm.training.words import learn_words

__all__ = ["Job", "learn_many", "train_packed"]

logger = logging.getLogger(__name__)

#: In a pack's folder: the names of its runs, in order.
MEMBERS = "runs.json"
#: How many runs share a batch unless the configuration says (``pack``).
PACK = 8


def learn_many(config: DictConfig, jobs: Sequence[Job], root: Path, pack: int = PACK) -> list[Path]:
    """Learn every job, up to `pack` at a time; their folders ``root/<name>``, in order.

    A finished run is left alone. Packs that were interrupted are continued, with the runs they had.

    Raises:
        ValueError: when two jobs have one name, a folder holds a run of something else, or a
            picture or sentence is bad; all before anything is learned.
    """
    limit_threads()
    root, names = Path(root), [job.name for job in jobs]
    if len(set(names)) != len(names):
        raise ValueError(f"two runs cannot have one name: {names}")
    if pack < 1:
        raise ValueError(f"pack={pack}: at least one run must be in a batch")
    waiting = {job.name: job for job in jobs if not is_complete(root / job.name, config, job)}
    for job in waiting.values():
        prepare(config, job, root / job.name)
    model = build_model(config) if waiting else None
    done = len(jobs) - len(waiting)
    for together in packs(root, {job.name: job for job in jobs}, list(waiting), pack):
        logger.info("%d runs of %d are done; next: %s", done, len(jobs), ", ".join(together))
        _learn_pack(config, model, [job for job in jobs if job.name in together], root)
        done += len(set(together) & set(waiting))
    return [root / name for name in names]


def packs(
    root: Path, jobs: dict[str, Job], waiting: Sequence[str], size: int
) -> Iterator[list[str]]:
    """The names of the runs that share a batch: interrupted packs first, as they were."""
    left = list(waiting)
    for file in sorted((root / PACKS).glob(f"*/{MEMBERS}")):
        names = json.loads(file.read_text(encoding="utf-8"))
        begun = (file.parent / "checkpoints" / "last.ckpt").is_file()
        if begun and set(names) <= set(jobs) and set(names) & set(left):
            left = [name for name in left if name not in names]
            yield names
    for start in range(0, len(left), size):
        yield left[start : start + size]


def train_packed(config: DictConfig, options: Options) -> RunFolder:
    """Carry out the runs that a configuration lists under ``runs``, in one folder."""
    listed: Any = OmegaConf.to_container(config.runs)
    jobs = [Job(**entry) for entry in listed]
    with run_folder(options.flags) as folder:
        _write_config(folder, config)
        learn_many(config, jobs, folder.root, config.get("pack", PACK))
        write_overview(folder.root, [job.name for job in jobs])
    return folder


@rank_zero_only
def _write_config(folder: RunFolder, config: DictConfig) -> None:
    """Keep the configuration, so that ``--resume`` finds it; the checkpoints are the runs'."""
    if folder.checkpoints.is_dir():
        folder.checkpoints.rmdir()
    folder.configs.mkdir(parents=True, exist_ok=True)
    with write_atomic(folder.configs / f"{folder.started}-project.yaml") as temporary:
        OmegaConf.save(config, temporary)


# -- one pack


def prepare(config: DictConfig, job: Job, root: Path) -> Member:
    """A run ready to be learned, its pictures and sentences found to be good.

    Raises:
        ValueError: when they are not.
    """
    own = job_config(config, job)
    now = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    return Member(job, own, read_data(own, job_sentence(own, job)), RunFolder(root, now))


def _learn_pack(config: DictConfig, model: Any, jobs: Sequence[Job], root: Path) -> None:
    """Learn the runs of `jobs` in one batch, around the network of `model`."""
    began = time.monotonic()
    members = [prepare(config, job, root / job.name) for job in jobs]
    folder = _pack_folder(root, [job.name for job in jobs], members[0].folder.started)
    for member in members:
        record(member.folder.root, config, member.job, steps=0)
    data = DataModuleFromConfig.packed([member.data for member in members])
    module = PackedRuns(models_around(model, members), data.datasets["train"].active)
    told = pictures(config)
    summaries = [
        Summary(run, member.data.datasets["train"], told)
        for run, member in zip(module.runs, members, strict=True)
    ]
    settle(model, config)
    each = EachRun(members)
    trainer = _pack_trainer(config, folder, each)
    scale_learning_rate(module, config, trainer)
    with explaining(trainer, folder, root):
        trainer.fit(module, datamodule=data, ckpt_path=folder.resumed_from, weights_only=False)
    for number, (summary, member) in enumerate(zip(summaries, members, strict=True)):
        if trainer.is_global_zero and each.is_complete(number, module.active):
            seconds = time.monotonic() - began
            summary.write(member.folder.root, seconds=seconds, seed=member.job.seed)
            _leave_checkpoint(folder, member, number, each.state_of(number))
            ended = each.ended.get(number)
            record(
                member.folder.root, config, member.job, ended or trainer.global_step,
                stopped=ended is not None,
            )  # fmt: skip


def _leave_checkpoint(folder: RunFolder, member: Member, number: int, callbacks: Any) -> None:
    """Give a run the checkpoint it has alone, so that it can be continued alone."""
    last = folder.checkpoints / "last.ckpt"
    if not last.is_file():
        return
    checkpoint = read_checkpoint(last)
    if number in checkpoint["active"]:
        own = {**checkpoint_of(checkpoint, number), "callbacks": callbacks}
        save_torch(own, member.folder.checkpoints / "last.ckpt")


def _pack_folder(root: Path, names: Sequence[str], now: str) -> RunFolder:
    """Where a pack keeps what a resume needs; the checkpoint in it if there is one."""
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]
    folder = root / PACKS / f"{names[0]}-{digest}"
    last = folder / "checkpoints" / "last.ckpt"
    if not getattr(rank_zero_only, "rank", 0):
        last.parent.mkdir(parents=True, exist_ok=True)
        with write_atomic(folder / MEMBERS) as temporary:
            Path(temporary).write_text(json.dumps(names) + "\n", encoding="utf-8")
    return RunFolder(folder, now, last if last.is_file() else None)


def models_around(model: Any, members: Sequence[Member]) -> list[Any]:
    """A model for each run around the network of `model`.

    Runs that are shown the same pictures share their posteriors.
    """
    models: list[Any] = []
    caches: dict[Any, Any] = {}
    for member in members:
        own = model.twin()
        own.seed = member.job.seed
        trained = bool(given_weights(member.config))
        words = learn_words(own, member.data, member.config, trained=trained, quiet=True)
        told = ", ".join(f"{word.name} from {word.start!r}" for word in words or ())
        logger.info("%s learns %s", member.job.name, told)
        key = getattr(member.data.datasets["train"], "arrays", None)
        if own.posteriors is not None and key is not None:
            own.posteriors = caches.setdefault(key, own.posteriors)
        models.append(own)
    return models


def _pack_trainer(config: DictConfig, folder: RunFolder, each: EachRun) -> pl.Trainer:
    """The trainer of a pack: that of a run alone, and what gives each run its own files."""
    shared: Any = OmegaConf.create(OmegaConf.to_container(config))
    OmegaConf.update(shared, "lightning.modelcheckpoint.params.save_top_k", 0, force_add=True)
    OmegaConf.update(shared, "data.params.validation", None, force_add=True)  # a pack has none
    trainer: Any = build_trainer(shared, folder, learns_words=True)
    trainer.callbacks.insert(0, each)
    return trainer
