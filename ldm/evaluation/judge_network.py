"""The network behind the judge: a picture becomes class maps, and what a mask shows becomes facts.

All full convolutions run at half the picture's resolution or less, so that reading a picture of
64x64 pixels takes a few milliseconds on one core.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.data.playroom.labels import (
    ADJECTIVE_NAMES,
    COLOUR_NAMES,
    COUNT_VALUES,
    NAMES,
    PLACE_NAMES,
    RELATION_NAMES,
    STATE_NAMES,
)

#: What is told of every object, and how many answers there are.
FACTS: dict[str, int] = {
    "colours": len(COLOUR_NAMES),
    "states": len(STATE_NAMES),
    "counts": len(COUNT_VALUES),
    "adjectives": len(ADJECTIVE_NAMES),
}
#: Background and objects.
CLASSES = 1 + len(NAMES)
_GEOMETRY = 10


@dataclass(frozen=True)
class Features:
    """What the network makes of pictures (b,3,h,w) before it is asked about anything in them.

    `pixels` (b,classes,h/2,w/2), `presence` (b,objects) and `place` (b,places) are logits, `levels`
    feature maps from fine to coarse.
    """

    pixels: Tensor
    levels: tuple[Tensor, ...]
    presence: Tensor
    place: Tensor


class Block(nn.Module):
    """A residual block of two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b,c,h,w) -> (b,c,h,w)."""
        return F.relu(x + self.body(x))


def _conv(channels: int, out: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, normalisation, activation."""
    padding = (size - 1) // 2
    return nn.Sequential(
        nn.Conv2d(channels, out, size, stride, padding, bias=False), nn.BatchNorm2d(out), nn.ReLU()
    )


class JudgeNetwork(nn.Module):
    """Reads pictures of the playroom: `forward` the whole picture, `facts` and `relations` parts.

    `width` is the number of channels at half, quarter and eighth of the picture's resolution.
    """

    def __init__(self, width: tuple[int, int, int] = (40, 96, 128), hidden: int = 128) -> None:
        super().__init__()
        fine, middle, coarse = width
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), _conv(12, fine), _conv(fine, fine))
        self.down1 = nn.Sequential(_conv(fine, middle, 2, 2), Block(middle))
        self.down2 = nn.Sequential(_conv(middle, coarse, 2, 2), Block(coarse), Block(coarse))
        self.context = nn.Linear(2 * coarse, coarse)
        self.up1 = nn.Sequential(_conv(middle + coarse, middle, 1), _conv(middle, middle))
        self.up2 = nn.Sequential(_conv(fine + middle, fine, 1), _conv(fine, fine))
        self.pixels = nn.Conv2d(fine, CLASSES, 1)
        self.presence = nn.Linear(2 * coarse, len(NAMES))
        self.place = nn.Linear(2 * coarse, len(PLACE_NAMES))
        pooled = fine + middle + coarse + 3 + 1 + len(NAMES)
        self.object = nn.Sequential(
            nn.Linear(pooled, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, n) for name, n in FACTS.items()})
        self.pair = nn.Sequential(
            nn.Linear(2 * hidden + _GEOMETRY, hidden),
            nn.ReLU(),
            nn.Linear(hidden, len(RELATION_NAMES)),
        )

    def forward(self, images: Tensor) -> Features:
        """Class maps and features of pictures (b,3,h,w) in [-1, 1]; sides divisible by eight."""
        fine = self.stem(images)
        middle = self.down1(fine)
        coarse = self.down2(middle)
        summary = torch.cat([coarse.mean((2, 3)), coarse.amax((2, 3))], 1)
        coarse = coarse + self.context(summary)[:, :, None, None]
        middle = self.up1(torch.cat([middle, _double(coarse)], 1))
        fine = self.up2(torch.cat([fine, _double(middle)], 1))
        levels = (fine, middle, coarse)
        return Features(self.pixels(fine), levels, self.presence(summary), self.place(summary))

    def objects(self, images: Tensor, found: Features, masks: Tensor, kinds: Tensor) -> Tensor:
        """A description (b,k,hidden) of what masks (b,k,h,w) show, said to be of `kinds` (b,k)."""
        pooled = [pool(level, masks) for level in (images, *found.levels)]
        area = masks.float().mean((2, 3))[..., None].clamp(min=1e-4).log()
        named = F.one_hot(kinds.clamp(min=0), len(NAMES))
        return self.object(torch.cat([*pooled, area, named], 2))

    def facts(self, objects: Tensor) -> dict[str, Tensor]:
        """Logits of everything told of objects (b,k,hidden): name of `FACTS` -> (b,k,answers)."""
        return {name: head(objects) for name, head in self.heads.items()}

    def relations(self, objects: Tensor, masks: Tensor) -> Tensor:
        """Logits (b,k,k,n) of what each object (b,k,hidden) of masks (b,k,h,w) is to each other."""
        k = objects.shape[1]
        one = objects[:, :, None].expand(-1, -1, k, -1)
        return self.pair(torch.cat([one, one.transpose(1, 2), pair_geometry(masks)], -1))


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def whole_map(pixels: Tensor) -> Tensor:
    """`Features.pixels` at the size of the pictures, (b,classes,h,w)."""
    return F.interpolate(pixels.float(), scale_factor=2.0, mode="bilinear", align_corners=False)


def pool(features: Tensor, masks: Tensor) -> Tensor:
    """Mean of features (b,c,h,w) within masks (b,k,H,W), (b,k,c); zero for an empty mask.

    H and W are multiples of h and w.
    """
    factor = masks.shape[-1] // features.shape[-1]
    weights = masks.to(features.dtype)
    weights = (F.avg_pool2d(weights, factor) if factor > 1 else weights).flatten(2)
    totals = torch.bmm(weights, features.flatten(2).transpose(1, 2)).float()
    return totals / weights.float().sum(2, keepdim=True).clamp(min=1e-6)


def layout(masks: Tensor) -> Tensor:
    """Where masks (b,k,h,w) are: (b,k,6) left, top, right, bottom and middle, in [0, 1]."""
    height, width = masks.shape[-2:]
    across = torch.linspace(0, 1, width, device=masks.device)
    down = torch.linspace(0, 1, height, device=masks.device)
    columns, rows = masks.any(2), masks.any(3)
    area = masks.float().sum((2, 3)).clamp(min=1)
    return torch.stack(
        [
            across.expand_as(columns).masked_fill(~columns, 1).amin(2),
            down.expand_as(rows).masked_fill(~rows, 1).amin(2),
            across.expand_as(columns).masked_fill(~columns, 0).amax(2),
            down.expand_as(rows).masked_fill(~rows, 0).amax(2),
            (masks.float().sum(2) * across).sum(2) / area,
            (masks.float().sum(3) * down).sum(2) / area,
        ],
        2,
    )


def geometry(one: Tensor, other: Tensor, touch: Tensor) -> Tensor:
    """How two layouts (..., 6) lie to each other: differences, overlap across and down, contact.

    `touch` (..., 2) is the contact of the one with the other and of the other with the one.
    """
    overlap = torch.minimum(one[..., 2:4], other[..., 2:4]) - torch.maximum(
        one[..., :2], other[..., :2]
    )
    return torch.cat([4 * (one - other), 4 * overlap, touch], -1)


def contact(masks: Tensor) -> Tensor:
    """The share of each mask (b,k,h,w) next to each other one, and of that one next to it.

    (b,k,k,2).
    """
    halves = F.max_pool2d(masks.float(), 2)
    grown = F.max_pool2d(halves, 3, 1, 1).flatten(2)
    flat = halves.flatten(2)
    both = torch.bmm(flat, grown.transpose(1, 2))
    share = both / flat.sum(2, keepdim=True).clamp(min=1)
    return torch.stack([share, share.mT], -1)


def pair_geometry(masks: Tensor) -> Tensor:
    """What `JudgeNetwork.relations` is told of all pairs of masks (b,k,h,w): (b,k,k,10)."""
    where = layout(masks)
    k = masks.shape[1]
    one = where[:, :, None].expand(-1, -1, k, -1)
    return geometry(one, one.transpose(1, 2), contact(masks))
