"""The folder of a run: a new one, or that of the run to continue."""

import datetime
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from ldm.checkpoint import read_checkpoint
from ldm.errors import UserError

#: Files that are the fruit of a run: a folder with one of them is never taken away.
FRUIT = (".ckpt", ".pt", ".safetensors", ".png", ".csv")


#: In the folder of several runs: what the resume of those that share a batch needs.
PACKS = "packs"


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes: ``logs/<time>_<name>/{configs,checkpoints,images}``.

    `started` is the time of this start, by which its configurations are called; `resumed_from` is
    the checkpoint to continue from.
    """

    root: Path
    started: str
    resumed_from: Path | None = None

    @property
    def checkpoints(self) -> Path:
        """Embeddings and ``last.ckpt``."""
        return self.root / "checkpoints"

    @property
    def configs(self) -> Path:
        """The configurations the run was started with."""
        return self.root / "configs"

    def fresh(self, name: str) -> str:
        """`name`, or ``name-2``, ``name-3``, ... where an earlier start has taken it."""
        taken = (name, *(f"{name}-{i}" for i in range(2, 1000)))
        return next(one for one in taken if not (self.root / one).exists())


@contextmanager
def run_folder(flags: Any) -> Iterator[RunFolder]:
    """The folder of a run while it lasts; a new one is removed when the run fails with no fruit.

    Only the first of several processes makes and removes it.

    Raises:
        UserError: when the folder cannot be written, or there is nothing to resume.
    """
    now = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    if flags.resume:
        yield _resumed(Path(flags.resume), now)
        return
    if getattr(rank_zero_only, "rank", 0):
        yield RunFolder(_named(flags, now), now)
        return
    logs_are_new = not Path(flags.logdir).exists()
    folder = RunFolder(_make(_named(flags, now), flags.logdir), now)
    try:
        yield folder
    except BaseException:
        if not any(path.suffix in FRUIT for path in folder.root.rglob("*")):
            shutil.rmtree(folder.root, ignore_errors=True)
            if logs_are_new and not any(Path(flags.logdir).iterdir()):
                Path(flags.logdir).rmdir()
        raise


def _named(flags: Any, now: str) -> Path:
    """What the folder of a run is called: ``<data folder><time>_<name><postfix>``."""
    name = flags.name or (Path(flags.base[0]).stem if flags.base else "run")
    data = ""
    if flags.datadir_in_name and flags.data_root:
        data = Path(flags.data_root.removeprefix("playroom:")).name
    return Path(flags.logdir) / f"{data}{now}_{name}{flags.postfix}"


def _make(root: Path, logdir: str) -> Path:
    """Make the folder, or one beside it where another run has it already."""
    try:
        for suffix in ("", *(f"-{i}" for i in range(1, 1000))):
            candidate = root.with_name(root.name + suffix)
            candidate.parent.mkdir(parents=True, exist_ok=True)
            # Not looked for first: another run may begin in between.
            with suppress(FileExistsError):
                candidate.mkdir()
                (candidate / "checkpoints").mkdir()
                return candidate
    except OSError as error:
        raise UserError(
            f"cannot write to the log folder {logdir!r}: {error.strerror or error}. "
            "Choose another with --logdir"
        ) from error
    raise UserError(f"too many runs named {root.name} in {logdir}")


def _resumed(given: Path, now: str) -> RunFolder:
    """The folder of the run that a folder or one of its checkpoints belongs to."""
    if given.is_file():
        _check_state(given)
        return RunFolder(given.resolve().parents[1], now, given)
    if (given / PACKS).is_dir():
        return RunFolder(given, now)
    last = given / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise UserError(
            f"--resume {given}: this run has no checkpoints/last.ckpt yet, so there is nothing to "
            "continue; start it again without --resume"
        )
    _check_state(last)
    return RunFolder(given, now, last)


def _check_state(path: Path) -> None:
    """Refuse a file that holds no state of a training, before a model is built for it."""
    content = read_checkpoint(path)
    if "pytorch-lightning_version" in content:
        return
    if not content:
        found = "is an emptied checkpoint, as runs with a frozen model used to save"
    elif "string_to_param" in content:
        found = "holds learned words"
    else:
        found = "holds no state of a training"
    raise UserError(
        f"--resume {path}: this file {found}, so there is nothing to continue. Give another "
        "checkpoint of the run, last.ckpt or step-*.ckpt, if it has one; learned words "
        "(embeddings*.pt) are the start of a new run with --embedding_manager_ckpt FILE instead "
        "of --resume"
    )
