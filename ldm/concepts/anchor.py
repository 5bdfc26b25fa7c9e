"""Keep learned vectors near where they started (textual inversion's optional regularisation)."""

from ldm.concepts.objective import TermValue, TrainStep


class EmbeddingAnchor:
    """Mean over words of ``(v - v0)(v - v0)^T``, all entries of the k x k matrix averaged."""

    name = "emb_reg"

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, step: TrainStep) -> TermValue:
        """The penalty; it depends on the embeddings alone."""
        penalty = step.embeddings.embedding_to_coarse_loss().mean()
        return TermValue(penalty.reshape(1), {})
