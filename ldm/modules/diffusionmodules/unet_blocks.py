"""The parts of the U-Net: residual blocks, attention among pixels, change of size."""

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.attention import SpatialTransformer, fused_attention
from ldm.modules.diffusionmodules.util import (
    avg_pool_nd,
    checkpoint,
    conv_nd,
    linear,
    normalization,
    zero_module,
)


class Upsample(nn.Module):
    """Twice the size by repeating pixels, followed by a convolution if `use_conv`."""

    def __init__(
        self,
        channels: int,
        use_conv: bool,
        dims: int = 2,
        out_channels: int | None = None,
        padding: int = 1,
    ) -> None:
        super().__init__()
        self.dims = dims
        self.conv = (
            conv_nd(dims, channels, out_channels or channels, 3, padding=padding)
            if use_conv
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c', 2h, 2w); of three spatial axes the first keeps its size."""
        scale = (1.0, 2.0, 2.0) if self.dims == 3 else 2.0
        return self.conv(F.interpolate(x, scale_factor=scale, mode="nearest"))


class Downsample(nn.Module):
    """Half the size, by a convolution with stride two if `use_conv`, else by averaging."""

    def __init__(
        self,
        channels: int,
        use_conv: bool,
        dims: int = 2,
        out_channels: int | None = None,
        padding: int = 1,
    ) -> None:
        super().__init__()
        stride = (1, 2, 2) if dims == 3 else 2
        if use_conv:
            width = out_channels or channels
            self.op = conv_nd(dims, channels, width, 3, stride=stride, padding=padding)
        elif out_channels not in (None, channels):
            raise ValueError(
                f"averaging cannot turn {channels} channels into {out_channels}: set use_conv=True"
            )
        else:
            self.op = avg_pool_nd(dims, kernel_size=stride, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c', h/2, w/2); of three spatial axes the first keeps its size."""
        return self.op(x)


class ResBlock(nn.Module):
    """Two convolutions around the time embedding, beside a skip connection; may resample."""

    def __init__(  # noqa: PLR0913, PLR0917 - public signature
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int | None = None,
        use_conv: bool = False,
        use_scale_shift_norm: bool = False,
        dims: int = 2,
        use_checkpoint: bool = False,
        up: bool = False,
        down: bool = False,
        *,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        width = out_channels or channels
        self.use_checkpoint = use_checkpoint
        self.use_scale_shift_norm = use_scale_shift_norm
        self.in_layers = nn.Sequential(
            normalization(channels, groups=norm_groups),
            nn.SiLU(),
            conv_nd(dims, channels, width, 3, padding=1),
        )
        self.resample = _resampling(channels, dims, up, down)
        self.emb_layers = nn.Sequential(
            nn.SiLU(), linear(emb_channels, 2 * width if use_scale_shift_norm else width)
        )
        self.out_layers = nn.Sequential(
            normalization(width, groups=norm_groups),
            nn.SiLU(),
            nn.Dropout(p=dropout),
            zero_module(conv_nd(dims, width, width, 3, padding=1)),
        )
        self.skip_connection: nn.Module
        if width == channels:
            self.skip_connection = nn.Identity()
        elif use_conv:
            self.skip_connection = conv_nd(dims, channels, width, 3, padding=1)
        else:
            self.skip_connection = conv_nd(dims, channels, width, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Refine `x` (b, c, ...) given the time embedding `emb` (b, e)."""
        return checkpoint(self._forward, (x, emb), self.parameters(), self.use_checkpoint)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, activation, conv = self.in_layers
        h = conv(self.resample(activation(norm(x))))
        time = self.emb_layers(emb)
        time = time.reshape(time.shape + (1,) * (h.ndim - 2))
        if self.use_scale_shift_norm:
            scale, shift = time.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + time)
        return self.skip_connection(self.resample(x)) + h


def _resampling(channels: int, dims: int, up: bool, down: bool) -> nn.Module:
    if up:
        return Upsample(channels, False, dims)
    return Downsample(channels, False, dims) if down else nn.Identity()


class AttentionBlock(nn.Module):
    """Pixels of a feature map attend to each other: the attention of models without text.

    `use_new_attention_order` tells how queries, keys and values lie in `qkv`: all queries first,
    or head after head.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_checkpoint: bool = False,
        use_new_attention_order: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = head_count(channels, num_heads, num_head_channels)
        self.head_first = not use_new_attention_order
        self.use_checkpoint = use_checkpoint
        self.norm = normalization(channels)
        self.qkv = nn.Conv1d(channels, channels * 3, 1)
        self.proj_out = zero_module(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, ...) -> the same shape."""
        return checkpoint(self._forward, (x,), self.parameters(), self.use_checkpoint)

    def _forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        # Convolutions of width one, written as linear maps of the last axis: no change of layout.
        qkv = F.linear(pixels, self.qkv.weight.squeeze(-1), self.qkv.bias)
        if self.head_first:
            q, k, v = qkv.unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        else:
            q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = fused_attention(q, k, v).transpose(1, 2).flatten(2)
        out = F.linear(out, self.proj_out.weight.squeeze(-1), self.proj_out.bias)
        return x + out.transpose(1, 2).unflatten(2, x.shape[2:])


def head_count(channels: int, num_heads: int, num_head_channels: int) -> int:
    """How many heads `channels` are split into, from whichever of the two figures is given."""
    heads = num_heads if num_head_channels == -1 else channels // num_head_channels
    if heads < 1 or channels % heads or (num_head_channels != -1 and channels % num_head_channels):
        raise ValueError(
            f"{channels} channels cannot be split into heads with num_heads={num_heads}, "
            f"num_head_channels={num_head_channels}: give one of them, a divisor of every width"
        )
    return heads


class TimestepEmbedSequential(nn.Sequential):
    """A sequence that hands time embedding and text to those of its parts that want them."""

    def forward(  # type: ignore[override]
        self, x: Tensor, emb: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """Run `x` (b, c, h, w) through the parts."""
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x
