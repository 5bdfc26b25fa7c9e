"""The default model measured on its own drawn world, where the truth is exact."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.concepts.recorder import WordAttention
from ldm.data.playroom import Scene, scene
from ldm.data.playroom.dataset import to_float
from ldm.evaluation.localisation import SHARES, binary_mask, iou, record_noised
from ldm.models.autoencoder import psnr
from ldm.prompts.spans import find_words


@dataclass(frozen=True)
class Mean:
    """A mean over examples with its 95% interval (normal approximation)."""

    value: float
    interval: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Mean":
        """The mean of some values; not a number when there is none."""
        found = np.asarray(list(values), float)
        if not len(found):
            return cls(float("nan"), float("nan"), 0)
        spread = found.std(ddof=1) / np.sqrt(len(found)) if len(found) > 1 else 0.0
        return cls(float(found.mean()), float(1.96 * spread), len(found))

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.interval:.3f} (n={self.count})"


def fresh_scenes(count: int, n_objects: int, size: int, *, seed: int = 77) -> list[Scene]:
    """Scenes of named objects that training has not drawn, captioned by their true names."""
    found = (
        scene(seed, index, size, "named", n_objects=n_objects, templates=False)
        for index in range(10 * count)
    )
    plain = (one for one in found if len(one.objects) == n_objects and one.spec.scan is None)
    return [one for one, _ in zip(plain, range(count), strict=False)]


def pictures(scenes: Sequence[Scene]) -> Tensor:
    """Their images, (b, 3, size, size) in [-1, 1]."""
    arrays = [torch.from_numpy(to_float(one.image)) for one in scenes]
    return torch.stack(arrays).movedim(-1, 1).contiguous()


def positions_of(
    tokens: Any, row: int, caption: str, words: Mapping[str, str]
) -> dict[str, list[int]]:
    """Token positions in caption `row` of each named word that it contains."""
    positions = {}
    for name, word in words.items():
        spans = find_words(caption, [word])
        if spans:
            positions[name] = tokens.at(row, spans[0].start, spans[0].end)
    return positions


def _words_of(one: Scene) -> dict[str, str]:
    words = {f"noun {i}": thing.word for i, thing in enumerate(one.objects)}
    colours = [thing.colour for thing in one.objects]
    unique = {f"colour {i}": c for i, c in enumerate(colours) if c and colours.count(c) == 1}
    return {**words, **unique}


@torch.no_grad()
def localisation(
    model: Any,
    scenes: Sequence[Scene],
    resolutions: Sequence[int],
    *,
    threshold: float = 0.5,
    shares: Sequence[float] = SHARES,
    batch: int = 16,
) -> dict[str, Mean]:
    """IoU of the nouns' and the colours' attention with the true masks of their objects.

    Renders are encoded, noised at several levels, and the maps averaged over these, over heads and
    over the layers of `resolutions`.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    for first in range(0, len(scenes), batch):
        part = scenes[first : first + batch]
        latents = model.get_first_stage_encoding(
            model.encode_first_stage(pictures(part).to(model.device)).mode()
        )
        captions = [one.caption for one in part]
        tokens = model.cond_stage_model.tokenize(captions)
        context = model.get_learned_conditioning(captions)
        positions = [
            positions_of(tokens, row, one.caption, _words_of(one)) for row, one in enumerate(part)
        ]
        names = sorted({name for row in positions for name in row})
        recorder = WordAttention(positions, resolutions, names)
        record_noised(model, latents, context, recorder, shares=shares, seed=first)
        maps = recorder.maps()
        for column, name in enumerate(recorder.words):
            masks = binary_mask(maps[:, column], threshold, part[0].image.shape[:2]).cpu()
            kind, number = name.split()
            for row, one in enumerate(part):
                if name in positions[row]:
                    scores[kind].append(iou(masks[row], one.objects[int(number)].mask))
    return {kind: Mean.of(values) for kind, values in sorted(scores.items())}


@torch.no_grad()
def reconstruction(model: Any, scenes: Sequence[Scene], batch: int = 32) -> Mean:
    """PSNR in decibels of decoding the mode of each picture's posterior."""
    values = []
    for first in range(0, len(scenes), batch):
        images = pictures(scenes[first : first + batch]).to(model.device)
        decoded = model.first_stage_model.decode(model.encode_first_stage(images).mode())
        values += [float(psnr(a[None], b[None])) for a, b in zip(images, decoded, strict=True)]
    return Mean.of(values)
