"""The words of a run: taken from its data, given to the model, shown before training."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm.prompts.sentence import LearnableWord, Sentence

logger = logging.getLogger(__name__)


def learn_words(model: Any, data: Any, config: DictConfig) -> list[LearnableWord] | None:
    """Make the words of the data's sentences learnable, and show them.

    ``None`` for data that is not for learning words.
    """
    dataset = data.datasets["train"]
    if not hasattr(dataset, "words"):
        return None
    words, counts = dataset.words, dataset.sentences
    vectors = OmegaConf.select(
        config, "model.params.personalization_config.params.num_vectors_per_token", default=1
    )
    words = [replace(word, vectors=max(word.vectors, vectors)) for word in words]
    model.learn(words)
    earlier = OmegaConf.select(config, "concept.embeddings")
    if earlier:
        model.embedding_manager.load(earlier)
    if getattr(dataset, "cacheable", False):
        model.cache_posteriors()
    show(words, counts)
    return words


def show(words: Sequence[LearnableWord], counts: Mapping[Sentence, int]) -> None:
    """Print the table of words: what each starts from, and how many images show it."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Words to learn", title_justify="left")
    for heading in ("word", "starts from", "vectors", "bound adjective", "images"):
        table.add_column(heading)
    for word in words:
        images = sum(n for sentence, n in counts.items() if word.name in sentence.caption.names())
        table.add_row(word.name, word.start, str(word.vectors), word.adjective or "-", str(images))
    Console(stderr=True).print(table)
    for sentence in list(counts)[:4]:
        logger.info("sentence: %s", sentence)
