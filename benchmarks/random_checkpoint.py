"""Write a checkpoint of random weights in the CompVis layout, to try full-size commands.

    python benchmarks/random_checkpoint.py \\
        configs/latent-diffusion/txt2img-1p4B-eval.yaml model.ckpt
"""

import argparse
import sys
import time

import torch
from omegaconf import OmegaConf

from ldm.checkpoint import save_torch
from ldm.util import count_params, instantiate_from_config


def main() -> int:
    """Build the model of a configuration and save its state."""
    parser = argparse.ArgumentParser(description="Write a checkpoint of random weights.")
    parser.add_argument("config")
    parser.add_argument("output")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    started = time.monotonic()
    described = OmegaConf.to_container(OmegaConf.load(options.config).model, resolve=True)
    described["params"].pop("personalization_config", None)
    model = instantiate_from_config(described)
    save_torch({"global_step": 0, "state_dict": model.state_dict()}, options.output)
    size, seconds = count_params(model) / 1e9, time.monotonic() - started
    print(f"{options.output}: {size:.2f} B parameters in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
