"""Keep the source picture wherever the edited words do not look (prompt-to-prompt's local blend).

The mask comes from attention alone: with learned words nobody has to draw one.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.concepts.recorder import gather_columns, mean_over_sizes, to_device, word_columns
from ldm.models.diffusion.sampling import Step
from ldm.modules.attention import Grid


class WordWatch:
    """Where the chosen tokens of each row look, on average over steps, layers and heads.

    Args:
        positions: for each row of the batch its token positions.
        resolutions: sizes of the maps that are averaged, as their longer side.
    """

    def __init__(self, positions: Sequence[Sequence[int]], resolutions: Collection[int]) -> None:
        self.columns = word_columns([{"": list(row)} for row in positions], [""])
        self.resolutions = frozenset(resolutions)
        self.sums: dict[Grid, Tensor] = {}
        self.counts: dict[Grid, int] = {}
        self.passed: set[Grid] = set()

    def add(self, probs: Tensor, grid: Grid | None) -> None:
        """Add one layer's probabilities (rows, heads, pixels, tokens)."""
        if grid is None or max(grid) not in self.resolutions:
            self.passed.update(() if grid is None else (grid,))
            return
        if self.columns.device != probs.device:
            self.columns = to_device(self.columns, probs.device)
        maps = gather_columns(probs.mean(1), self.columns).unflatten(2, grid)
        self.sums[grid] = self.sums[grid] + maps if grid in self.sums else maps
        self.counts[grid] = self.counts.get(grid, 0) + 1

    def maps(self) -> Tensor:
        """The mean maps (rows, 1, h, w) at the largest size (see `mean_over_sizes`).

        Raises:
            ValueError: when the network has no maps of the wanted sizes.
        """
        if not self.sums:
            raise ValueError(
                f"no cross-attention layer has maps of {sorted(self.resolutions)} pixels on the "
                f"longer side; this network has (height, width) {sorted(self.passed)} here: choose "
                "resolutions among them"
            )
        return mean_over_sizes([self.sums[grid] / self.counts[grid] for grid in self.sums])


def blend_mask(maps: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Where a pair may change: bool (pairs, 1, height, width) at `size`.

    `maps` (2 pairs, 1, h, w) are those of the sources and then of the edited rows. Each is divided
    by its own maximum and compared with `threshold`; what either of a pair shows may change.
    """
    maps = F.interpolate(maps, size)
    largest = maps.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
    source, edited = (maps / largest > threshold).chunk(2)
    return source | edited


class LocalBlend:
    """After each step, the latent of the source wherever the words of neither prompt look.

    Given to a sampler as its `revise`. The `mask` of the last step stays to be looked at.
    """

    def __init__(self, watch: WordWatch, threshold: float = 0.3, first_step: int = 0) -> None:
        self.watch, self.threshold, self.first_step = watch, threshold, first_step
        self.mask: Tensor | None = None

    def __call__(self, step: Step) -> Tensor:
        """The latents (2 pairs, c, h, w) of `step` with the edited ones restricted to the mask."""
        if step.index < self.first_step:
            return step.x
        source, edited = step.x.chunk(2)
        size = (step.x.shape[-2], step.x.shape[-1])
        self.mask = blend_mask(self.watch.maps(), size, self.threshold)
        return torch.cat([source, torch.where(self.mask, edited, source)])
