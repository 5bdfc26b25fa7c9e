"""Install a controller on every attention module of a U-Net, as a ``with`` block."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn

from ldm.modules.attention import (
    AttentionController,
    AttentionSite,
    CrossAttention,
    Grid,
    attention_probs,
)

__all__ = [
    "AttentionController",
    "AttentionSite",
    "Grid",
    "attention_probs",
    "attention_sites",
    "controlling",
]

PLACES: dict[str, Literal["down", "mid", "up"]] = {
    "input_blocks": "down",
    "middle_block": "mid",
    "output_blocks": "up",
}


def attention_sites(unet: nn.Module) -> list[tuple[CrossAttention, AttentionSite]]:
    """Every attention module of `unet` with its place, in the order in which they run.

    `unet` may also be a part of a U-Net, or a model that has one inside; modules of which the name
    does not tell the place count as the middle.
    """
    found = [(n, m) for n, m in unet.named_modules() if isinstance(m, CrossAttention)]
    sites = []
    for index, (name, module) in enumerate(found):
        places = [PLACES[part] for part in name.split(".") if part in PLACES]
        place = places[0] if places else "mid"
        sites.append((module, AttentionSite(place, index, module.is_cross, name)))
    return sites


@contextmanager
def controlling(unet: nn.Module, controller: AttentionController | None) -> Iterator[None]:
    """Let `controller` see, or rewrite, all attention of `unet` within the block.

    What was installed before is back in place afterwards, also when the block fails. ``None``
    silences an outer controller.
    """
    sites = attention_sites(unet)
    before = [(module, module.controller, module.site) for module, _ in sites]
    try:
        for module, site in sites:
            module.controller, module.site = controller, site
        yield
    finally:
        for module, controller_before, site_before in before:
            module.controller, module.site = controller_before, site_before
