"""The small model of `tests/training/toy.py` with its weights, and a batch to learn from."""

from pathlib import Path
from typing import Any

import torch

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import instantiate_from_config
from tests.golden import fill
from tests.training.toy import VOCAB, backbone

BATCH = {
    "image": torch.linspace(-1, 1, 2 * 16 * 16 * 3).reshape(2, 16, 16, 3),
    "caption": ["a photo of a <teddy>", "a <teddy> on the grass"],
    "image_id": torch.tensor([0, 1]),
    "flip": torch.tensor([False, True]),
    "step": torch.tensor([5, 5]),
    "slot": torch.tensor([0, 1]),
    "run": torch.tensor([0, 0]),
}


def small_model(**options: Any) -> LatentDiffusion:
    """The model with `options` of its own, filled; no file of weights is read."""
    params = backbone(VOCAB, Path("none"))["model"]["params"] | options
    target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    return fill(instantiate_from_config({"target": target, "params": params}))
