"""Where the words of a sentence look: attention maps, binary masks, overlap with the truth."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.concepts.recorder import WordAttention
from ldm.models.diffusion.draws import noise_at_level
from ldm.modules.attention_control import controlling

#: Timesteps at which pictures are noised, as shares of the schedule.
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@torch.no_grad()
def word_maps(
    model: Any,
    latents: Tensor,
    captions: Sequence[Any],
    *,
    words: Sequence[str] | None = None,
    resolutions: Sequence[int] | None = None,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Mean cross-attention map of every word over several noise levels (MCPL sec. 3.1).

    Args:
        latents: scaled latents (b, c, h, w) of the pictures.
        captions: what each picture is shown with; their learnable words are read.
        words: which words; all learnable ones by default.
        resolutions: map sizes to average; the model's ``mask_resolution`` by default.
        shares: noise levels, as shares of the number of timesteps.

    Returns:
        word -> (b, m, n), zero where a caption lacks the word.
    """
    manager = model.embedding_manager
    tokens = model.cond_stage_model.tokenize(captions, manager.words if manager else {})
    context = model.get_learned_conditioning(captions)
    recorder = WordAttention(tokens, resolutions or model.mask_resolution, words)
    record_noised(model, latents, context, recorder, shares=shares, seed=seed)
    maps = recorder.maps()
    return {word: maps[:, index] for index, word in enumerate(recorder.words)}


@torch.no_grad()
def record_noised(
    model: Any,
    latents: Tensor,
    context: Tensor,
    recorder: WordAttention,
    *,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> None:
    """Let `recorder` watch the network on `latents` noised at several levels (see `word_maps`)."""
    with controlling(model.model.diffusion_model, recorder):
        for level, share in enumerate(shares):
            noise = noise_at_level(latents, seed, level)
            step = min(int(share * model.num_timesteps), model.num_timesteps - 1)
            t = torch.full((len(latents),), step, device=latents.device)
            model.apply_model(model.q_sample(latents, t, noise), t, context)


def binary_mask(
    maps: Tensor, threshold: float = 0.5, size: tuple[int, int] | None = None
) -> Tensor:
    """``B = [M > k]`` (MCPL sec. 3.4) of maps (b, m, n): each divided by its own maximum.

    With `size`, maps are enlarged bilinearly first. Bool (b, h, w).
    """
    maps = maps / maps.flatten(1).amax(1)[:, None, None].clamp(min=1e-12)
    if size is not None:
        maps = F.interpolate(maps[:, None], size, mode="bilinear")[:, 0]
    return maps > threshold


def compete(maps: Mapping[str, Tensor], size: tuple[int, int], threshold: float) -> np.ndarray:
    """To which word each pixel belongs: uint8 `size`, 0 for none, else the word's number from 1.

    `maps` (m, n) are divided by their own maximum; the strongest wins where any is above the
    threshold.
    """
    stack = torch.stack(list(maps.values()))
    stack = stack / stack.amax((-2, -1), keepdim=True).clamp(min=1e-12)
    stack = F.interpolate(stack[None], size, mode="bilinear")[0]
    strongest, which = stack.max(0)
    return torch.where(strongest > threshold, which + 1, 0).to(torch.uint8).cpu().numpy()


def iou(predicted: Tensor | np.ndarray, truth: Tensor | np.ndarray) -> float:
    """Intersection over union of two bool masks; 1 when both are empty."""
    predicted, truth = np.asarray(predicted, bool), np.asarray(truth, bool)
    union = np.logical_or(predicted, truth).sum()
    return float(np.logical_and(predicted, truth).sum() / union) if union else 1.0


def word_ious(
    maps: Mapping[str, Tensor], truths: Sequence[Mapping[str, np.ndarray]], threshold: float = 0.5
) -> dict[str, float]:
    """Mean over pictures of each word's overlap with its true mask, for words that have one."""
    scores: dict[str, float] = {}
    for word, stack in maps.items():
        pairs = [(i, truth[word]) for i, truth in enumerate(truths) if word in truth]
        if pairs:
            size = pairs[0][1].shape
            masks = binary_mask(stack, threshold, size)
            scores[word] = float(np.mean([iou(masks[i].cpu(), true) for i, true in pairs]))
    return scores
