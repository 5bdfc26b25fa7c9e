"""Group normalisation that also trains fast on a CPU with the channels last in memory.

The forward pass is PyTorch's. Its backward pass for channels last on a CPU visits one group at a
time, which with few channels in each takes far longer than the convolutions around it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class GroupNorm(nn.GroupNorm):
    """``torch.nn.GroupNorm``, the same numbers sooner: (b,c,...) -> (b,c,...)."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` with mean 0 and variance 1 in every group of channels, scaled and shifted."""
        if not self._is_slow(x):
            return super().forward(x)
        return _PlanarBackward.apply(x, self.weight, self.bias, self.num_groups, self.eps)

    def _is_slow(self, x: Tensor) -> bool:
        """Whether gradients of an `x` like this are wanted, and PyTorch is slow at them."""
        if x.ndim != 4 or x.device.type != "cpu" or not (x.requires_grad and self.affine):
            return False
        interleaved = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        return interleaved and self.num_channels < 16 * self.num_groups


class _PlanarBackward(torch.autograd.Function):
    """Group normalisation whose backward pass works on copies with one plane per channel."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float
    ) -> Tensor:
        b, c, h, w = x.shape
        y, mean, rstd = torch.native_group_norm(x, weight, bias, b, c, h * w, num_groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.num_groups = num_groups
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        b, c, h, w = x.shape
        planes = (grad.contiguous(), x.contiguous(), mean, rstd, weight)
        wanted = list(ctx.needs_input_grad[:3])
        dx, dweight, dbias = torch.ops.aten.native_group_norm_backward(
            *planes, b, c, h * w, ctx.num_groups, wanted
        )
        dx = dx.contiguous(memory_format=torch.channels_last)
        return dx, dweight, dbias, None, None
