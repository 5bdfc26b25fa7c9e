"""How long the program has been running, from its very start."""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback
from tqdm import tqdm

logger = logging.getLogger(__name__)

_IMPORTED = time.monotonic()
#: Longer than any import takes: a system that says more has another clock.
_LIMIT = 300.0


def seconds_running() -> float:
    """Seconds since the process was started, loading of libraries included.

    Where the system does not tell (outside Linux), since this module was loaded.
    """
    known = time.monotonic() - _IMPORTED
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        born = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        told = float(Path("/proc/uptime").read_text().split()[0]) - born
    except (OSError, ValueError, IndexError):
        return known
    return told if known <= told <= known + _LIMIT else known


class FirstStep(Callback):
    """Says once how long it took from the start of the program until a step was taken."""

    def __init__(self) -> None:
        self.said = False

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """After the first step."""
        if not self.said:
            self.said = True
            with tqdm.external_write_mode(file=sys.stderr):  # not into the progress bar's line
                logger.info("first step done after %.1f s", seconds_running())
