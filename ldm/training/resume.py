"""Continue a run: its own configurations come first, what the command line adds comes after."""

import argparse
from pathlib import Path

from ldm.errors import UserError
from ldm.training.cli import Options


def resumed_options(options: Options) -> Options:
    """`options` with the configuration files of the run that ``--resume`` names put first.

    Raises:
        UserError: when the folder holds no configuration.
    """
    flags = options.flags
    if not flags.resume:
        return options
    given = Path(flags.resume)
    if not given.exists():
        raise UserError(f"--resume {given}: no such run folder or checkpoint")
    root = given.resolve().parents[1] if given.is_file() else given
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
