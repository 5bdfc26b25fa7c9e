"""Carry out the papers' experiments on drawn pictures: tables, raw values and figures.

    python scripts/reproduce.py --list
    python scripts/reproduce.py mcpl-arms
    python scripts/reproduce.py mcpl-arms mcpl-gamma --quick
    python scripts/reproduce.py mcpl-arms --sets cactus-ball --seeds 10 --steps 400

Experiments are files of configs/paper. What was measured is kept, so an interrupted experiment
continues where it stopped, and several processes may share the work by their --sets: started once
more without --sets, the command writes the whole table.
"""

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ldm.config_files import given_weights
from ldm.errors import UserError
from ldm.evaluation import judge
from ldm.evaluation.tables.grid import (
    Experiment,
    Place,
    Run,
    carry_out,
    file_digest,
    make_family,
    read_experiment,
)
from ldm.evaluation.tables.report import fill_page, markdown, write_report
from ldm.inference import rooted
from ldm.training.cli import parse
from ldm.training.config import load_config
from ldm.training.main import quiet
from ldm.training.packed import Job, learn_many
from ldm.training.run import build_model, limit_threads
from ldm.util import freeze

logger = logging.getLogger("reproduce")

EXPERIMENTS = Path(__file__).resolve().parents[1] / "configs" / "paper"
#: What a run leaves its words in.
WORDS = Path("checkpoints") / "embeddings.safetensors"


@dataclass(frozen=True)
class Workshop:
    """Learns runs with the project's own training, `pack` of them in one batch."""

    pack: int

    def configure(self, base: str, overrides: Sequence[str]) -> DictConfig:
        """The configuration of ``main.py --base BASE OVERRIDES``."""
        return load_config(parse(["--base", str(rooted(base)), *overrides]))

    def learn(self, config: DictConfig, runs: Sequence[Run], root: Path) -> list[Path]:
        """Learn what is not learned yet; the file of words of each run."""
        jobs = [
            Job(run.name, run.task.data_root, run.task.sentence, run.seed, run.arm.strategy)
            for run in runs
        ]
        return [folder / WORDS for folder in learn_many(config, jobs, root, self.pack)]


def known() -> dict[str, Path]:
    """The experiments that there are, by name."""
    return {path.stem: path for path in sorted(EXPERIMENTS.glob("*.yaml"))}


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(
        description="Carry out the papers' experiments on drawn pictures."
    )
    add = parser.add_argument
    # fmt: off
    add("names", nargs="*", metavar="NAME", help="experiments; see --list")
    add("--list", action="store_true", help="say what there is, what it needs, how long it takes")
    add("--quick", action="store_true", help="a trial: one set of each group, one seed, few steps")
    add("--seeds", type=positive, metavar="N", help="repeat every run with N seeds")
    add("--steps", type=positive, metavar="N", help="training steps of a run")
    add("--sets", nargs="+", default=[], metavar="SET", help="only these sets of pictures")
    add("--out", type=Path, default=Path("outputs/reproduce"), metavar="FOLDER",
        help="where results and runs are kept (default: %(default)s)")
    add("--page", type=Path, metavar="FILE",
        help="also put the tables into a page between its marks, such as docs/results.md")
    add("--pack", type=positive, default=8, metavar="N", help="runs that are learned in one batch")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu",
        help="where words are measured (default: %(default)s)")
    # fmt: on
    return parser


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return int(text)


def adjusted(experiment: Experiment, options: argparse.Namespace) -> Experiment:
    """The experiment as the command line wants it."""
    if options.quick:
        experiment = experiment.trial()
    if options.sets:
        experiment = experiment.only(options.sets)
    changes = {"seeds": options.seeds, "steps": options.steps}
    return replace(experiment, **{name: value for name, value in changes.items() if value})


def show_list() -> None:
    """Print a table of the experiments."""
    table = Table(title="Experiments", title_justify="left")
    for heading in ("name", "what", "runs", "steps", "needs", "takes"):
        table.add_column(heading, overflow="fold")
    for name, path in known().items():
        experiment = read_experiment(path)
        sets = sum(len(names) for names in experiment.groups.values())
        arms = sum(arm.learned for arm in experiment.arms)
        runs = f"{arms} arms x {sets} sets x {experiment.seeds} seeds"
        needs = "the default model, the judge"
        cells = [name, experiment.title, runs, str(experiment.steps), needs, experiment.takes]
        table.add_row(*map(Text, cells))
    Console().print(table)


def measuring_model(config: DictConfig, device: str) -> Any:
    """The model that words are measured with: that of the configuration, frozen."""
    limit_threads()
    return freeze(build_model(config)).to(device)


def reproduce(experiment: Experiment, options: argparse.Namespace) -> list[Path]:
    """Carry out one experiment; the files that were written."""
    root = options.out / "quick" if options.quick else options.out
    workshop = Workshop(options.pack)
    config = workshop.configure(experiment.base, experiment.overrides)
    given = given_weights(config)
    if given is None:
        raise UserError(
            f"{experiment.name} has no weights: give weights=FILE, or a backbone that names some"
        )
    weights = file_digest(rooted(given))
    family = make_family(experiment, measuring_model(config, options.device), root / "pictures")
    place = Place(root, workshop, weights, file_digest(judge.WEIGHTS), options.pack)
    rows = carry_out(experiment, family, place)
    facts = {"model": f"{given} ({weights})", "judge": place.settings}
    written = write_report(experiment, rows, root, facts)
    if options.page is not None:
        figure = options.page.parent / "figures" / written[2].name
        figure.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(written[2], figure)
        fill_page(options.page, experiment, markdown(experiment, rows, facts))
        written.append(options.page)
    return written


def check(options: argparse.Namespace) -> list[Experiment]:
    """The experiments of a command line, before anything is carried out.

    Raises:
        UserError: for an unknown experiment, or when the judge's weights are missing.
    """
    unknown = [name for name in options.names if name not in known()]
    if unknown or not options.names:
        raise UserError(
            f"{f'no experiment is called {unknown[0]!r}' if unknown else 'no experiment given'}; "
            f"there are {', '.join(known())} (--list says more)"
        )
    if not judge.WEIGHTS.is_file():
        raise UserError(
            f"the judge that reads drawn pictures is missing: {judge.WEIGHTS} does not exist; it "
            "comes with the project, and configs/playroom/judge.yaml trains it"
        )
    return [adjusted(read_experiment(known()[name]), options) for name in options.names]


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out experiments; the exit code is 0 on success, 1 on an error, 130 on interruption."""
    quiet()
    options = build_parser().parse_args(arguments)
    if options.list:
        show_list()
        return 0
    try:
        for experiment in check(options):
            for path in reproduce(experiment, options):
                print(path)
    except KeyboardInterrupt:
        logger.error("interrupted; what was measured is kept: the same command continues")
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        logger.error("error: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
