"""Lego: adjectives and verbs as words, apart from the subject that shows them.

A preset: which terms the objective has (sec. 4.4, 4.5). Subject separation (sec. 4.3) is a matter
of the pictures and their sentences (``ldm/data/subjects.py``), so nothing here knows of it: a word
receives the diffusion gradient of the captions that contain it, and no other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ldm.concepts.context_loss import ContextLoss
from ldm.concepts.objective import LossTerm
from ldm.concepts.steering import Steering
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.prompts.sentence import LearnableWord


class Lego(LatentDiffusion):
    """`LatentDiffusion` that learns words with the context loss; ReVersion by other options.

    Args:
        context: parameters of `ContextLoss` (eq. 2), or ``None``.
        steering: parameters of `Steering` (ReVersion's loss), or ``None``.
    """

    def __init__(
        self,
        *args: Any,
        context: Mapping[str, Any] | None = None,
        steering: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.context_loss = None if context is None else ContextLoss(**context)
        self.steering = None if steering is None else Steering(**steering)

    def learn(self, words: Sequence[LearnableWord], **options: Any) -> None:
        """Make `words` learnable, and look up what the concept words among them are steered by."""
        super().learn(words, **options)
        if self.steering is not None:
            self.steering.seed = self.seed
        for term in self._guides():
            term.look_up(self.cond_stage_model, words)

    def _guides(self) -> list[ContextLoss]:
        """The terms that steer concept words and have a weight."""
        terms = (self.context_loss, self.steering)
        return [term for term in terms if term is not None and term.weight]

    def terms(self) -> list[LossTerm]:
        """The paper's objective (eq. 3): diffusion loss plus weighted context loss."""
        return [*super().terms(), *self._guides()]
