"""An experiment as data: arms, sets of pictures, seeds; every run carried out and measured once.

A YAML file of ``configs/paper`` describes an experiment (`read_experiment`). Its `Family` knows
what the runs learn from and how they are measured; a `Workshop` turns an arm into a configuration
and learns runs that share one. `carry_out` brings them together and keeps the raw values of each
run in a file of its own, so that what was measured is not measured again: not after an
interruption, not by another experiment that has the same run, not by a second process beside it.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from omegaconf import DictConfig, OmegaConf

from ldm.checkpoint import write_atomic
from ldm.util import get_obj_from_str

logger = logging.getLogger(__name__)

#: Parts of a configuration, and arguments of the trainer, that decide what is learned.
LEARNING = ("model", "data", "concept", "backbone", "weights", "scale_lr", "channels_last")
TRAINING = ("max_steps", "accumulate_grad_batches", "precision", "gradient_clip_val")
#: The raw values of one run, with what it was.
Row = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One way to learn: `overrides` of the method's configuration, and which words are learned.

    `times` multiplies the experiment's steps. `wording` says which sentence is shown; its values
    are the family's. An arm that is not `learned` measures words as they start. A `reference` is
    given more than the others, so that it is no rival of theirs. One that is not `shown` has no row
    in the table.
    """

    name: str
    label: str = ""
    overrides: tuple[str, ...] = ()
    times: float = 1.0
    strategy: Literal["one", "all"] = "one"
    wording: str = "own"
    learned: bool = True
    reference: bool = False
    shown: bool = True


@dataclass(frozen=True)
class Experiment:
    """What is compared, on which pictures, how often, and what the table shows.

    `groups` are named lists of sets, tabled apart. `columns` maps measures to headings. `options`
    belong to the family. `checks` are questions to the figures (:mod:`.questions`). `paper` holds
    the paper's figures by arm, shown beside. `quick` replaces fields for a trial.
    """

    name: str
    title: str
    about: str
    base: str
    family: str
    arms: tuple[Arm, ...]
    groups: Mapping[str, tuple[str, ...]]
    columns: Mapping[str, str]
    seeds: int = 3
    steps: int = 400
    overrides: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    checks: tuple[Mapping[str, Any], ...] = ()
    paper: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=dict)
    takes: str = ""

    def steps_of(self, arm: Arm) -> int:
        """The training steps of the runs of an arm."""
        return max(1, round(self.steps * arm.times))

    def only(self, sets: Sequence[str]) -> "Experiment":
        """The same with these sets alone.

        Raises:
            ValueError: for a set that is not in it.
        """
        known = [name for names in self.groups.values() for name in names]
        unknown = sorted(set(sets) - set(known))
        if unknown:
            raise ValueError(f"--sets {unknown}: {self.name} has the sets {known}")
        groups = {g: tuple(n for n in names if n in sets) for g, names in self.groups.items()}
        return replace(self, groups={group: names for group, names in groups.items() if names})

    def trial(self) -> "Experiment":
        """The same, tiny: the first set of each group, and what `quick` says."""
        changes = dict(self.quick)
        options = {**self.options, **changes.pop("options", {})}
        groups = {group: names[:1] for group, names in self.groups.items()}
        return replace(self, **{"seeds": 1, "groups": groups, "options": options, **changes})


def read_experiment(path: str | Path) -> Experiment:
    """The experiment that a YAML file describes, called by the file's name.

    Raises:
        ValueError: when the file has unknown or missing entries; names them.
    """
    path = Path(path)
    told: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    try:
        arms = tuple(
            Arm(name, **{**about, "overrides": tuple(about.get("overrides", ()))})
            for name, about in told.pop("arms").items()
        )
        groups = {name: tuple(sets) for name, sets in told.pop("groups").items()}
        for name in {"overrides", "checks"} & told.keys():
            told[name] = tuple(told[name])
        return Experiment(path.stem, arms=arms, groups=groups, **told)
    except (TypeError, KeyError, AttributeError) as error:
        accepted = ", ".join(name for name in Experiment.__dataclass_fields__ if name != "name")
        raise ValueError(
            f"{path} does not describe an experiment ({error}); accepted are {accepted}; an arm "
            f"has {', '.join(list(Arm.__dataclass_fields__)[1:])}"
        ) from error


@dataclass(frozen=True)
class Task:
    """What one run learns from: a folder or drawn set, and its sentence if that is not its own.

    `part` tells several runs on one set apart: the word that is learned alone.
    """

    data_root: str
    sentence: str | None = None
    part: str = ""


@dataclass(frozen=True)
class Run:
    """One run: which arm, on which set, with which seed."""

    arm: Arm
    group: str
    set: str
    seed: int
    task: Task
    name: str = ""


class Family(Protocol):
    """What the runs of an experiment learn from and how they are measured.

    It is made as ``Family(experiment, model, folder)``; `folder` is for pictures it draws.
    """

    def tasks(self, arm: Arm, set_name: str, seed: int) -> Sequence[Task]:
        """The runs of an arm on a set: mostly one."""
        ...

    def measure(self, runs: Sequence[Run], words: Sequence[Path | None]) -> Sequence[Row]:
        """``{"values": {measure: figure}, ...}`` of each run from its file of words.

        There is no file for an arm that is not learned.
        """
        ...

    def derive(self, rows: Sequence[Row]) -> None:
        """Add to the rows' values what needs several runs to be said."""
        ...


class Workshop(Protocol):
    """Where runs are learned."""

    def configure(self, base: str, overrides: Sequence[str]) -> DictConfig:
        """The whole configuration of a method with these overrides."""
        ...

    def learn(self, config: DictConfig, runs: Sequence[Run], root: Path) -> Sequence[Path]:
        """Learn runs that share a configuration; the file of words of each."""
        ...


def digest(*facts: Any) -> str:
    """A short name for some facts: equal for equal facts."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_digest(path: str | Path) -> str:
    """A short name for the content of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


class Store:
    """The raw values of runs, a JSON file each."""

    def __init__(self, folder: Path, settings: str) -> None:
        self.folder, self.settings = folder, settings

    def _path(self, run: Run) -> Path:
        return self.folder / f"{run.name}-{self.settings}.json"

    def get(self, run: Run) -> Row | None:
        """What was measured of a run, if it was."""
        path = self._path(run)
        if not path.is_file():
            return None
        return {**json.loads(path.read_text(encoding="utf-8")), **_about(run)}

    def put(self, run: Run, row: Mapping[str, Any]) -> None:
        """Keep what was measured of a run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with write_atomic(self._path(run)) as temporary:
            Path(temporary).write_text(json.dumps({**row, **_about(run)}), encoding="utf-8")


def _about(run: Run) -> Row:
    return {"arm": run.arm.name, "group": run.group, "set": run.set, "seed": run.seed,
            "part": run.task.part, "name": run.name}  # fmt: skip


def arm_config(experiment: Experiment, arm: Arm, workshop: Workshop) -> DictConfig:
    """The configuration that all runs of an arm share."""
    steps = f"lightning.trainer.max_steps={experiment.steps_of(arm)}"
    return workshop.configure(experiment.base, (*experiment.overrides, *arm.overrides, steps))


def deciding(config: DictConfig) -> dict[str, Any]:
    """What of a configuration decides what is learned, without what is only shown or logged."""
    whole: Any = OmegaConf.to_container(config, resolve=True)
    trainer = (whole.get("lightning") or {}).get("trainer") or {}
    parts = {"": (whole, LEARNING), "trainer": (trainer, TRAINING)}
    return {
        part: {name: told[name] for name in names if name in told}
        for part, (told, names) in parts.items()
    }


def runs_of(
    experiment: Experiment, arm: Arm, family: Family, config: DictConfig, weights: str = ""
) -> Iterator[Run]:
    """The runs of an arm, each named after all that decides what comes out of it."""
    told = deciding(config) if arm.learned else {}
    for group, names in experiment.groups.items():
        for name in names:
            for seed in range(experiment.seeds):
                for task in family.tasks(arm, name, seed):
                    seen = (Path(task.data_root).name, task.sentence)
                    key = digest(told, arm.strategy, arm.wording, seen, weights)
                    parts = (name, task.part.strip("<>"), str(seed), key)
                    label = "-".join(part for part in parts if part)
                    yield Run(arm, group, name, seed, task, label)


def make_family(experiment: Experiment, model: Any, folder: Path) -> Family:
    """The family that an experiment names."""
    family: Family = get_obj_from_str(experiment.family)(experiment, model, folder)
    return family


@dataclass(frozen=True)
class Place:
    """Where an experiment is carried out: files under `root`, `pack` runs at a time.

    `weights` and `settings` name the model and all that decides how runs are measured.
    """

    root: Path
    workshop: Workshop
    weights: str = ""
    settings: str = ""
    pack: int = 8


def carry_out(
    experiment: Experiment,
    family: Family,
    place: Place,
    tell: Callable[[str], None] = logger.info,
) -> list[Row]:
    """Learn and measure whatever has not been yet; the raw values of all runs."""
    settings = digest(experiment.family, experiment.options, place.settings)
    store = Store(place.root / "runs", settings)
    rows: list[Row] = []
    for arm in experiment.arms:
        config = arm_config(experiment, arm, place.workshop)
        runs = list(runs_of(experiment, arm, family, config, place.weights))
        todo = [run for run in runs if store.get(run) is None]
        started = time.monotonic()
        for first in range(0, len(todo), place.pack):
            part = todo[first : first + place.pack]
            words: Sequence[Path | None] = [None] * len(part)
            if arm.learned:
                words = place.workshop.learn(config, part, place.root / "logs")
            for run, row in zip(part, family.measure(part, words), strict=True):
                store.put(run, row)
        took = f" in {time.monotonic() - started:.0f} s" if todo else ""
        tell(f"{experiment.name}, {arm.name}: {len(runs)} runs, {len(todo)} of them new{took}")
        rows += [row for row in map(store.get, runs) if row is not None]
    family.derive(rows)
    return rows
