"""The AttnMask and PromptCL of the released MCPL code, departures from the paper included.

Only for comparison with numbers that were made with that code (``reference_quirks: true``);
`masks.py` and `contrastive.py` are the paper's. ``docs/deviations.md`` lists the differences.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.concepts.contrastive import PromptContrast
from ldm.concepts.masks import AttentionMask
from ldm.concepts.objective import TermValue, TrainStep
from ldm.concepts.recorder import Positions, adjective_of, to_device
from ldm.modules.attention import AttentionSite, Grid, attention_probs
from ldm.modules.attention_control import AttentionController

#: The released masks read maps of this size only, from these layers among those up to this size.
SIDE = 16
LAYERS = {"down": slice(0, 2), "up": slice(3, 6)}


def word_mask(positions: Positions, words: Sequence[str], length: int) -> Tensor:
    """Which of the `length` tokens of each caption belong to one of `words`: bool (b, length)."""
    mask = torch.zeros(len(positions), length, dtype=torch.bool)
    for row, found in zip(mask, positions, strict=True):
        for word in words:
            row[found.get(word, [])] = True
    return mask


class ReleasedAttention(AttentionController):
    """Keeps the attention that the released code keeps: the second half of all (image, head) rows.

    That half was the conditional one under guidance, which training does not have. Gradients are
    kept as well: through a soft mask they reach the words.
    """

    differentiable = True

    def __init__(self, positions: Positions) -> None:
        self.positions = positions
        self.words = list(dict.fromkeys(word for row in positions for word in row))
        self.stored: dict[str, list[Tensor]] = {"down": [], "mid": [], "up": []}

    def wants(self, site: AttentionSite | None, pixels: int | None = None) -> bool:
        """Only cross-attention."""
        return site is not None and site.is_cross

    def observe(
        self, q: Tensor, k: Tensor, scale: float, site: AttentionSite | None, grid: Grid | None
    ) -> None:
        """Keep the half of one layer's maps, (b * heads / 2, pixels, tokens)."""
        if site is not None and q.shape[2] <= SIDE**2:
            rows = attention_probs(q, k, scale).flatten(0, 1)
            self.stored[site.place].append(rows[len(rows) // 2 :])

    def maps(self) -> Tensor:
        """The maps handed out over the batch as released: (b, layers and heads, pixels, tokens).

        Raises:
            ValueError: when the layers in question do not have maps of 16 x 16, or the rows cannot
                be shared out.
        """
        layers = [m for place, chosen in LAYERS.items() for m in self.stored[place][chosen]]
        batch = len(self.positions)
        fits = all(m.shape[1] == SIDE**2 and len(m) % batch == 0 for m in layers)
        if not layers or not fits:
            raise ValueError(
                "the released masks are made for latents of 32 x 32 and an even number of heads; "
                "this network has other maps: set reference_quirks: false"
            )
        return torch.cat([m.unflatten(0, (batch, -1)) for m in layers], 1)


class ReleasedMask(AttentionMask):
    """The released AttnMask; the arguments are those of `AttentionMask`, with a threshold of 0.3.

    The probabilities of all words are summed before the maximum and the threshold; the mask of the
    first image is added to that of every image. `average` has no effect.

    Args:
        softmax_words: words that go through the softmax twice more.
    """

    def __init__(
        self, threshold: float = 0.3, softmax_words: Sequence[str] = (), **arguments: Any
    ) -> None:
        super().__init__(threshold=threshold, **arguments)
        self.softmax_words = tuple(softmax_words)

    def __call__(self, step: TrainStep) -> Tensor | None:
        """The mask (b, 1, h, w), or ``None`` for no mask."""
        if self.kind == "skip":
            return None
        _refuse_several_runs(step)
        attention: Any = step.attention
        maps = attention.maps()
        length = maps.shape[-1]
        words = self.select(attention.words, step.embeddings)
        chosen = to_device(word_mask(attention.positions, words, length), maps.device)
        if self.softmax_words:
            listed = word_mask(attention.positions, self.softmax_words, length)
            maps = sharpen(maps, to_device(listed, maps.device)[:, None, None])
        evidence = (maps * chosen[:, None, None]).sum(-1).mean(1).unflatten(1, (1, SIDE, SIDE))
        mask = F.interpolate(evidence, size=step.prediction.shape[-2:], mode="nearest")
        mask = mask / mask.amax((-2, -1), keepdim=True)
        if self.kind == "soft":
            return mask[:1] + mask
        inside = mask > self.threshold
        return (inside[:1] | inside).to(maps.dtype)


def sharpen(probabilities: Tensor, listed: Tensor) -> Tensor:
    """The double softmax: of all probabilities, then of the listed tokens with zeros elsewhere."""
    once = probabilities.softmax(-1)
    twice = once.masked_fill(~listed, 0).softmax(-1)
    return torch.where(listed, twice, once)


class ReleasedContrast(PromptContrast):
    """The released PromptCL; the arguments are those of `PromptContrast`.

    Args:
        relate: the sentence has RELATE in it: one value per image, and no gradient.
    """

    def __init__(self, relate: bool = False, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.relate = relate

    def __call__(self, step: TrainStep) -> TermValue:
        """The contrast of the batch, (1,).

        Raises:
            ValueError: when the captions do not all have equally many tokens of the words, and as
                many of their adjectives.
        """
        _refuse_several_runs(step)
        context, positions, words = self.read(step)
        groups = [_pick(context, positions, words)]
        if self.bind_adjectives:
            groups.append(_pick(context, positions, [adjective_of(word) for word in words]))
            groups = [group for group in groups if group.shape[1]]
        if len({group.shape for group in groups}) != 1:
            raise ValueError(
                "the released PromptCL needs as many adjectives as words: here are "
                f"{[group.shape[1] for group in groups]} tokens of them in a caption"
            )
        if self.relate:
            alone = [
                rolled_nce(torch.stack(rows), self.temperature)
                for rows in zip(*groups, strict=True)
            ]
            return TermValue(torch.stack(alone).mean().detach().reshape(1), {})
        return TermValue(rolled_nce(torch.cat(groups), self.temperature).reshape(1), {})


def _refuse_several_runs(step: TrainStep) -> None:
    if step.runs > 1:
        raise ValueError(
            f"the released terms mix the images of a step, and this one is of {step.runs} runs: "
            "give each run a step of its own, as PackedRuns does, or set reference_quirks: false"
        )


def _pick(context: Tensor, positions: Positions, words: Sequence[str]) -> Tensor:
    """The outputs at the tokens of `words`, in the order of the caption: (b, n, d)."""
    chosen = word_mask(positions, words, context.shape[1])
    counts = chosen.sum(1)
    if counts.min() != counts.max():
        raise ValueError(
            "the released PromptCL needs equally many tokens of the words in every caption, here "
            f"are {counts.tolist()}: set reference_quirks: false"
        )
    index = chosen.nonzero()[:, 1].reshape(len(positions), -1)
    index = to_device(index, context.device)
    return context.float().gather(1, index[..., None].expand(-1, -1, context.shape[2]))


def rolled_nce(features: Tensor, temperature: float) -> Tensor:
    """InfoNCE of features (R, n, d), one row per image, whose positives are found by a roll of R.

    The positive of feature i is i - R in the flattened list: the same word only if n divides R.
    """
    rows = features.shape[0]
    flat = F.normalize(features.flatten(0, 1), dim=-1, eps=1e-8)
    scores = flat @ flat.T
    scores = scores.masked_fill(torch.eye(len(flat), dtype=torch.bool, device=flat.device), -9e15)
    scores = scores / temperature
    index = torch.arange(len(flat), device=flat.device)
    return (scores.logsumexp(-1) - scores[index, index.roll(rows)]).mean()
