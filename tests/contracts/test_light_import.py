"""Importing a part imports what it needs and no more."""

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
HEAVY = ("taming", "torchvision", "matplotlib", "IPython", "sklearn", "diffusers", "wandb")
PROGRAM = """
import importlib, sys
first, *modules = sys.argv[1:]
importlib.import_module(first)
before = set(sys.modules)
for module in modules:
    importlib.import_module(module)
print("\\n".join(sorted(set(sys.modules) - before)))
"""


def _added(*modules: str, after: str = "sys") -> set[str]:
    """What importing `modules` adds in a fresh interpreter that has imported `after`."""
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, after, *modules],
        capture_output=True, text=True, env=environment, cwd=REPO, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_import_ldm_is_light():
    """The model needs no package that only training an autoencoder, drawing or judging needs.

    Lightning looks for some of them by itself; what it brings in is not counted.
    """
    added = _added("ldm.models.diffusion.ddpm", after="pytorch_lightning")
    assert "ldm.models.diffusion.ddpm" in added
    assert {m for m in added if m.split(".")[0] in HEAVY} == set()
    assert {m for m in added if m.startswith("transformers.models.")} == set()


def test_text_needs_no_torch():
    added = _added("ldm", "ldm.prompts.sentence", "ldm.prompts.spans", "ldm.prompts.templates")
    assert "ldm.prompts.spans" in added
    assert {"torch", "numpy", "pytorch_lightning"}.isdisjoint(added)


def test_tools_need_no_lightning():
    added = _added("ldm.checkpoint", "ldm.lr_scheduler", "ldm.modules.attention")
    assert "torch" in added
    assert {"pytorch_lightning", "transformers"}.isdisjoint(added)
