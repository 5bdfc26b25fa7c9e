"""The convolutional encoder and decoder of the first stage (latent diffusion, section 3.1).

Public names: ``Encoder``, ``Decoder``, ``ResnetBlock``, ``AttnBlock``, ``Upsample``, ``Downsample``
and ``Normalize``. Both halves take the ``ddconfig`` of the public configs as keywords, which
:class:`StageConfig` lists and checks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.diffusionmodules.group_norm import GroupNorm


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What an encoder or decoder looks like; the keywords of ``ddconfig``.

    Level i has ``ch * ch_mult[i]`` channels and ``resolution / 2**i`` pixels a side.
    `attn_resolutions` are the sides at which every residual block is followed by attention.
    `double_z` makes room for a mean and a log-variance. `give_pre_end` and `tanh_out` concern the
    decoder: stop before the output convolution, or bound the image. `norm_groups` is 32 in public
    models; a narrow model wants fewer, because a group of a single channel loses its brightness.

    Raises:
        ValueError: for an attention type that no public model uses.
    """

    ch: int
    out_ch: int
    num_res_blocks: int
    in_channels: int
    resolution: int
    z_channels: int
    attn_resolutions: Sequence[int] = ()
    ch_mult: Sequence[int] = (1, 2, 4, 8)
    dropout: float = 0.0
    resamp_with_conv: bool = True
    double_z: bool = True
    use_linear_attn: bool = False
    attn_type: str = "vanilla"
    give_pre_end: bool = False
    tanh_out: bool = False
    norm_groups: int = 32

    def __post_init__(self) -> None:
        if self.use_linear_attn or self.attn_type not in ("vanilla", "none"):
            given = "use_linear_attn: true" if self.use_linear_attn else repr(self.attn_type)
            raise ValueError(
                f"the autoencoder was asked for attention {given}; accepted are attn_type "
                "'vanilla' and 'none', with use_linear_attn false"
            )

    @property
    def widths(self) -> list[int]:
        """The channels of each level, the finest first."""
        return [self.ch * factor for factor in self.ch_mult]

    def attends(self, level: int) -> bool:
        """Whether the residual blocks of `level` are followed by attention."""
        return self.resolution // 2**level in self.attn_resolutions

    def attention(self, channels: int) -> nn.Module:
        """A new attention layer of the configured type."""
        vanilla = self.attn_type == "vanilla"
        return AttnBlock(channels, self.norm_groups) if vanilla else nn.Identity()

    def block(self, in_channels: int, out_channels: int) -> "ResnetBlock":
        """A new residual block."""
        return ResnetBlock(in_channels, out_channels, self.dropout, self.norm_groups)


def Normalize(in_channels: int, num_groups: int = 32) -> GroupNorm:  # noqa: N802 (public name)
    """Group normalisation with `num_groups`, or fewer where that does not divide the channels."""
    return GroupNorm(math.gcd(num_groups, in_channels), in_channels, eps=1e-6, affine=True)


class Upsample(nn.Module):
    """Twice the size: (b,c,h,w) -> (b,c,2h,2w)."""

    def __init__(self, in_channels: int, with_conv: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels, 3, padding=1) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """Repeat every pixel, then smooth."""
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else self.conv(x)


class Downsample(nn.Module):
    """Half the size: (b,c,h,w) -> (b,c,h/2,w/2)."""

    def __init__(self, in_channels: int, with_conv: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve at every second pixel, or average four."""
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        # Trained weights expect padding on the right and bottom only.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class ResnetBlock(nn.Module):
    """Two convolutions beside a shortcut: (b,in,h,w) -> (b,out,h,w)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        dropout: float = 0.0,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        out_channels = out_channels or in_channels
        self.norm1 = Normalize(in_channels, norm_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = Normalize(out_channels, norm_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        # A block that keeps its width has no shortcut weights in checkpoints.
        widens = in_channels != out_channels
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if widens else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`x` plus what the two convolutions add."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over the pixels of a feature map, beside a shortcut."""

    def __init__(self, in_channels: int, norm_groups: int = 32) -> None:
        super().__init__()
        self.norm = Normalize(in_channels, norm_groups)
        self.q = nn.Conv2d(in_channels, in_channels, 1)
        self.k = nn.Conv2d(in_channels, in_channels, 1)
        self.v = nn.Conv2d(in_channels, in_channels, 1)
        self.proj_out = nn.Conv2d(in_channels, in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`x` plus what its pixels gather from each other."""
        h = self.norm(x)
        q, k, v = (
            project(h).flatten(2).transpose(1, 2).unsqueeze(1)  # (b, 1, pixels, c)
            for project in (self.q, self.k, self.v)
        )
        gathered = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + self.proj_out(gathered.transpose(1, 2).reshape(x.shape))


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention where configured."""

    def __init__(self, config: StageConfig, level: int, in_channels: int, num_blocks: int) -> None:
        super().__init__()
        width = config.widths[level]
        inputs = [in_channels] + [width] * (num_blocks - 1)
        self.block = nn.ModuleList(config.block(n, width) for n in inputs)
        attentions = num_blocks if config.attends(level) else 0
        self.attn = nn.ModuleList(config.attention(width) for _ in range(attentions))

    def forward(self, x: Tensor) -> Tensor:
        """(b,in,h,w) -> (b,width,h,w)."""
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return x


class DownLevel(Level):
    """One level of the encoder, with the way down to the next if there is one."""

    def __init__(self, config: StageConfig, level: int) -> None:
        widths = config.widths
        super().__init__(
            config, level, widths[level - 1] if level else config.ch, config.num_res_blocks
        )
        bottom = level == len(widths) - 1
        resample = config.resamp_with_conv
        self.downsample = nn.Identity() if bottom else Downsample(widths[level], resample)

    def forward(self, x: Tensor) -> Tensor:
        """(b,in,h,w) -> (b,width,h/2,w/2), or the same size at the bottom."""
        return self.downsample(super().forward(x))


class UpLevel(Level):
    """One level of the decoder, with the way up to the next if there is one."""

    def __init__(self, config: StageConfig, level: int) -> None:
        widths = config.widths
        below = widths[min(level + 1, len(widths) - 1)]
        super().__init__(config, level, below, config.num_res_blocks + 1)
        resample = config.resamp_with_conv
        self.upsample = Upsample(widths[level], resample) if level else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(b,in,h,w) -> (b,width,2h,2w), or the same size at the top."""
        return self.upsample(super().forward(x))


class Middle(nn.Module):
    """The bottom of the hour-glass: residual block, attention, residual block."""

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        width = config.widths[-1]
        self.block_1 = config.block(width, width)
        self.attn_1 = config.attention(width)
        self.block_2 = config.block(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Image to latent parameters: (b,in_channels,H,W) -> (b, z_channels or twice that, H/f, W/f).

    f is ``2**(len(ch_mult) - 1)``. The keywords are those of :class:`StageConfig`.
    """

    def __init__(self, **ddconfig: Any) -> None:
        super().__init__()
        config = StageConfig(**ddconfig)
        width = config.widths[-1]
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList(DownLevel(config, i) for i in range(len(config.widths)))
        self.mid = Middle(config)
        self.norm_out = Normalize(width, config.norm_groups)
        out_channels = (1 + config.double_z) * config.z_channels
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The parameters of the latent of image `x`."""
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latent to image: (b,z_channels,h,w) -> (b,out_ch,h*f,w*f), f as in :class:`Encoder`.

    The keywords are those of :class:`StageConfig`.
    """

    def __init__(self, **ddconfig: Any) -> None:
        super().__init__()
        config = StageConfig(**ddconfig)
        self.give_pre_end, self.tanh_out = config.give_pre_end, config.tanh_out
        top, bottom = config.widths[0], config.widths[-1]
        self.conv_in = nn.Conv2d(config.z_channels, bottom, 3, padding=1)
        self.mid = Middle(config)
        self.up = nn.ModuleList(UpLevel(config, i) for i in range(len(config.widths)))
        self.norm_out = Normalize(top, config.norm_groups)
        self.conv_out = nn.Conv2d(top, config.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """The image of latent `z`."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        if self.give_pre_end:
            return h
        image = self.conv_out(F.silu(self.norm_out(h)))
        return image.tanh() if self.tanh_out else image
