"""Pictures of what a model makes of a batch, for the log."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ldm.models.diffusion.base import DDPM

#: Conditions that are prompts, so that guidance away from the empty prompt means something.
PROMPTS = ("caption", "txt")


class Preview(NamedTuple):
    """How many pictures, and how they are sampled."""

    pictures: int = 8
    sample: bool = True
    steps: int = 50
    eta: float = 0.0
    scale: float = 3.0
    seed: int = 0


@torch.no_grad()
def preview(model: Any, batch: Mapping[str, Any], wanted: Preview) -> dict[str, Any]:
    """Inputs, reconstructions and guided samples at fixed noise, as images in [-1, 1]."""
    z, condition = model.get_input(batch, model.first_stage_key, bs=wanted.pictures)
    images = DDPM.get_input(model, batch, model.first_stage_key)[: wanted.pictures]
    logged: dict[str, Any] = {"inputs": images, "reconstruction": model.decode_first_stage(z)}
    if not isinstance(condition, Mapping) and condition is not None:
        condition = condition[: wanted.pictures]
    prompts = model.cond_stage_key in PROMPTS
    if prompts:
        logged["conditioning"] = [str(caption) for caption in condition]
    if not wanted.sample:
        return logged
    with model.ema_scope():
        context = None if condition is None else model.get_learned_conditioning(condition)
        guided = {}
        if prompts and wanted.scale != 1.0:
            guided = {
                "unconditional_guidance_scale": wanted.scale,
                "unconditional_conditioning": model.get_learned_conditioning([""] * len(z)),
            }
        x_T = torch.randn(z.shape, generator=torch.Generator().manual_seed(wanted.seed)).to(z)
        samples, _ = model.sample_log(
            context, len(z), ddim_steps=wanted.steps, eta=wanted.eta, x_T=x_T, **guided
        )
    logged["samples"] = model.decode_first_stage(samples)
    return logged
