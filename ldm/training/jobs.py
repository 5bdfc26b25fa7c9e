"""One run of many: what it learns, its own configuration, and the record of how far it is."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from ldm.checkpoint import write_atomic
from ldm.prompts.sentence import Sentence, apply_strategy
from ldm.training.config import CONCEPT_SET, point_data_at, shown_datasets
from ldm.training.run import concept_sentence

#: In a run's folder: what it is of, and how many steps it has been learned for.
RECORD = "run.json"
#: Steps of a run when the configuration does not say (as for a run alone).
STEPS = 6100


@dataclass(frozen=True)
class Job:
    """One run of many: its pictures, its sentence and its seed.

    `data_root` is a folder, or ``playroom:<name>`` for a drawn set; an empty one leaves the
    configuration's. `sentence` is markup, a `Sentence`, one for each kind of picture ({"concept":
    ..., "subject": ...}), or ``None`` for what the configuration or the pictures say. `steps` end
    the run before those of the configuration are over.
    """

    name: str
    data_root: str
    sentence: str | Sentence | Mapping[str, Any] | None
    seed: int
    strategy: str = "one"
    steps: int | None = None

    def wanted(self, config: DictConfig) -> int:
        """For how many steps it is to be learned."""
        whole = OmegaConf.select(config, "lightning.trainer.max_steps") or STEPS
        return int(whole if self.steps is None else min(self.steps, whole))


def job_config(config: DictConfig, job: Job) -> DictConfig:
    """The configuration of one run, as if it was started alone."""
    own: Any = OmegaConf.create(OmegaConf.to_container(config))
    own.pop("runs", None)
    own.seed = job.seed
    if job.data_root:
        point_data_at(own, job.data_root)
    if job.sentence is None:
        return own
    own.concept = {"strategy": job.strategy}
    if isinstance(job.sentence, str):
        own.concept.sentence = job.sentence
    for dataset in shown_datasets(own).values():
        if dataset.get("params") is not None:
            _show_with(dataset, job.sentence)
    return own


def _show_with(dataset: DictConfig, sentence: Any) -> None:
    """Have the pictures of a dataset shown with `sentence` and not with those of a drawn set."""
    if dataset.target == CONCEPT_SET:
        dataset.params.own_sentences = False  # a drawn set has some, and others are asked for
    if isinstance(sentence, Mapping):
        dataset.params.sentence = {kind: str(each) for kind, each in sentence.items()}


def job_sentence(own: DictConfig, job: Job) -> Sentence | None:
    """The sentence of one run, given its own configuration."""
    if isinstance(job.sentence, Sentence):
        return apply_strategy(job.sentence, "all" if job.strategy == "all" else "one")
    return concept_sentence(own)


def fingerprint(config: DictConfig, job: Job) -> str:
    """Short text that is another one for any other job or configuration, but for their steps."""
    kept = ("model", "data", "concept", "backbone", "weights", "scale_lr")
    own = {name: config[name] for name in kept if name in config}
    told = {**dataclasses.asdict(job), "steps": None}
    plain = OmegaConf.to_container(OmegaConf.create(own))
    said = json.dumps([plain, told], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


@rank_zero_only
def record(
    folder: Path, config: DictConfig, job: Job, steps: int, *, stopped: bool = False
) -> None:
    """Write down that `folder` holds the run of `job`, complete up to `steps`.

    `stopped` says that it ended by itself and is not to go on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    said = {
        "name": job.name, "data_root": job.data_root, "seed": job.seed, "strategy": job.strategy,
        "sentence": str(job.sentence or ""), "steps": steps,
        "stopped": stopped,
        "fingerprint": fingerprint(config, job),
    }  # fmt: skip
    with write_atomic(folder / RECORD) as temporary:
        text = json.dumps(said, indent=2, ensure_ascii=False)
        Path(temporary).write_text(text + "\n", encoding="utf-8")


def is_complete(folder: Path, config: DictConfig, job: Job) -> bool:
    """Whether `folder` holds the run of a job, learned to its end.

    Raises:
        ValueError: when the folder holds something else.
    """
    if not (folder / RECORD).is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} is there already, without {RECORD}: choose another name")
        return False
    known = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if known["fingerprint"] != fingerprint(config, job):
        raise ValueError(
            f"{folder} holds a run with another configuration or job: choose another folder or "
            "name, or remove it"
        )
    return bool(known["stopped"]) or known["steps"] >= job.wanted(config)
