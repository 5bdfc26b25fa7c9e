"""Turn a training checkpoint into a weights file: averaged, half precision, safetensors.

python scripts/pack_model.py logs/RUN/checkpoints/last.ckpt
models/ldm/playroom/model.safetensors
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoint import read_state_dict, save_safetensors

STAGE = "first_stage_model."
KEPT = ("model.diffusion_model.", STAGE, "cond_stage_model.", "network.")


def averaged(state: dict[str, Tensor], prefix: str, dropped: str) -> dict[str, Tensor]:
    """The state with averaged weights, where there are any, in place of the trained ones.

    Weights under `prefix` are averaged; averages are called by their names without `dropped` and
    without dots.
    """
    names = {
        "model_ema." + key.removeprefix(dropped).replace(".", ""): key
        for key in state
        if key.startswith(prefix) and not key.startswith("model_ema.")
    }
    return {**state, **{names[key]: value for key, value in state.items() if key in names}}


def first_stage(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first stage of a checkpoint, alone or within a whole model, by its names in a model."""
    whole = {key: value for key, value in state.items() if key.startswith(STAGE)}
    return whole or {f"{STAGE}{key}": value for key, value in averaged(state, "", "").items()}


def main() -> int:
    """Read, average, halve, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--first_stage", type=Path, help="of another first stage, or of a model with one"
    )
    options = parser.parse_args()
    state = averaged(read_state_dict(options.checkpoint), "model.diffusion_model.", "model.")
    if options.first_stage:
        state.update(first_stage(read_state_dict(options.first_stage)))
    unused = (".to_logits.", f"{STAGE}model_ema.", f"{STAGE}loss.")
    kept = {
        key: value.to(torch.float16) if value.is_floating_point() else value
        for key, value in state.items()
        if key.startswith(KEPT) and not any(part in key for part in unused)
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_safetensors(kept, options.output, metadata={"format": "pt", "precision": "float16"})
    size = options.output.stat().st_size / 1e6
    print(f"{options.output}: {len(kept)} tensors, {size:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
