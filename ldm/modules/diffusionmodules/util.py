"""What the U-Net and its attention share: sinusoids for time, norms, checkpointing.

The noise schedules live in ``schedule.py``; their public names are also found here.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from ldm.modules.diffusionmodules.group_norm import GroupNorm
from ldm.modules.diffusionmodules.schedule import (
    extract_into_tensor,
    make_beta_schedule,
    make_ddim_sampling_parameters,
    make_ddim_timesteps,
    noise_like,
)

__all__ = [
    "GroupNorm32",
    "avg_pool_nd",
    "checkpoint",
    "conv_nd",
    "extract_into_tensor",
    "linear",
    "make_beta_schedule",
    "make_ddim_sampling_parameters",
    "make_ddim_timesteps",
    "noise_like",
    "normalization",
    "recomputing",
    "timestep_embedding",
    "zero_module",
]

M = TypeVar("M", bound=nn.Module)

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLINGS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}

# On an accelerator the backward pass runs in a thread of its own.
_this_thread = threading.local()


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoids that tell the network which noise level it looks at, cosines first.

    `timesteps` (b,) may be fractional; the result is (b, dim) in float32, with a column of zeros
    at the end when `dim` is odd.
    """
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    # In float64, since exp in float32 differs in its last digit from one CPU to another, which a
    # timestep of 1000 makes a difference in the fifth. Not every device has it.
    wide = torch.float32 if timesteps.device.type == "mps" else torch.float64
    frequencies = (-math.log(max_period) * steps / half).to(wide).exp().float()
    angles = timesteps[:, None].float() * frequencies
    columns = [angles.cos(), angles.sin()]
    if dim % 2:
        columns.append(torch.zeros_like(angles[:, :1]))
    return torch.cat(columns, dim=-1)


class GroupNorm32(GroupNorm):
    """Group normalisation whose result has the type of its input.

    Statistics are kept in float32 by the kernels themselves. Where autocast widens the result,
    narrowing it here lets the following activation work, and be remembered for the backward pass,
    in the narrow type.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (b, c, ...) over groups of channels."""
        return super().forward(x).to(x.dtype)


def normalization(channels: int, eps: float = 1e-5, groups: int = 32) -> GroupNorm32:
    """The normalisation used throughout: 32 groups in every public model.

    A narrow model wants fewer: in a group of one or two channels their mean is forgotten.

    Raises:
        ValueError: when `channels` is not a multiple of `groups`.
    """
    if channels % groups:
        raise ValueError(
            f"cannot normalise {channels} channels in {groups} groups: choose model_channels and "
            f"channel_mult so that every width is a multiple of {groups}"
        )
    return GroupNorm32(groups, channels, eps=eps)


def zero_module(module: M) -> M:
    """`module` with all parameters zero, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def _by_dims(table: Mapping[int, Callable[..., nn.Module]], dims: int) -> Callable[..., nn.Module]:
    if dims not in table:
        raise ValueError(f"dims={dims} is not supported: accepted are {sorted(table)}")
    return table[dims]


def conv_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """A convolution over `dims` (1, 2 or 3) spatial axes; ``ValueError`` for any other number."""
    return _by_dims(CONVOLUTIONS, dims)(*args, **kwargs)


def avg_pool_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """Average pooling over `dims` (1, 2 or 3) spatial axes; ``ValueError`` for any other number."""
    return _by_dims(POOLINGS, dims)(*args, **kwargs)


def linear(*args: Any, **kwargs: Any) -> nn.Linear:
    """An affine map of the last axis."""
    return nn.Linear(*args, **kwargs)


def recomputing() -> bool:
    """Whether what runs here is a repetition for the backward pass, which nobody may observe."""
    return getattr(_this_thread, "recomputing", False)


@contextmanager
def _recomputation() -> Iterator[None]:
    outer = recomputing()
    _this_thread.recomputing = True
    try:
        yield
    finally:
        _this_thread.recomputing = outer


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds the first run of a checkpointed function, and what its repetition."""
    return nullcontext(), _recomputation()


def checkpoint(
    func: Callable[..., Any], inputs: Sequence[Any], params: Iterable[nn.Parameter], flag: bool
) -> Any:
    """``func(*inputs)``, forgetting what lies in between until the backward pass if `flag` is set.

    Trades time for memory without changing values or gradients; while it is repeated, `recomputing`
    is true. `params` is part of the public signature only: gradients reach parameters, frozen or
    not, without being told of them. Without gradients there is nothing to save.
    """
    del params
    if flag and torch.is_grad_enabled():
        return torch_checkpoint(func, *inputs, use_reentrant=False, context_fn=_contexts)
    return func(*inputs)
