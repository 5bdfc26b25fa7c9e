"""The words of a run: gathered from its data, given to the model, and shown before training starts."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm.prompts.sentence import LearnableWord, Sentence
from ldm.training.errors import UserError

logger = logging.getLogger(__name__)


def gather(sentences: Iterable[Sentence]) -> list[LearnableWord]:
    """The learnable words of several sentences, each once, in order of appearance.

    Raises:
        UserError: when two sentences define a word differently.
    """
    words: dict[str, LearnableWord] = {}
    for sentence in sentences:
        for word in sentence.words:
            known = words.setdefault(word.name, word)
            if (known.start, known.vectors) != (word.start, word.vectors):
                raise UserError(
                    f"the word {word.name!r} starts from {known.start!r} in one sentence and from "
                    f"{word.start!r} in another; a word has one start"
                )
            if known.adjective is None and word.adjective is not None:
                words[word.name] = word
    return list(words.values())


def learn_words(model: Any, data: Any, config: DictConfig) -> list[LearnableWord] | None:
    """Make the words of the data's sentences learnable, and show them; ``None`` if there are none."""
    dataset = data.datasets["train"]
    counts: Mapping[Sentence, int] = getattr(dataset, "sentences", None) or {}
    words = gather(counts)
    if not words:
        return None
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
        table.add_row(
            word.name, word.start, str(word.vectors), word.adjective or "-", str(images)
        )
    Console(stderr=True).print(table)
    for sentence in list(counts)[:4]:
        logger.info("sentence: %s", sentence)
