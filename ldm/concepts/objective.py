"""The objective of concept learning: one training step as seen by a list of loss terms.

MCPL (eq. 7) and Lego (eq. 3) are sums of terms over the same step. A term is a small object in a
file of its own; a method is a list of terms. Several independent runs may share a batch ("packed"):
a term averages within a run and the objective sums over runs, so that every run receives exactly
the gradient it would receive alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from ldm.modules.diffusionmodules.schedule import NoiseSchedule


@dataclass(frozen=True)
class TrainStep:
    """Everything a loss term may look at, named once.

    Shapes: b images in the batch, latents (b, c, h, w), text context (b, n, d). `tokens` says where
    the learnable words and their bound adjectives stand in each caption; `attention` holds the
    recorded maps of those words, when a term asked for them.
    """

    prediction: Tensor
    target: Tensor
    t: Tensor
    schedule: NoiseSchedule
    context: Tensor | None = None
    captions: Sequence[Any] = ()
    tokens: Any | None = None
    attention: Any | None = None
    embeddings: Any = None
    image_id: Tensor | None = None
    flip: Tensor | None = None
    run: Tensor | None = None
    runs: int = 1
    extras: dict[str, Tensor] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """How many images the batch holds, over all runs."""
        return self.t.shape[0]

    def per_run(self, values: Tensor, weights: Tensor | None = None) -> Tensor:
        """The mean of per-image `values` (b,) within each run: (runs,).

        With `weights` (b,), images of weight zero do not count; a run in which none counts gives
        zero.
        """
        weights = torch.ones_like(values) if weights is None else weights.to(values)
        if self.runs == 1:
            return ((values * weights).sum() / weights.sum().clamp(min=1e-12)).reshape(1)
        run = cast(Tensor, self.run).to(values.device, non_blocking=True)
        zeros = values.new_zeros(self.runs)
        total = zeros.index_add(0, run, values * weights)
        return total / zeros.index_add(0, run, weights).clamp(min=1e-12)


class TermValue(NamedTuple):
    """What a term says of a step: its loss per run (runs,), and figures worth logging."""

    loss: Tensor
    logs: dict[str, Tensor]


@runtime_checkable
class LossTerm(Protocol):
    """One addend of the objective. A term with weight 0 is never called."""

    name: str
    weight: float

    def __call__(self, step: TrainStep) -> TermValue:
        """The loss of this step, one value per run."""
        ...


class Objective:
    """A list of terms, added up by their weights."""

    def __init__(self, terms: Sequence[LossTerm]) -> None:
        self.terms = [term for term in terms if term.weight != 0]
        names = [term.name for term in self.terms]
        if len(set(names)) != len(names):
            raise ValueError(f"two terms of one objective share a name: {names}")

    @property
    def attention_words(self) -> bool:
        """Whether a term reads attention maps of the words."""
        return any(getattr(term, "reads_attention", False) for term in self.terms)

    def __call__(self, step: TrainStep) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and every term's own value (means over runs, detached)."""
        total, logs = None, {}
        for term in self.terms:
            value = term(step)
            weighted = term.weight * value.loss.sum()
            total = weighted if total is None else total + weighted
            logs[f"loss_{term.name}"] = value.loss.detach().mean()
            logs.update({key: figure.detach() for key, figure in value.logs.items()})
        if total is None:
            raise ValueError("an objective needs at least one term with a weight other than 0")
        logs["loss"] = total.detach() / step.runs
        return total, logs
