"""How long it takes until something happens: imports, `--help`, the first step of a run.

    python -m benchmarks.startup

Every case is a new process, timed on the wall, in turn.
"""

import re
import subprocess
import sys
import tempfile
from functools import partial

from benchmarks.harness import Case, parser, quartiles, started
from ldm.inference import ROOT

COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import torch, pytorch_lightning": ["-c", "import torch, pytorch_lightning"],
    "import ldm.inference": ["-c", "import ldm.inference"],
    "main.py --help": ["main.py", "--help"],
    "scripts/txt2img.py --help": ["scripts/txt2img.py", "--help"],
}
FIRST_STEP = re.compile(r"first step done after ([\d.]+) s")


def run(arguments: list[str]) -> str:
    """What a Python process says; it must end well."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done.stderr


def first_step(files: list[str], overrides: list[str]) -> float:
    """Seconds from the start of ``main.py`` to the end of its first step, as it says itself."""
    with tempfile.TemporaryDirectory() as logs:
        said = run(["main.py", "--base", *files, "--logdir", logs, "--no-test", "--max_steps", "1",
                    "summary=null", *overrides])  # fmt: skip
    found = FIRST_STEP.search(said)
    if found is None:
        raise RuntimeError(f"main.py did not say when its first step was done:\n{said[-2000:]}")
    return float(found[1])


def main() -> int:
    """Measure both."""
    options = parser(__doc__, rounds=3).parse_args()
    report = started("startup", options)
    cases = {name: Case(partial(run, command)) for name, command in COMMANDS.items()}
    report.time("new processes", cases)
    seconds = [first_step(options.config, options.overrides) for _ in range(options.rounds)]
    low, middle, high = quartiles(seconds)
    report.add("main.py", [{"name": "first step", "seconds": middle, "low": low, "high": high}])
    report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
