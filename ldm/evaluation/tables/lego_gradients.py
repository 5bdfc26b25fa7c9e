"""How large lambda should be (Lego eq. 3 does not say): the gradients of the two terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.checkpoint import read_embeddings
from ldm.concepts.context_loss import ContextLoss, context_loss
from ldm.data.module import figures_on
from ldm.data.playroom.concept_dataset import PlayroomConcepts
from ldm.data.steps import StepKey, collate
from ldm.evaluation.tables.grid import Row, Run
from ldm.evaluation.tables.lego import LegoFamily

#: Pictures of a step.
BATCH = 4


@dataclass(frozen=True)
class Pulls:
    """How strongly the two terms pull at one word: lengths of gradients.

    `step` is that of the diffusion loss in a step (root mean square), `drift` that of its mean over
    steps, `context` that of the context loss with a weight of 1.
    """

    step: float
    drift: float
    context: float

    @property
    def balance(self) -> float:
        """The weight with which the context loss pulls as strongly as the diffusion loss drifts."""
        return self.drift / self.context


def pulls(model: Any, dataset: Any, term: ContextLoss, steps: int = 16) -> dict[str, Pulls]:
    """The pulls at each concept word of `dataset`, as it starts, over the first `steps` steps.

    `model` is a frozen one with the diffusion loss alone; it is left with the words of `dataset`.
    """
    model.learn(dataset.words)
    term.look_up(model.cond_stage_model, dataset.words)
    held = model.embedding_manager.string_to_param_dict
    found: dict[str, list[torch.Tensor]] = {word: [] for word in term.neighbours}
    for step in range(steps):
        batch = collate([dataset[StepKey(step, slot)] for slot in range(BATCH)])
        loss = model.shared_step(figures_on(batch, model.device))[0]
        gradients = torch.autograd.grad(loss, [held[word] for word in found])
        for word, gradient in zip(found, gradients, strict=True):
            found[word].append(gradient.flatten())
    return {
        word: Pulls(
            float(torch.stack(each).square().sum(1).mean().sqrt()),
            float(torch.stack(each).mean(0).norm()),
            float(_context_gradient(term, word, held[word]).norm()),
        )
        for word, each in found.items()
    }


def _context_gradient(term: ContextLoss, word: str, vectors: torch.Tensor) -> torch.Tensor:
    near, far = term.neighbours[word]
    loss = context_loss(
        vectors, near, far, similarity=term.similarity, temperature=term.temperature
    ).sum()
    (gradient,) = torch.autograd.grad(loss, vectors)
    return gradient


class LambdaFamily(LegoFamily):
    """Lego with different weights, forms and temperatures of the context loss.

    Option `similarities`: name -> parameters of `ContextLoss`; `looks` is the number of steps that
    gradients are taken of. Measures beyond those of `LegoFamily`: of words as they start, ``step``,
    ``drift``, ``context_<name>`` and ``balance_<name>`` (see `Pulls`; means over concept words, in
    thousandths); of learned ones, ``share``, how much of eq. 2's fraction falls on the positives
    (raw products), and ``norm``, their length.
    """

    def measure(self, runs: Sequence[Run], words: Sequence[Path | None]) -> list[Row]:
        """What the pictures show, and how the words lie to their synonyms and antonyms."""
        rows = super().measure(runs, words)
        for row, run, file in zip(rows, runs, words, strict=True):
            found = self._pulled(run) if file is None else self._placed(run, file)
            row["values"].update(found)
        return rows

    def _pulled(self, run: Run) -> dict[str, float]:
        """Mean pulls at the concept words of a set as they start."""
        values: dict[str, float] = {}
        plain = self.model.twin()
        plain.context_loss = plain.steering = None
        with torch.enable_grad():
            for name, options in self.options["similarities"].items():
                term = ContextLoss(**options)
                found = pulls(plain, self._pictures(run), term, self.options["looks"]).values()
                values["step"] = _mean([each.step for each in found])
                values["drift"] = _mean([each.drift for each in found])
                values[f"context_{name}"] = _mean([each.context for each in found])
                values[f"balance_{name}"] = _mean([each.balance for each in found])
        return values

    def _pictures(self, run: Run) -> PlayroomConcepts:
        size = self.options.get("size", 64)
        folder = self.folder / f"{run.set}-{size}-{run.seed}"
        return PlayroomConcepts(run.set, size, seed=run.seed, folder=folder)

    @torch.no_grad()
    def _placed(self, run: Run, file: Path) -> dict[str, float]:
        """Where the learned concept words of a run have come to lie."""
        term = ContextLoss(lists="playroom")
        term.look_up(self.model.cond_stage_model, self._pictures(run).words)
        held = read_embeddings(file).vectors
        vectors = {word: held[word].float().to(self.model.device) for word in term.neighbours}
        losses = [context_loss(vectors[word], *near) for word, near in term.neighbours.items()]
        norms = [each.norm(dim=-1) for each in vectors.values()]
        return {"share": float(torch.cat(losses).neg().exp().mean()),
                "norm": float(torch.cat(norms).mean())}  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return 1000 * float(np.mean(values))
