"""Read the cross-attention of chosen words while the network runs.

The maps of MCPL sec. 3.4 need a few columns of the attention matrix at one or two resolutions. They
are computed beside the fused kernel and without gradient, so that recording changes neither the
numbers nor, noticeably, the time of a step.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.modules.attention import AttentionSite, Grid, attention_probs
from ldm.modules.attention_control import AttentionController
from ldm.prompts.sentence import MARKED
from ldm.prompts.spans import find_words

#: Per caption, the token positions of everything that has a name.
Positions = Sequence[dict[str, list[int]]]


def adjective_of(word: str) -> str:
    """The name under which the adjective bound to `word` is recorded: ``[<teddy>]``."""
    return f"[{word}]"


def named_positions(
    tokens: Any, captions: Sequence[Any] = (), spellings: Iterable[str] = ()
) -> list[dict[str, list[int]]]:
    """Where words stand, per caption: learnable ones, bound adjectives, and any others by spelling.

    A learnable word goes by its own name and the adjective bound to it by that of `adjective_of`.
    `spellings` that are not learnable in a caption are looked up in its text.
    """
    rows = []
    for row, (learnable, bound) in enumerate(zip(tokens.learnable, tokens.bound, strict=True)):
        found = {**learnable, **{adjective_of(word): at for word, at in bound.items()}}
        for spelling in spellings:
            if spelling in found or not captions:
                continue
            spans = find_words(str(captions[row]), [spelling])
            hits = {at for span in spans for at in tokens.at(row, span.start, span.end)}
            if hits:
                found[spelling] = sorted(hits)
        rows.append(found)
    return rows


def concept_words(names: Iterable[str], embeddings: Any = None) -> list[str]:
    """Which of `names` stand for concepts: the marked words (roles "noun" and Lego's "concept").

    So with MCPL-all, where "on" and "a" are learned too, they are not taken for concepts. Where the
    words have no roles, or none of them is marked, every name counts.
    """
    roles = {word.name: word.role for word in getattr(embeddings, "learnable", ())}
    marked = {name for name, role in roles.items() if role in MARKED}
    return [name for name in names if name in marked] if marked else list(names)


def to_device(values: Any, device: torch.device) -> Tensor:
    """A small table from the host on `device`, without waiting for what is computed there."""
    return torch.as_tensor(values).to(device, non_blocking=True)


def word_columns(positions: Positions, words: Sequence[str]) -> Tensor:
    """Token positions of each word in each caption: (b, words, k), padded with -1."""
    longest = max((len(row.get(word, ())) for row in positions for word in words), default=0)
    columns = torch.full((len(positions), len(words), max(longest, 1)), -1, dtype=torch.long)
    for i, row in enumerate(positions):
        for j, word in enumerate(words):
            found = row.get(word, ())
            columns[i, j, : len(found)] = torch.tensor(found, dtype=torch.long)
    return columns


def gather_columns(probabilities: Tensor, columns: Tensor) -> Tensor:
    """Mean probability over the tokens of each word.

    Args:
        probabilities: (b, pixels, tokens).
        columns: (b, words, k) token positions, -1 where a word has fewer.

    Returns:
        (b, words, pixels); zero for a word that a caption does not contain.
    """
    present = columns >= 0
    index = columns.clamp(min=0).flatten(1)[:, None].expand(-1, probabilities.shape[1], -1)
    picked = probabilities.gather(2, index).unflatten(2, columns.shape[1:])
    picked = picked.masked_fill(~present[:, None], 0)
    # One token after the other: the padding that other captions need cannot change the rounding.
    total = torch.zeros_like(picked[..., 0])
    for token in picked.unbind(-1):
        total = total + token
    return (total / present.sum(-1).clamp(min=1)[:, None]).transpose(1, 2)


def mean_over_sizes(sizes: Collection[Tensor], *, equal_peaks: bool = True) -> Tensor:
    """Maps (b, words, h, w) of several sizes averaged at the largest one; sizes count equally.

    With `equal_peaks` each map is first brought to one maximum over the image (the mean of its
    sizes'), because those of coarse layers are higher and would decide alone.
    """
    if len(sizes) == 1:
        return next(iter(sizes))
    largest = max((m.shape[-2:] for m in sizes), key=lambda size: size[0] * size[1])
    if equal_peaks:
        peaks = torch.stack([m.amax((-2, -1), keepdim=True) for m in sizes])
        scales = peaks.mean(0) / peaks.clamp(min=torch.finfo(peaks.dtype).tiny)
        sizes = [m * scale for m, scale in zip(sizes, scales, strict=True)]
    enlarged = [
        m if m.shape[-2:] == largest else F.interpolate(m, largest, mode="bilinear") for m in sizes
    ]
    return torch.stack(enlarged).mean(0)


class WordAttention(AttentionController):
    """Mean cross-attention map of every word, over heads and over all layers of the given sizes.

    Args:
        tokens: the tokenised captions (with ``learnable`` and ``bound`` positions), or the
            positions of named words in each caption (see `named_positions`).
        resolutions: map sizes, as the longer side in pixels of the feature grid. Layers are chosen
            by size, never by index.
        words: which words; by default all learnable words of the captions.
        adjectives: also record the adjectives bound to those words, as `adjective_of` names them.
    """

    rewrites = False

    def __init__(
        self,
        tokens: Any,
        resolutions: Collection[int],
        words: Sequence[str] | None = None,
        *,
        adjectives: bool = False,
    ) -> None:
        self.words = _wanted(tokens, words, adjectives)
        positions = named_positions(tokens) if hasattr(tokens, "learnable") else tokens
        self.columns = word_columns(positions, self.words)
        self._present = (self.columns >= 0).any(-1)
        self.resolutions = frozenset(resolutions)
        self.conditional = slice(None)
        self.clear()

    def clear(self) -> None:
        """Forget what was recorded."""
        self.sums: dict[Grid, Tensor] = {}
        self.counts: dict[Grid, int] = {}
        self.passed: set[Grid] = set()

    @property
    def present(self) -> Tensor:
        """Which caption contains which word: bool (b, words), on the host."""
        return self._present

    def wants(self, site: AttentionSite | None, pixels: int | None = None) -> bool:
        """Only cross-attention."""
        return site is not None and site.is_cross

    def begin_step(self, index: int, conditional: slice) -> None:
        """Under guidance, read the conditional part of the batch."""
        self.conditional = conditional

    @torch.no_grad()
    def observe(
        self, q: Tensor, k: Tensor, scale: float, site: AttentionSite | None, grid: Grid | None
    ) -> None:
        """Add one layer's maps; q (b, heads, pixels, d), k (b, heads, tokens, d)."""
        self._add(q, k, scale, grid)

    def _add(self, q: Tensor, k: Tensor, scale: float, grid: Grid | None) -> None:
        """`observe`, with gradient."""
        if grid is None or max(grid) not in self.resolutions:
            self.passed.update(() if grid is None else (grid,))
            return
        with torch.autocast(q.device.type, enabled=False):
            q, k = q[self.conditional].float(), k[self.conditional].float()
            probabilities = attention_probs(q, k, scale).mean(1)
        maps = self._kept(probabilities).unflatten(2, grid)
        self.sums[grid] = self.sums[grid] + maps if grid in self.sums else maps
        self.counts[grid] = self.counts.get(grid, 0) + 1

    def _kept(self, probabilities: Tensor) -> Tensor:
        """What of a layer's probabilities (b, pixels, tokens) is kept, as (b, ..., pixels)."""
        return self._of_words(probabilities)

    def _of_words(self, probabilities: Tensor) -> Tensor:
        """The columns of the words, (b, words, pixels), of probabilities (b, pixels, tokens)."""
        if self.columns.device != probabilities.device:
            self.columns = to_device(self.columns, probabilities.device)
        return gather_columns(probabilities, self.columns)

    def check(self) -> None:
        """Raise the ValueError of `maps`."""
        if not self.sums:
            raise ValueError(
                f"no cross-attention layer has maps of {sorted(self.resolutions)} pixels on the "
                f"longer side; those of this network at this latent size (height, width) are "
                f"{sorted(self.passed)}: choose among them (mask_resolution, or --resolution)"
            )

    def maps(self, *, equal_peaks: bool = True) -> Tensor:
        """The mean maps (b, words, h, w), at the largest recorded size (see `mean_over_sizes`).

        Without `equal_peaks` they are probabilities: over all tokens of a caption they sum to one.

        Raises:
            ValueError: when no cross-attention layer has one of the wanted sizes; names those that
                there are.
        """
        self.check()
        means = [self.sums[grid] / self.counts[grid] for grid in self.sums]
        return mean_over_sizes(means, equal_peaks=equal_peaks)


def _wanted(tokens: Any, words: Sequence[str] | None, adjectives: bool) -> list[str]:
    """The names to record: `words`, else all learnable ones (all names of plain positions)."""
    rows = getattr(tokens, "learnable", tokens)
    wanted = list(words or dict.fromkeys(word for row in rows for word in row))
    return wanted + [adjective_of(word) for word in wanted] if adjectives else wanted
