"""The context loss: each concept vector towards its synonyms, away from antonyms (Lego eq. 2).

It looks at the learned vectors themselves, not at what the text encoder makes of them, so it costs
next to nothing, and no gradient of it can reach a word that is not steered.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.concepts.objective import TermValue, TrainStep
from ldm.concepts.word_lists import WordList, word_lists
from ldm.prompts.sentence import CONCEPT, LearnableWord

logger = logging.getLogger(__name__)

SIMILARITIES = ("dot", "cosine")


def context_loss(
    cpt: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    similarity: str = "dot",
    temperature: float = 1.0,
) -> Tensor:
    """``-log(sum_k e^(cpt.P_k) / (sum_k e^(cpt.P_k) + sum_k e^(cpt.N_k)))`` of each vector (eq. 2).

    In the logarithm, ``log(1 + e^(log sum e^(cpt.N) - log sum e^(cpt.P)))``, which cannot overflow.

    Args:
        cpt: the vectors of a concept word, (..., k, d).
        positives: P, (..., p, d).
        negatives: N, (..., n, d).
        similarity: ``dot`` as printed, or ``cosine``.
        temperature: what similarities are divided by; 1 as printed.

    Returns:
        (..., k)
    """
    with torch.autocast(cpt.device.type, enabled=False):
        if similarity == "cosine":
            cpt, positives, negatives = (
                F.normalize(each, dim=-1) for each in (cpt, positives, negatives)
            )
        attraction = (cpt @ positives.mT / temperature).logsumexp(-1)
        repulsion = (cpt @ negatives.mT / temperature).logsumexp(-1)
    return F.softplus(repulsion - attraction)


@torch.no_grad()
def word_embeddings(encoder: Any, words: Iterable[str]) -> Tensor:
    """The frozen token embeddings (n, d) of `words`; of a word of several tokens, their mean.

    Raises:
        ValueError: when the vocabulary of the text encoder does not have a word.
    """
    tokenizer, table = encoder.require_tokenizer(), encoder.token_embedding.weight.detach()
    rows = []
    for word in words:
        ids = tokenizer.token_ids(word)
        if not ids or tokenizer.unknown(word):
            raise ValueError(
                f"the vocabulary of the text encoder does not have {word!r}: take it off the lists "
                "of the context loss, or spell it otherwise"
            )
        rows.append(table[torch.tensor(ids, device=table.device)].mean(0))
    return torch.stack(rows)


class ContextLoss:
    """Eq. 2 over all concept words: the sum over words, and over the vectors of a word.

    Args:
        weight: lambda of eq. 3, which the paper does not give.
        words: concept word, as spelt in the sentence -> its lists (``{positives: [...], negatives:
            [...]}``) or the name of a list. By default every concept word (role "concept": the
            marked words that only pictures of the concept show) with the list of its own name.
        lists: where lists are looked up by name: a packaged collection or a YAML file.
        similarity: ``dot`` as printed, or ``cosine``.
        temperature: what similarities are divided by.

    Raises:
        ValueError: for an unknown similarity or a temperature that is not positive.
    """

    name = "context"

    def __init__(
        self,
        weight: float = 0.01,
        words: Mapping[str, Any] | None = None,
        *,
        lists: str = "english",
        similarity: str = "dot",
        temperature: float = 1.0,
    ) -> None:
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity {similarity!r} is unknown; accepted are {SIMILARITIES}")
        if temperature <= 0:
            raise ValueError(f"{self.name} temperature {temperature}: give a positive number")
        self.weight, self.words, self.lists = weight, dict(words or {}), lists
        self.similarity, self.temperature = similarity, temperature
        #: P and N of each steered word.
        self.neighbours: dict[str, tuple[Tensor, Tensor]] = {}

    def look_up(self, encoder: Any, words: Sequence[LearnableWord]) -> None:
        """Decide which of the learned `words` are steered, and read P and N from `encoder`, once.

        Raises:
            ValueError: when there is no concept word, or no list for one.
        """
        self.neighbours = {
            name: (
                word_embeddings(encoder, found.positives),
                word_embeddings(encoder, found.negatives),
            )
            for name, found in self._chosen(words).items()
        }
        free = [word.name for word in words if word.name not in self.neighbours]
        logger.info("%s loss steers %s, not %s", self.name, list(self.neighbours), free)

    def _chosen(self, words: Sequence[LearnableWord]) -> dict[str, WordList]:
        """The lists of each word to steer."""
        known = [word.name for word in words]
        absent = sorted(set(self.words) - set(known))
        if absent:
            raise ValueError(f"{self.name}.words has {absent}; the learned words are {known}")
        given = self.words or {w.name: w.name.strip("<>") for w in words if w.role == CONCEPT}
        if not given:
            raise ValueError(
                f"none of the words {known} is a concept word for the {self.name} loss: name them "
                f"in {self.name}.words, or say which pictures show the concept (folders concept/ "
                "and subject/, or 'kind' in metadata.jsonl) and give both kinds their own sentence"
            )
        return {name: self._list(name, each) for name, each in given.items()}

    def _list(self, word: str, given: Any) -> WordList:
        """The lists of one word: as given, or by their name."""
        if not isinstance(given, str):
            return WordList.of(given)
        known = word_lists(self.lists)
        if given not in known:
            near = get_close_matches(given, known, n=3) or list(known)
            raise ValueError(
                f"the word lists {self.lists!r} have none for {word} called {given!r} (they have "
                f"{', '.join(near)}, ...): give {self.name}.words.{word} a name of a list or "
                "{positives: [...], negatives: [...]}, or set "
                f"{self.name}.lists to a file of your own"
            )
        return known[given]

    def __call__(self, step: TrainStep) -> TermValue:
        """The loss of each run; logs how much of the softmax falls on the positives.

        Vectors with an axis of packed runs in front, (runs, k, d), give a value for each run.

        Raises:
            ValueError: when there are no learned words, or not those that are steered.
        """
        held = getattr(step.embeddings, "string_to_param_dict", {})
        missing = [word for word in self.neighbours if word not in held]
        if missing or not self.neighbours:
            raise ValueError(
                f"the {self.name} loss steers {list(self.neighbours)}, the learned words are "
                f"{list(held)}: call learn() with the words to learn"
            )
        losses = [
            self._loss(held[word], step, number) for number, word in enumerate(self.neighbours)
        ]
        share = torch.cat([loss.detach().flatten() for loss in losses]).neg().exp().mean()
        total = torch.stack([loss.sum(-1) for loss in losses]).sum(0)
        return TermValue(total.reshape(-1), {f"{self.name}_share": share})

    def _loss(self, vectors: Tensor, step: TrainStep, number: int) -> Tensor:
        """The loss of every vector of the steered word `number`."""
        word = list(self.neighbours)[number]
        positives, negatives = self.neighbours[word]
        if positives.device != vectors.device:
            positives, negatives = positives.to(vectors.device), negatives.to(vectors.device)
            self.neighbours[word] = positives, negatives
        return context_loss(
            vectors,
            self.choose(positives, step, number),
            negatives,
            similarity=self.similarity,
            temperature=self.temperature,
        )

    def choose(self, positives: Tensor, step: TrainStep, number: int) -> Tensor:
        """Which positives of the steered word `number` take part in this step: all of them."""
        return positives
