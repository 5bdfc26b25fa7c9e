"""The denoiser: a U-Net over latents that knows the time step and, by attention, the text.

The constructor first makes a *plan*, a list of `Stage` for the way down and one for the way up,
and then lets a `BlockFactory` build what the plan says. Parameter names are those of public
checkpoints.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.unet_blocks import (
    AttentionBlock,
    Downsample,
    ResBlock,
    TimestepEmbedSequential,
    Upsample,
    head_count,
)
from ldm.modules.diffusionmodules.util import (
    conv_nd,
    linear,
    normalization,
    timestep_embedding,
    zero_module,
)

__all__ = [
    "AttentionBlock",
    "Downsample",
    "ResBlock",
    "TimestepEmbedSequential",
    "UNetModel",
    "Upsample",
]


@dataclass(frozen=True)
class Stage:
    """What one entry of `input_blocks` or `output_blocks` does, in this order."""

    channels_in: int
    channels_out: int
    resnet: bool = True
    attend: bool = False
    resample: bool = False


def plan_down(
    width: int, channel_mult: tuple[int, ...], num_res_blocks: int, attend_at: set[int]
) -> list[Stage]:
    """The way down, after the first convolution to `width` channels.

    Level l works at 1 / 2^l of the size with ``width * channel_mult[l]`` channels and attends if
    2^l is in `attend_at`.
    """
    stages, channels = [], width
    for level, mult in enumerate(channel_mult):
        for _ in range(num_res_blocks):
            stages.append(Stage(channels, width * mult, attend=2**level in attend_at))
            channels = width * mult
        if level < len(channel_mult) - 1:
            stages.append(Stage(channels, channels, resnet=False, resample=True))
    return stages


def plan_up(
    width: int, channel_mult: tuple[int, ...], num_res_blocks: int, attend_at: set[int]
) -> list[Stage]:
    """The way up: the mirror image, each stage also given what its partner on the way down made."""
    down = plan_down(width, channel_mult, num_res_blocks, attend_at)
    skips = [width, *(stage.channels_out for stage in down)]
    stages, channels = [], skips[-1]
    for level, mult in reversed(list(enumerate(channel_mult))):
        for block in range(num_res_blocks + 1):
            last = level > 0 and block == num_res_blocks
            attend = 2**level in attend_at
            stages.append(Stage(channels + skips.pop(), width * mult, True, attend, last))
            channels = width * mult
    return stages


@dataclass(frozen=True)
class BlockFactory:
    """Builds the blocks of one U-Net: holds what they have in common."""

    emb_channels: int
    dropout: float
    dims: int
    conv_resample: bool
    resblock_updown: bool
    use_scale_shift_norm: bool
    use_checkpoint: bool
    num_heads: int
    num_heads_upsample: int
    num_head_channels: int
    use_new_attention_order: bool
    use_spatial_transformer: bool
    transformer_depth: int
    context_dim: int | None
    legacy: bool
    norm_groups: int
    use_linear_in_transformer: bool

    def __post_init__(self) -> None:
        if self.num_heads == -1 and self.num_head_channels == -1:
            raise ValueError("neither num_heads nor num_head_channels is given: set one of them")
        if self.use_spatial_transformer and self.context_dim is None:
            raise ValueError(
                "use_spatial_transformer=True needs context_dim, the width of the text encoder"
            )
        if self.context_dim is not None and not self.use_spatial_transformer:
            raise ValueError(
                f"context_dim={self.context_dim} has no effect without use_spatial_transformer=True"
            )

    def stage(self, stage: Stage, up: bool = False) -> TimestepEmbedSequential:
        """The modules of one `stage` on the way down, or `up`."""
        layers: list[nn.Module] = []
        if stage.resnet:
            layers.append(self.resnet(stage.channels_in, stage.channels_out))
        if stage.attend:
            layers.append(self.attention(stage.channels_out, up))
        if stage.resample:
            layers.append(self.resample(stage.channels_out, up))
        return TimestepEmbedSequential(*layers)

    def middle(self, channels: int) -> TimestepEmbedSequential:
        """The modules at the bottom of the U."""
        return TimestepEmbedSequential(
            self.resnet(channels, channels),
            self.attention(channels),
            self.resnet(channels, channels),
        )

    def resnet(
        self, channels: int, out_channels: int, up: bool = False, down: bool = False
    ) -> ResBlock:
        """A residual block."""
        return ResBlock(
            channels,
            self.emb_channels,
            self.dropout,
            out_channels=out_channels,
            dims=self.dims,
            use_checkpoint=self.use_checkpoint,
            use_scale_shift_norm=self.use_scale_shift_norm,
            up=up,
            down=down,
            norm_groups=self.norm_groups,
        )

    def resample(self, channels: int, up: bool) -> nn.Module:
        """Doubles or halves the size."""
        if self.resblock_updown:
            return self.resnet(channels, channels, up=up, down=not up)
        return (Upsample if up else Downsample)(channels, self.conv_resample, dims=self.dims)

    def attention(self, channels: int, up: bool = False) -> nn.Module:
        """Attention to the text, or of pixels among themselves in models without text."""
        if self.use_spatial_transformer:
            heads = self.num_heads
            if self.num_head_channels != -1:
                heads = head_count(channels, heads, self.num_head_channels)
            return SpatialTransformer(
                channels,
                heads,
                channels // heads,
                depth=self.transformer_depth,
                context_dim=self.context_dim,
                use_checkpoint=self.use_checkpoint,
                norm_groups=self.norm_groups,
                use_linear=self.use_linear_in_transformer,
            )
        heads = self.num_heads
        if up and self.legacy and self.num_heads_upsample != -1:
            heads = self.num_heads_upsample
        return AttentionBlock(
            channels,
            heads,
            self.num_head_channels,
            use_checkpoint=self.use_checkpoint,
            use_new_attention_order=self.use_new_attention_order,
        )


class UNetModel(nn.Module):
    """Predicts the noise in a latent, given the time step and optionally text and a class.

    `attention_resolutions` are the down-sampling factors at which there is attention. `image_size`
    is only remembered: any size that can be halved once per level is accepted. `norm_groups` is 32
    in public models (see `normalization`).
    """

    def __init__(  # noqa: PLR0913, PLR0917 - public signature
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Iterable[int],
        dropout: float = 0.0,
        channel_mult: Iterable[int] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = -1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        use_spatial_transformer: bool = False,
        transformer_depth: int = 1,
        context_dim: int | None = None,
        n_embed: int | None = None,
        legacy: bool = True,
        *,
        norm_groups: int = 32,
        use_linear_in_transformer: bool = False,
    ) -> None:
        given = dict(locals())
        super().__init__()
        blocks = BlockFactory(
            emb_channels=4 * model_channels,
            **{field.name: given[field.name] for field in fields(BlockFactory)[1:]},
        )
        plan = (model_channels, tuple(channel_mult), num_res_blocks, set(attention_resolutions))
        self.image_size = image_size
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.model_channels = model_channels
        self.num_classes = num_classes
        self.shrinks_by = 2 ** (len(plan[1]) - 1)
        self._build(blocks, plan_down(*plan), plan_up(*plan), n_embed)
        if use_fp16:
            self.half()

    def _build(
        self, blocks: BlockFactory, down: list[Stage], up: list[Stage], n_embed: int | None
    ) -> None:
        dims, width, emb = blocks.dims, self.model_channels, blocks.emb_channels
        self.time_embed = nn.Sequential(linear(width, emb), nn.SiLU(), linear(emb, emb))
        if self.num_classes is not None:
            self.label_emb = nn.Embedding(self.num_classes, emb)
        entry = TimestepEmbedSequential(conv_nd(dims, self.in_channels, width, 3, padding=1))
        self.input_blocks = nn.ModuleList([entry, *(blocks.stage(stage) for stage in down)])
        self.middle_block = blocks.middle(down[-1].channels_out)
        self.output_blocks = nn.ModuleList(blocks.stage(stage, up=True) for stage in up)
        last = up[-1].channels_out
        self.out = nn.Sequential(
            normalization(last, groups=blocks.norm_groups),
            nn.SiLU(),
            zero_module(conv_nd(dims, last, self.out_channels, 3, padding=1)),
        )
        self.id_predictor = None
        if n_embed is not None:
            self.id_predictor = nn.Sequential(normalization(last), conv_nd(dims, last, n_embed, 1))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, in which inputs are taken (autocast aside)."""
        return next(self.parameters()).dtype

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """The noise in `x` (b, c, h, w) at `timesteps` (b,).

        `context` (b, m, d) is the text, `y` (b,) the class, for models that have them. With
        `n_embed` the result is instead, for every pixel, the scores of the codebook's entries.

        Raises:
            ValueError: when the timesteps are missing, `y` is given without `num_classes` or the
                reverse, or the size of `x` cannot be halved once per level.
        """
        if timesteps is None:
            raise ValueError("timesteps are missing: give one per sample, shape (batch,)")
        self._check(x, y)
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(self.dtype))
        if y is not None:
            emb = emb + self.label_emb(y)
        if context is not None:
            context = context.to(self.dtype)
        h, skips = x.to(self.dtype), []
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, context)
        head = self.out if self.id_predictor is None else self.id_predictor
        return head(h).to(x.dtype)

    def _check(self, x: Tensor, y: Tensor | None) -> None:
        if (y is None) != (self.num_classes is None):
            given = "no y was given" if y is None else "y was given"
            raise ValueError(
                f"num_classes={self.num_classes} but {given}: give y when the model has classes"
            )
        if any(size % self.shrinks_by for size in x.shape[2:][-2:]):
            raise ValueError(
                f"latent of shape {tuple(x.shape)}: height and width must be multiples of "
                f"{self.shrinks_by}; resize the image accordingly"
            )
