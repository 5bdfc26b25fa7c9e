"""Read the recorded figures under ``tests/goldens`` and compare with them.

A golden is a pair ``<name>.safetensors`` (inputs and expected outputs) and ``<name>.yaml``
(configuration and tolerance). Weights are not stored: :func:`fill` makes them from parameter names,
so that two implementations with equal names have equal weights.
"""

import gzip
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "goldens"


def weight(name: str, shape: tuple[int, ...], seed: int = 1, prefix: str = "") -> Tensor:
    """The value that the recipe gives to the parameter `name` of `shape`."""
    mask, name = np.uint64(0xFFFFFFFF), prefix + name
    start = np.uint64(zlib.crc32(f"{seed}:{name}".encode()))
    x = (np.arange(math.prod(shape), dtype=np.uint64) * np.uint64(0x9E3779B1) + start) & mask
    for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13), (1, 16)):
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(multiplier)) & mask
    u = (x.astype(np.float64) / 2**31 - 1.0).reshape(shape)
    if len(shape) >= 2:
        gain = 1.3 if "to_" in name else 1.0
        u = u * (gain * math.sqrt(3.0 * shape[0] / math.prod(shape)))
    else:
        u = 0.1 * u + name.endswith("weight")
    return torch.from_numpy(u.astype(np.float32))


@torch.no_grad()
def fill(module: nn.Module, seed: int = 1, prefix: str = "") -> nn.Module:
    """Give every parameter (never a buffer) of `module` its recipe value, in place; eval mode."""
    for name, parameter in module.named_parameters():
        parameter.copy_(weight(name, tuple(parameter.shape), seed, prefix))
    return module.eval()


@dataclass(frozen=True)
class Golden:
    """One recorded case: its configuration, tensors and tolerance."""

    name: str
    config: dict
    tensors: dict[str, Tensor]
    tolerance: float
    seed: int
    meta: dict

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def keys(self) -> dict[str, dict[str, list[int]]]:
        """For each filled module, the original parameter names and shapes."""
        with gzip.open(FOLDER / f"{self.name}.keys.json.gz", "rt") as file:
            return json.load(file)

    def check(self, key: str, value: Tensor) -> None:
        """Fail unless `value` equals the recorded tensor within the golden's tolerance."""
        expected = self.tensors[key]
        assert tuple(value.shape) == tuple(expected.shape), (key, value.shape, expected.shape)
        value, expected = value.detach().double(), expected.double()
        scale = max(1.0, expected.abs().max().item() if expected.numel() else 1.0)
        worst = (value - expected).abs().max().item() / scale if expected.numel() else 0.0
        assert worst <= self.tolerance, (
            f"{self.name}: {key} differs by {worst:.3g} > {self.tolerance}"
        )


def golden(name: str) -> Golden:
    """Load one golden of ``tests/goldens``."""
    meta = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return Golden(
        name=name,
        config=meta["config"],
        tensors=load_file(FOLDER / f"{name}.safetensors"),
        tolerance=float(meta["tolerance"]),
        seed=int(meta.get("weights_seed", 1)),
        meta=meta,
    )
