"""Prompt-to-prompt (Hertz et al. 2022): draw a changed prompt with the attention of the source.

The batch holds pairs: first all source rows, then, in the same order, the edited ones. While the
network runs, :class:`PromptToPrompt` gives the edited rows the attention of their source, moved
from word to word by an *edit*: a function of the maps (pairs, heads, pixels, tokens) of both.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.editing.blend import WordWatch
from ldm.modules.attention import AttentionController, AttentionSite, Grid

#: (source maps, target's own maps) -> the maps that the target is drawn with.
CrossEdit = Callable[[Tensor, Tensor], Tensor]


#: Self-attention is taken over among so many pixels: the 16x16 of Stable Diffusion at 512 pixels.
SELF_PIXELS = 256


@dataclass(frozen=True)
class Moved:
    """The source's attention, moved to the tokens of the target (sec. 4, word swap and refinement).

    `mapper` (pairs, source tokens, target tokens) says where it goes; a target token of which
    `kept` (pairs, 1, 1, tokens) is 0 instead of 1 has no counterpart and stays with its own.
    """

    mapper: Tensor
    kept: Tensor

    def __call__(self, source: Tensor, target: Tensor) -> Tensor:
        """See `CrossEdit`."""
        mapper, kept = self.mapper.to(source), self.kept.to(source)
        # In full precision: moving attention must not round it.
        with torch.autocast(source.device.type, enabled=False):
            moved = source @ mapper[:, None]
        return moved * kept + target * (1 - kept)


@dataclass(frozen=True)
class Reweighted:
    """Attention to each token times a factor (sec. 4, re-weighting), not normalised again.

    `factors` are (pairs, 1, 1, tokens). What is multiplied is the source's attention or, with
    `after`, what another edit makes of it.
    """

    factors: Tensor
    after: CrossEdit | None = None

    def __call__(self, source: Tensor, target: Tensor) -> Tensor:
        """See `CrossEdit`."""
        base = source if self.after is None else self.after(source, target)
        return base * self.factors.to(base)


class PromptToPrompt(AttentionController):
    """Gives edited rows the attention of their source while the windows are open.

    Args:
        cross: what cross-attention of edited rows becomes.
        windows: (steps + 1, pairs, 1, 1, tokens), 1 where a token takes part in a step; elsewhere
            the target keeps its own attention (see `ldm.editing.align.replacement_windows`).
        self_steps: the steps, from and before, in which self-attention is that of the source.
        self_pixels: self-attention among more pixels than that is left alone: it would fix the
            picture to the pixel.
        watch: notes where chosen words look, for a local blend.
    """

    rewrites = True

    def __init__(
        self,
        cross: CrossEdit,
        windows: Tensor,
        self_steps: tuple[int, int] = (0, 0),
        *,
        self_pixels: int = SELF_PIXELS,
        watch: WordWatch | None = None,
    ) -> None:
        self.cross, self.windows, self.self_steps = cross, windows, self_steps
        self.self_pixels, self.watch = self_pixels, watch
        self._open = windows.flatten(1).any(1).tolist()
        self.begin_step(0, slice(None))

    def begin_step(self, index: int, conditional: slice) -> None:
        """Be at step `index`; only the conditional rows of the batch are edited."""
        self.index, self.conditional = index, conditional

    def wants(self, site: AttentionSite | None, pixels: int | None = None) -> bool:
        """Whether anything is edited, or watched, at `site` in this step.

        Self-attention that is left alone is not asked for: its probabilities would fill a GPU.
        """
        if site is None or site.is_cross:
            return self.watch is not None or self._open[self.index]
        first, behind = self.self_steps
        small = pixels is None or pixels <= self.self_pixels
        return small and first <= self.index < behind

    def __call__(self, probs: Tensor, site: AttentionSite | None, grid: Grid | None) -> Tensor:
        """`probs` (b, heads, pixels, tokens) with those of the edited rows rewritten."""
        start, stop, _ = self.conditional.indices(len(probs))
        middle = (start + stop) // 2
        source, target = probs[start:middle], probs[middle:stop]
        if site is None or site.is_cross:
            edited = self._cross(source, target)
            if self.watch is not None:
                self.watch.add(torch.cat([source, edited]), grid)
        else:
            edited = source
        return torch.cat([probs[:middle], edited, probs[stop:]])

    def _cross(self, source: Tensor, target: Tensor) -> Tensor:
        if not self._open[self.index]:
            return target
        taken = self.windows[self.index].to(target)
        return self.cross(source, target) * taken + target * (1 - taken)
