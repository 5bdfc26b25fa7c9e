"""Continue a run: its own configurations come first, what the command line adds comes after."""

import argparse
from pathlib import Path

from ldm.errors import UserError
from ldm.training.cli import Options


def resumed_options(options: Options) -> Options:
    """`options` with the configuration files of the run that ``--resume`` names put first.

    Raises:
        UserError: when the folder holds no configuration, or a flag is about a new run.
    """
    flags = options.flags
    if not flags.resume:
        return options
    given = Path(flags.resume)
    if not given.exists():
        raise UserError(f"--resume {given}: no such run folder or checkpoint")
    root = given.resolve().parents[1] if given.is_file() else given
    _refuse_new_run(flags, root)
    newest = [
        sorted((root / "configs").glob(f"*-{kind}.yaml"))[-1:] for kind in ("project", "lightning")
    ]
    configs = [str(path) for found in newest for path in found]
    if not newest[0]:
        raise UserError(
            f"--resume {given}: {root / 'configs'} holds no *-project.yaml of a run. Give the "
            "run's folder (logs/<time>_<name>) or a checkpoint in its checkpoints folder"
        )
    merged = argparse.Namespace(**vars(flags))
    merged.base = [*configs, *flags.base]
    return Options(merged, options.trainer, options.overrides)


def _refuse_new_run(flags: argparse.Namespace, root: Path) -> None:
    """Refuse flags that name a new run, or another place than that of the run to continue."""
    for flag, value in (("--name", flags.name), ("--postfix", flags.postfix)):
        if value:
            raise UserError(
                f"{flag} {value} names a new run, --resume {flags.resume} continues one under the "
                "name that it has: leave one of them out"
            )
    if flags.logdir_given and Path(flags.logdir).resolve() not in root.resolve().parents:
        raise UserError(
            f"--resume {flags.resume}: this run does not lie in --logdir {flags.logdir}, and stays "
            "where it is: leave --logdir out"
        )
