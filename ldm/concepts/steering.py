"""ReVersion, the baseline Lego compares with: relation steering.

The relation word is drawn towards prepositions and away from other words, by the formula of the
context loss with unit vectors and a small temperature, a few random prepositions a step. The
method's other half, noisy timesteps more often, is the `timestep_skew` of any model.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.concepts.context_loss import ContextLoss
from ldm.concepts.objective import TrainStep
from ldm.util import step_generator

#: Streams of `step_generator` from this number on; datasets and noise have those below.
STEERING_STREAM = 1 << 21


class Steering(ContextLoss):
    """The relation steering loss.

    Args:
        weight, words, lists: see `ContextLoss`; the packaged list is called ``relation``.
        temperature, similarity: 0.07 and unit vectors, as published.
        positives_per_step: how many positives each step draws; ``None`` for all of them.
        seed: of those draws, which are a function of (seed, run, step) alone.

    Raises:
        ValueError: for a number of positives below one.
    """

    name = "steering"

    def __init__(
        self,
        weight: float = 0.01,
        words: Mapping[str, Any] | None = None,
        *,
        lists: str = "english",
        similarity: str = "cosine",
        temperature: float = 0.07,
        positives_per_step: int | None = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(weight, words, lists=lists, similarity=similarity, temperature=temperature)
        if positives_per_step is not None and positives_per_step < 1:
            raise ValueError(f"positives_per_step {positives_per_step}: give 1 or more, or null")
        self.positives_per_step, self.seed = positives_per_step, seed

    def choose(self, positives: Tensor, step: TrainStep, number: int) -> Tensor:
        """The positives of this step, (p, d), or (runs, p, d) in a packed batch."""
        size = len(positives)
        count = size if self.positives_per_step is None else self.positives_per_step
        if count >= size:
            return positives
        sources = self._sources(step, number)
        rows = [torch.randperm(size, generator=source)[:count] for source in sources]
        index = torch.stack(rows) if step.runs > 1 else rows[0]
        return positives[index.to(positives.device, non_blocking=True)]

    def _sources(self, step: TrainStep, number: int) -> list[torch.Generator | None]:
        """For each run what it draws from; torch's global generator if the batch has no step."""
        if step.run is None or "step" not in step.extras:
            return [None] * step.runs
        numbers = dict(zip(step.run.tolist(), step.extras["step"].tolist(), strict=True))
        return [
            step_generator(self.seed, run, at, STEERING_STREAM + number)
            for run, at in sorted(numbers.items())
        ]
