"""PromptCL: views of one concept attract, views of different concepts repel (MCPL eqs. 3-6).

A view of a concept is the text encoder's output at the concept's word in one caption of the batch.
The vectors that are learned are the same in the whole batch, so they have nothing to contrast.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.concepts.objective import TermValue, TrainStep
from ldm.concepts.processes import everyones_rows
from ldm.concepts.recorder import (
    Positions,
    adjective_of,
    concept_words,
    named_positions,
    to_device,
)
from ldm.prompts.sentence import as_words


class Views(NamedTuple):
    """Every view of a batch: the vectors (v, d), and of which concept and run each is, (v,)."""

    vectors: Tensor
    concept: Tensor
    run: Tensor


class PromptContrast:
    """InfoNCE over the views of the learned concepts, within each run.

    Args:
        temperature: tau.
        weight: gamma of eq. 7.
        words: the concepts, as they are spelt in the captions. By default the marked words (see
            `concept_words`).
        bind_adjectives: the output at the adjective bound to a word is a further view of the word's
            concept (Bind adj., eq. 6).

    Raises:
        ValueError: for a temperature that is not positive.
    """

    name = "contrast"

    def __init__(
        self,
        temperature: float = 0.2,
        weight: float = 0.0005,
        words: str | Sequence[str] | None = None,
        bind_adjectives: bool = True,
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"contrast temperature {temperature}: give a positive number")
        self.temperature, self.weight = temperature, weight
        self.words, self.bind_adjectives = as_words(words), bind_adjectives

    def __call__(self, step: TrainStep) -> TermValue:
        """The contrast of every run; 0 for a run in which no concept has two views.

        Raises:
            ValueError: when the step has no captions with word positions.
        """
        return TermValue(info_nce(self.views(step), self.temperature, step.runs), {})

    def read(self, step: TrainStep) -> tuple[Tensor, Positions, Sequence[str]]:
        """The text outputs (b, n, d), where all words stand in them, and which are concepts."""
        if step.tokens is None or step.context is None:
            raise ValueError(
                "PromptCL needs captions with learnable words and a text context; this step has "
                "none: train with an embedding manager"
            )
        positions = named_positions(step.tokens, step.captions, self.words)
        learnable = dict.fromkeys(word for row in step.tokens.learnable for word in row)
        return step.context, positions, self.words or concept_words(learnable, step.embeddings)

    def views(self, step: TrainStep) -> Views:
        """The mean output over the tokens of each word, and of each adjective, in each caption.

        Those of all processes that share the batch.
        """
        context, positions, concepts = self.read(step)
        # The same number for a word in every process, whatever captions it has.
        known = list(dict.fromkeys([*getattr(step.embeddings, "words", ()), *concepts]))
        runs = [0] * len(positions) if step.run is None else step.run.tolist()
        found: list[tuple[int, int, int]] = []
        places: list[list[int]] = []
        for image, row in enumerate(positions):
            for word in concepts:
                for name in (word, adjective_of(word))[: 1 + self.bind_adjectives]:
                    if name in row:
                        found.append((image, known.index(word), runs[image]))
                        places.append(row[name])
        views = _gather(context, found, places)
        return Views(*(everyones_rows(each)[0] for each in views))


def _gather(context: Tensor, found: list[tuple[int, int, int]], places: list[list[int]]) -> Views:
    """The views whose (image, concept, run) is `found`, averaged over their token `places`."""
    longest = max(map(len, places), default=1)
    padded = [[*place, *[-1] * (longest - len(place))] for place in places]
    columns = to_device(torch.tensor(padded, dtype=torch.long), context.device)
    columns = columns.reshape(-1, longest)
    image, concept, run = to_device(
        torch.tensor(found, dtype=torch.long).reshape(-1, 3), context.device
    ).unbind(1)
    outputs = context.float()[image[:, None], columns.clamp(min=0)]
    present = (columns >= 0)[..., None]
    vectors = (outputs * present).sum(1) / present.sum(1).clamp(min=1)
    return Views(vectors, concept, run)


def info_nce(views: Views, temperature: float, runs: int = 1) -> Tensor:
    """Eq. 5 for each of `runs` runs, (runs,): the mean of l_i over anchors that have a positive.

    ``l_i = mean over positives j of -log(exp(s_ij / tau) / sum over m != i of exp(s_im / tau))``
    (eq. 4) with s the cosine similarity. Positives of i are all other views of its concept. A view
    without any is a negative only.
    """
    with torch.autocast(views.vectors.device.type, enabled=False):
        v = F.normalize(views.vectors, dim=-1)
        scores = v @ v.T / temperature
    other = ~torch.eye(len(v), dtype=torch.bool, device=v.device)
    seen = other & (views.run[:, None] == views.run)
    positive = seen & (views.concept[:, None] == views.concept)
    # The lowest finite number: a view that is alone in its run then has a finite, unused value.
    lowest = torch.finfo(scores.dtype).min
    log_sum = scores.masked_fill(~seen, lowest).logsumexp(1) if len(v) else scores.sum(1)
    count = positive.sum(1)
    attraction = scores.masked_fill(~positive, 0).sum(1) / count.clamp(min=1)
    is_anchor = count > 0
    loss = (log_sum - attraction).masked_fill(~is_anchor, 0)
    member = (torch.arange(runs, device=v.device)[:, None] == views.run) & is_anchor
    return (member * loss).sum(1) / member.sum(1).clamp(min=1)
