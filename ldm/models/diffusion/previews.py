"""Pictures of what a model makes of a batch, for the log."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.concepts.recorder import WordAttention, named_positions
from ldm.models.diffusion.base import DDPM
from ldm.models.diffusion.draws import noise_of
from ldm.modules.attention_control import controlling
from ldm.prompts.spans import written_words

#: Conditions that are prompts, so that guidance away from the empty prompt means something.
PROMPTS = ("caption", "txt")
#: Words of a caption whose attention says little, and how many of the others are shown.
FUNCTION_WORDS = frozenset(
    "a an and at by for from in is its of on one photo picture that the there this to with".split()  # noqa: SIM905
)
MOST_WORDS = 6


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
    """Inputs, reconstructions and guided samples at fixed noise, as images in [-1, 1].

    Where the conditions are prompts, ``attention`` says what their words looked at while the
    samples were made: for each sample ``{word: (m, n)}``, if a layer has the `mask_resolution`.
    """
    z, condition = model.get_input(batch, model.first_stage_key, bs=wanted.pictures)
    images = DDPM.get_input(model, batch, model.first_stage_key)[: wanted.pictures]
    logged: dict[str, Any] = {"inputs": images, "reconstruction": model.decode_first_stage(z)}
    prompts = model.cond_stage_key in PROMPTS
    if prompts:
        logged["conditioning"] = [str(caption) for caption in condition]
    if not wanted.sample:
        return logged
    with model.ema_scope():
        context = None if condition is None else model.get_learned_conditioning(condition)[: len(z)]
        guided = {}
        if prompts and wanted.scale != 1.0:
            guided = {
                "unconditional_guidance_scale": wanted.scale,
                "unconditional_conditioning": model.get_learned_conditioning([""] * len(z)),
            }
        x_T = noise_of(z.shape, wanted.seed).to(z)
        recorder = _caption_recorder(model, condition) if prompts else None
        with controlling(model.model.diffusion_model, recorder):
            samples, _ = model.sample_log(
                context, len(z), ddim_steps=wanted.steps, eta=wanted.eta, x_T=x_T,
                on_step=recorder.begin_step if recorder else None, **guided,
            )  # fmt: skip
    logged["samples"] = model.decode_first_stage(samples)
    if recorder is not None and recorder.sums:
        logged["attention"] = _word_maps(recorder)
    return logged


def _caption_recorder(model: Any, captions: Sequence[Any]) -> WordAttention | None:
    """What records the first words of captions that mean something; None if there are none."""
    manager = model.embedding_manager
    tokens = model.cond_stage_model.tokenize(captions, manager.words if manager else {})
    spoken = [
        [*learnable, *(w for w in written_words(str(text)) if w.lower() not in FUNCTION_WORDS)]
        for text, learnable in zip(captions, tokens.learnable, strict=True)
    ]
    found = named_positions(tokens, captions, {word for row in spoken for word in row})
    rows = [
        {word: at[word] for word in dict.fromkeys(row) if word in at}
        for row, at in zip(spoken, found, strict=True)
    ]
    rows = [dict(list(row.items())[:MOST_WORDS]) for row in rows]
    return WordAttention(rows, model.mask_resolution) if any(rows) else None


def _word_maps(recorder: WordAttention) -> list[dict[str, Tensor]]:
    """For each caption the maps of the words that it has."""
    maps = recorder.maps().cpu()
    return [
        {word: maps[row, k] for k, word in enumerate(recorder.words) if there[k]}
        for row, there in enumerate(recorder.present.tolist())
    ]
