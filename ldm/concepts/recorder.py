"""Read the cross-attention of chosen words while the network runs.

The maps of MCPL sec. 3.4 need a few columns of the attention matrix at one or two resolutions. They are computed beside the fused
kernel and without gradient, so that recording changes neither the numbers nor, noticeably, the time of a step.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.modules.attention import AttentionSite
from ldm.modules.attention_control import AttentionController


def word_columns(positions: Sequence[dict[str, list[int]]], words: Sequence[str]) -> Tensor:
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
    present = (columns >= 0).to(probabilities)
    index = columns.clamp(min=0).flatten(1)[:, None].expand(-1, probabilities.shape[1], -1)
    picked = probabilities.gather(2, index).unflatten(2, columns.shape[1:])
    total = (picked * present[:, None]).sum(-1)
    return (total / present.sum(-1).clamp(min=1)[:, None]).transpose(1, 2)


class WordAttention(AttentionController):
    """Mean cross-attention map of every word, over heads and over all layers of the given sizes.

    Args:
        tokens: the tokenised captions (with ``learnable`` and ``bound`` positions), or plain positions per caption.
        resolutions: map sizes, as the longer side in pixels of the feature grid. Layers are chosen by size, never by index.
        words: which words; by default all learnable words of the captions.
        bound: read the adjectives bound to the words instead of the words themselves.
    """

    rewrites = False

    def __init__(
        self,
        tokens: Any,
        resolutions: Collection[int],
        words: Sequence[str] | None = None,
        *,
        bound: bool = False,
    ) -> None:
        positions = tokens
        if hasattr(tokens, "learnable"):
            positions = tokens.bound if bound else tokens.learnable
        self.words = list(words or dict.fromkeys(word for row in positions for word in row))
        self.columns = word_columns(positions, self.words)
        self.resolutions = frozenset(resolutions)
        self.conditional = slice(None)
        self.clear()

    def clear(self) -> None:
        """Forget what was recorded."""
        self.sums: dict[tuple[int, int], Tensor] = {}
        self.counts: dict[tuple[int, int], int] = {}

    @property
    def present(self) -> Tensor:
        """Which caption contains which word: bool (b, words)."""
        return (self.columns >= 0).any(-1)

    def wants(self, site: AttentionSite) -> bool:
        """Only cross-attention."""
        return site.is_cross

    def begin_step(self, index: int, conditional: slice) -> None:
        """Under guidance, read the conditional part of the batch."""
        self.conditional = conditional

    @torch.no_grad()
    def observe(
        self, q: Tensor, k: Tensor, scale: float, site: AttentionSite, grid: tuple[int, int] | None
    ) -> None:
        """Add one layer's maps; q (b, heads, pixels, d), k (b, heads, tokens, d)."""
        if grid is None or max(grid) not in self.resolutions:
            return
        q, k = q[self.conditional].float(), k[self.conditional].float()
        probabilities = torch.softmax(q @ k.transpose(-1, -2) * scale, dim=-1).mean(1)
        columns = self.columns.to(probabilities.device)
        maps = gather_columns(probabilities, columns).unflatten(2, grid)
        self.sums[grid] = self.sums[grid] + maps if grid in self.sums else maps
        self.counts[grid] = self.counts.get(grid, 0) + 1

    def maps(self) -> Tensor:
        """The mean maps (b, words, h, w), at the largest recorded size.

        Sizes count equally: each is averaged over its layers first, then smaller ones are enlarged.

        Raises:
            ValueError: when no cross-attention layer has one of the wanted sizes.
        """
        if not self.sums:
            raise ValueError(
                f"no cross-attention layer has maps of {sorted(self.resolutions)} pixels a side; "
                "choose mask_resolution among the sizes of the network's attention layers"
            )
        size = max(self.sums, key=lambda grid: grid[0] * grid[1])
        means = [self.sums[grid] / self.counts[grid] for grid in self.sums]
        enlarged = [
            m if m.shape[-2:] == size else F.interpolate(m, size, mode="bilinear") for m in means
        ]
        return torch.stack(enlarged).mean(0)
