"""A toy model on disk, and ``main.py`` called as a user calls it."""

import logging
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ldm.training.main import main
from tests.training.toy import Toy, write_toy


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Toy:
    """Configurations, weights and pictures of the toy model."""
    return write_toy(tmp_path_factory.mktemp("toy"))


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, what it wrote to stderr, and the run's folder."""

    code: int
    said: str
    folder: Path | None

    @property
    def error(self) -> str:
        """The one message that a failed command gives."""
        lines = [line for line in self.said.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.said
        return self.said[self.said.index(lines[0]) :].strip()


@contextmanager
def fresh_logging():
    """Logging as a new process has it, so that a command sets it up for itself."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    try:
        yield
    finally:
        root.handlers, root.level = handlers, level


@pytest.fixture
def command(capsys) -> Callable[..., Outcome]:
    """Calls ``main.py`` with arguments."""

    def call(arguments: list[str], logs: Path | None = None) -> Outcome:
        with fresh_logging():
            code = main([str(argument) for argument in arguments])
        runs = sorted(logs.iterdir()) if logs is not None and logs.is_dir() else []
        return Outcome(code, capsys.readouterr().err, runs[-1] if runs else None)

    return call
