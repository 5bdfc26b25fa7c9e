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

KEPT = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")


def averaged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with the U-Net's averaged weights, where there are any, in place of the trained."""
    names = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): key
        for key in state
        if key.startswith("model.diffusion_model.")
    }
    return {**state, **{names[key]: value for key, value in state.items() if key in names}}


def main() -> int:
    """Read, average, halve, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    state = averaged(read_state_dict(options.checkpoint))
    unused = (".to_logits.", "first_stage_model.model_ema.", "first_stage_model.loss.")
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
