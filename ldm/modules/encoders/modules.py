"""Every condition encoder under its public name, and the two small ones for classes and images."""

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.encoders.clip import FrozenCLIPEmbedder
from ldm.modules.encoders.open_clip import FrozenOpenCLIPEmbedder
from ldm.modules.encoders.text import (
    AbstractEncoder,
    BERTEmbedder,
    BERTTokenizer,
    TextEncoder,
    TransformerEmbedder,
)

__all__ = [
    "AbstractEncoder",
    "BERTEmbedder",
    "BERTTokenizer",
    "ClassEmbedder",
    "FrozenCLIPEmbedder",
    "FrozenOpenCLIPEmbedder",
    "SpatialRescaler",
    "TextEncoder",
    "TransformerEmbedder",
]

METHODS = ("nearest", "linear", "bilinear", "trilinear", "bicubic", "area")


class ClassEmbedder(nn.Module):
    """One learned vector per class, as a context of a single token."""

    def __init__(self, embed_dim: int, n_classes: int = 1000, key: str = "class") -> None:
        super().__init__()
        self.key = key
        self.embedding = nn.Embedding(n_classes, embed_dim)

    def forward(self, batch: Mapping[str, Tensor], key: str | None = None) -> Tensor:
        """The context (b, 1, embed_dim) of the class numbers ``batch[key]`` (b,)."""
        return self.embedding(batch[key if key is not None else self.key][:, None])


class SpatialRescaler(nn.Module):
    """An image condition, made smaller `n_stages` times and optionally given other channels.

    Raises:
        ValueError: for an unknown `method` or a negative number of stages.
    """

    def __init__(
        self,
        n_stages: int = 1,
        method: Literal[
            "nearest", "linear", "bilinear", "trilinear", "bicubic", "area"
        ] = "bilinear",
        multiplier: float = 0.5,
        in_channels: int = 3,
        out_channels: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"method {method!r}: expected one of {', '.join(METHODS)}")
        if n_stages < 0:
            raise ValueError(f"n_stages {n_stages}: expected 0 or more")
        self.n_stages, self.method, self.multiplier = n_stages, method, multiplier
        self.channel_mapper = (
            None if out_channels is None else nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c or out_channels, h, w times multiplier for each stage)."""
        for _ in range(self.n_stages):
            x = F.interpolate(x, scale_factor=self.multiplier, mode=self.method)
        return x if self.channel_mapper is None else self.channel_mapper(x)

    def encode(self, x: Tensor) -> Tensor:
        """The same as the call."""
        return self(x)
