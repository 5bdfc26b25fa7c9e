"""Attention between the pixels of an image and the words of its caption.

`CrossAttention` has one slot, `controller`, through which attention can be looked at or rewritten;
everything that needs attention (masks, pictures, editing) uses this slot. It is filled by
``ldm.modules.attention_control.controlling``.

Shapes: b batch, n pixels or tokens that ask, m tokens that answer, h heads, d width of a head, c
channels. Batch and heads are never folded into one axis.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.diffusionmodules.util import (
    GroupNorm32,
    checkpoint,
    normalization,
    recomputing,
    zero_module,
)

Grid = tuple[int, int]


@dataclass(frozen=True)
class AttentionSite:
    """Where in the U-Net an attention module stands."""

    place: Literal["down", "mid", "up"]
    #: Running number over all attention modules of the U-Net, in the order in which they run.
    index: int
    #: Whether pixels attend to the context (rather than to each other).
    is_cross: bool
    #: Dotted name within the U-Net.
    name: str


class AttentionController:
    """Looks at attention, or rewrites it; this base class does neither.

    An observer (`rewrites` false) is shown queries and keys and leaves the fused kernel in place,
    so that it changes nothing bit for bit. A rewriting controller is given the probabilities and
    returns those to be used. A `differentiable` observer keeps the gradients of what it sees.
    """

    rewrites: bool = False
    differentiable: bool = False

    def wants(self, site: AttentionSite | None, pixels: int | None = None) -> bool:
        """Whether this controller has anything to do at `site`, with so many queries."""
        del site, pixels
        return True

    def observe(
        self, q: Tensor, k: Tensor, scale: float, site: AttentionSite | None, grid: Grid | None
    ) -> None:
        """See queries (b, h, n, d) and keys (b, h, m, d) before ``softmax(q k^T scale)``."""

    def __call__(self, probs: Tensor, site: AttentionSite | None, grid: Grid | None) -> Tensor:
        """The probabilities (b, h, n, m) to be used in place of `probs`."""
        del site, grid
        return probs


def attention_probs(q: Tensor, k: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """How much every query looks at every key; rows sum to one.

    Queries (b, h, n, d) and keys (b, h, m, d) give (b, h, n, m). The softmax is taken in float32
    at least, whatever type the queries have. `bias` is added to the scores.
    """
    scores = q @ k.transpose(-1, -2) * scale
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1, dtype=torch.promote_types(q.dtype, torch.float32))


def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention without its probabilities ever being in memory: (b, h, n, d) -> (b, h, n, d).

    On a CPU the gradient of the narrow kernel is several times slower than that of the float32
    one, so that training in bfloat16 takes the detour.
    """
    wanted = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if not wanted or q.device.type != "cpu" or q.dtype.itemsize >= 4:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    bias = None if bias is None else bias.float()
    with torch.autocast("cpu", enabled=False):
        out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=bias)
    return out.to(q.dtype)


def _mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to the scores so that keys with a false `mask` (b, m) are not looked at.

    The lowest finite number rather than minus infinity: a row without any key left becomes uniform
    instead of undefined.
    """
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(~mask.bool(), torch.finfo(dtype).min).flatten(1)[:, None, None, :]


class CrossAttention(nn.Module):
    """Multi-head attention from `x` to `context`, or to itself where there is no context."""

    controller: AttentionController | None = None
    site: AttentionSite | None = None

    def __init__(
        self,
        query_dim: int,
        context_dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inner_dim = heads * dim_head
        self.is_cross = context_dim is not None
        self.heads = heads
        self.scale = 1.0 / math.sqrt(dim_head)
        key_dim = query_dim if context_dim is None else context_dim
        self.to_q = nn.Linear(query_dim, inner_dim, bias=False)
        self.to_k = nn.Linear(key_dim, inner_dim, bias=False)
        self.to_v = nn.Linear(key_dim, inner_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner_dim, query_dim), nn.Dropout(dropout))

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        grid: Grid | None = None,
    ) -> Tensor:
        """Attend from `x` (b, n, c) to `context` (b, m, c').

        With a `mask` (b, m) only to keys where it is true. `grid` is the height and width of the n
        pixels, for controllers that think in images.
        """
        context = x if context is None else context
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        bias = None if mask is None else _mask_bias(mask, q.dtype)
        out = self._attend(q, k, v, bias, grid)
        return self.to_out(out.transpose(1, 2).flatten(2))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, grid: Grid | None
    ) -> Tensor:
        controller = None if recomputing() else self.controller
        if controller is not None and controller.wants(self.site, q.shape[-2]):
            if controller.rewrites:
                probs = controller(attention_probs(q, k, self.scale, bias), self.site, grid)
                return probs.to(v.dtype) @ v
            with torch.set_grad_enabled(torch.is_grad_enabled() and controller.differentiable):
                controller.observe(q, k, self.scale, self.site, grid)
        return fused_attention(q, k, v, bias)


class GEGLU(nn.Module):
    """A linear layer whose output is gated by the GELU of a second one."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim_in) -> (..., dim_out)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Two linear layers around a GELU, gated (`glu`) or plain."""

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        mult: int = 4,
        glu: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inner = dim * mult
        widen = GEGLU(dim, inner) if glu else nn.Sequential(nn.Linear(dim, inner), nn.GELU())
        self.net = nn.Sequential(
            widen, nn.Dropout(dropout), nn.Linear(inner, dim if dim_out is None else dim_out)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim_out)."""
        return self.net(x)


def Normalize(in_channels: int, groups: int = 32) -> GroupNorm32:  # noqa: N802 - a public name
    """The normalisation in front of a transformer: eps 1e-6, 32 groups in public models."""
    return normalization(in_channels, eps=1e-6, groups=groups)


class BasicTransformerBlock(nn.Module):
    """Pixels look at each other (`attn1`), then at the text (`attn2`), then think alone (`ff`).

    With `checkpoint`, what lies in between is recomputed in the backward pass. An observer sees the
    first run only. While a controller is installed that takes part, by rewriting attention or by
    keeping its gradients, nothing is recomputed: it would take part twice.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        d_head: int,
        dropout: float = 0.0,
        context_dim: int | None = None,
        gated_ff: bool = True,
        checkpoint: bool = True,
    ) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, None, n_heads, d_head, dropout)
        self.ff = FeedForward(dim, dropout=dropout, glu=gated_ff)
        self.attn2 = CrossAttention(dim, context_dim, n_heads, d_head, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.checkpoint = checkpoint

    def forward(self, x: Tensor, context: Tensor | None = None, grid: Grid | None = None) -> Tensor:
        """Refine the pixels `x` (b, n, c) with the help of `context` (b, m, c')."""
        controllers = (self.attn1.controller, self.attn2.controller)
        part = any(
            each is not None and (each.rewrites or each.differentiable) for each in controllers
        )
        flag = self.checkpoint and not part
        return checkpoint(self._forward, (x, context, grid), self.parameters(), flag)

    def _forward(self, x: Tensor, context: Tensor | None, grid: Grid | None) -> Tensor:
        x = x + self.attn1(self.norm1(x), grid=grid)
        x = x + self.attn2(self.norm2(x), context=context, grid=grid)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer over the pixels of a feature map, as a residual branch that starts at zero.

    With `use_linear` (Stable Diffusion v2) its ends are linear layers, not convolutions of size 1.
    """

    def __init__(  # noqa: PLR0913 - the public signature and ours
        self,
        in_channels: int,
        n_heads: int,
        d_head: int,
        depth: int = 1,
        dropout: float = 0.0,
        context_dim: int | None = None,
        *,
        use_checkpoint: bool = False,
        norm_groups: int = 32,
        use_linear: bool = False,
    ) -> None:
        super().__init__()
        inner_dim = n_heads * d_head
        self.in_channels, self.use_linear = in_channels, use_linear
        self.norm = Normalize(in_channels, norm_groups)
        self.proj_in = (
            nn.Linear(in_channels, inner_dim)
            if use_linear
            else nn.Conv2d(in_channels, inner_dim, 1)
        )
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                inner_dim, n_heads, d_head, dropout, context_dim, checkpoint=use_checkpoint
            )
            for _ in range(depth)
        )
        self.proj_out = zero_module(
            nn.Linear(inner_dim, in_channels)
            if use_linear
            else nn.Conv2d(inner_dim, in_channels, 1)
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Refine the feature map `x` (b, c, h, w) with the help of `context` (b, m, c')."""
        grid = (x.shape[-2], x.shape[-1])
        # In the channels-last layout these are views of the feature map, not copies.
        normed = self.norm(x)
        if self.use_linear:
            pixels = self.proj_in(normed.flatten(2).transpose(1, 2))
        else:
            pixels = self.proj_in(normed).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            pixels = block(pixels, context=context, grid=grid)
        if self.use_linear:
            return x + self.proj_out(pixels).transpose(1, 2).unflatten(2, grid)
        return x + self.proj_out(pixels.transpose(1, 2).unflatten(2, grid))
