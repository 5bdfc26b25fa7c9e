"""The words of a run: taken from its data, given to the model, shown before training."""

import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from ldm.errors import UserError
from ldm.prompts.sentence import RELATE, LearnableWord, Sentence, as_words
from ldm.prompts.spans import find_words
from ldm.training.config import public_params
from ldm.util import print_rows, step_generator

logger = logging.getLogger(__name__)

#: Stream of `step_generator` from which words that start at random are drawn.
RANDOM_STREAM = 1 << 22
#: Arguments of a public ``personalization_config`` that say more than which words there are.
KEPT_OPTIONS = ("per_image_tokens", "progressive_words")
#: Where a configuration names words of the sentences: key -> the flag that writes it.
NAMED_WORDS = {
    "model.params.mask.words": "--attn_words",
    "model.params.contrast.words": "--pseudo_words_infonce",
    "model.params.quirk_softmax_words": "--pseudo_words_softmax",
}


def check_words(data: Any, config: DictConfig, given: Sentence | None) -> None:
    """Refuse words that no picture is shown with, before anything is built or written.

    Raises:
        ValueError: when a picture cannot be read.
        UserError: when nothing says which words to learn, the sentence that was given is no
            picture's, or a flag names a word that is in no sentence.
    """
    dataset = data.datasets["train"]
    if not hasattr(dataset, "words"):
        return
    if given is None and _nothing_said(dataset, config):
        raise UserError(
            "nothing says which words to learn: give --sentence 'a <name:init words>' (or "
            "--placeholder_string '*' --init_word WORD), or write a sentence for each picture into "
            "a .txt file beside it"
        )
    texts = [sentence.caption.text for sentence in dataset.sentences]
    shown = [word.name for word in dataset.words]
    if given is not None and not set(given.names) & set(shown):
        raise UserError(
            f"the sentence {given.caption.text!r} is not used: every picture has a sentence of its "
            f"own, such as {texts[0]!r}. Give pictures without, or leave the sentence out"
        )
    _tell_unused(given, shown, texts)
    if getattr(dataset, "cacheable", False):
        # A damaged picture, or mask, is found before training, not in it.
        deque(dataset.images(), maxlen=0)
    if hasattr(dataset, "every_mask"):
        deque(dataset.every_mask(), maxlen=0)
    _check_relations(given, shown, texts)
    for key, flag in NAMED_WORDS.items():
        for word in as_words(OmegaConf.select(config, key)):
            if word not in shown and not any(find_words(text, [word]) for text in texts):
                raise UserError(
                    f"{flag} (in the configuration {key}) names {word!r}, which is not in the "
                    f"sentence {texts[0]!r}{_nearest(word, [*shown, *texts[0].split()])}"
                )


def _nothing_said(dataset: Any, config: DictConfig) -> bool:
    """Whether neither pictures nor the configuration of their dataset have a sentence."""
    params = OmegaConf.select(config, "data.params.train.params") or {}
    said = any(params.get(name) for name in ("sentence", "placeholder_token"))
    items = getattr(dataset, "items", None)
    return not said and items is not None and all(item.text is None for item in items)


def _tell_unused(given: Sentence | None, shown: Sequence[str], texts: Sequence[str]) -> None:
    """Warn of a given sentence that pictures have others than, and of words that only it has."""
    if given is None or given.caption.text in texts or find_words(given.caption.text, [RELATE]):
        return
    logger.warning(
        "%r is shown with no picture: each has a sentence of its own, such as %r "
        "(data.params.train.params.own_sentences=false shows it with all)",
        given.caption.text, texts[0],
    )  # fmt: skip
    if unseen := [name for name in given.names if name not in shown]:
        logger.warning("not learned: %s, in no picture's sentence", ", ".join(unseen))


def _check_relations(given: Sentence | None, shown: Sequence[str], texts: Sequence[str]) -> None:
    """Of a sentence with RELATE, tell listed words that stand in no picture's sentence."""
    if given is None or not find_words(given.caption.text, [RELATE]):
        return
    listed = [name for name in given.names if name not in given.caption.names()]
    unseen = [name for name in listed if name not in shown]
    if not unseen:
        return
    found = f"{', '.join(unseen)} in no picture's sentence, such as {texts[0]!r}"
    if unseen == listed:
        raise UserError(
            f"the listed words stand for {RELATE}, but there is {found}: name each picture after "
            f"its relation ('{unseen[0].replace(' ', '_')}.jpg', '{unseen[0]} 2.jpg'), or leave "
            "the words out"
        )
    logger.warning("not learned: there is %s", found)


def _nearest(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def learn_words(
    model: Any, data: Any, config: DictConfig, *, trained: bool, quiet: bool = False
) -> list[LearnableWord] | None:
    """Make the words of the data's sentences learnable, and show them unless `quiet`.

    ``None`` for data that is not for learning words. `trained` says that weights were loaded.
    """
    dataset = data.datasets["train"]
    if not hasattr(dataset, "words"):
        return None
    if not trained and not OmegaConf.select(config, "model.params.ckpt_path"):
        logger.warning(
            "no weights are given, so the words are learned for a network of random numbers: name "
            "a trained model with --actual_resume CKPT"
        )
    options = {"generator": step_generator(config.seed, 0, 0, RANDOM_STREAM)}
    public = public_params(config)
    vectors = public.get("num_vectors_per_token", 1)
    words = [replace(word, vectors=max(word.vectors, vectors)) for word in dataset.words]
    options.update({name: public[name] for name in KEPT_OPTIONS if name in public})
    model.learn(words, **options)
    earlier = OmegaConf.select(config, "concept.embeddings")
    earlier = earlier or public.get("embedding_manager_ckpt")
    if earlier:
        words = _continue_from(earlier, model.embedding_manager, words)
    _check_room(model, dataset.sentences)
    if getattr(dataset, "cacheable", False):
        model.cache_posteriors()
    if not quiet:
        show(words, dataset.sentences)
    return words


def _continue_from(path: str, manager: Any, wanted: Sequence[LearnableWord]) -> list[LearnableWord]:
    """Let the words start from those of an earlier run; its other words stay as they are.

    Returns the `wanted` words as they are in the file, from which they start.
    """
    manager.load(path)
    missing = [word.name for word in wanted if word.name not in manager.words]
    if missing:
        raise UserError(
            f"{path} does not have the words {missing} of the sentence; it has "
            f"{list(manager.words)}"
        )
    names = [word.name for word in wanted]
    manager.learn_only(names)
    manager.start_here(str(path), names)
    found = {word.name: word for word in manager.learnable}
    for word in wanted:
        if word.vectors > 1 and word.vectors != found[word.name].vectors:
            logger.warning(
                "%s has %s with %d vectors, which it keeps: not the %d that were asked for",
                path, word.name, found[word.name].vectors, word.vectors,
            )  # fmt: skip
    return [found[name] for name in names]


def _check_room(model: Any, sentences: Iterable[Sentence]) -> None:
    """Refuse words that do not fit into the text encoder even without a template around them."""
    encoder, words = model.cond_stage_model, model.embedding_manager.words
    for sentence in sentences:
        kept = encoder.tokenize([sentence.caption], words).learnable[0]
        lost = [name for name in sentence.caption.names() if name not in kept]
        if lost:
            told = ", ".join(f"{name} ({words[name].vectors})" for name in sentence.caption.names())
            raise UserError(
                f"{', '.join(lost)} cannot be learned: the text encoder reads "
                f"{encoder.max_length - 2} tokens, and there are more in "
                f"{sentence.caption.text!r}. Give the words fewer vectors (they have: {told}), or "
                "shorten the sentence"
            )


@rank_zero_only
def show(words: Sequence[LearnableWord], counts: Mapping[Sentence, int]) -> None:
    """Print the table of words: what each starts from, and how many images show it."""
    rows = []
    for word in words:
        images = sum(n for sentence, n in counts.items() if word.name in sentence.caption.names())
        rows.append([word.name, word.start, str(word.vectors), word.adjective or "-", str(images)])
    heads = ("word", "starts from", "vectors", "bound adjective", "images")
    print_rows("Words to learn", heads, rows)
    for sentence in list(counts)[:4]:
        logger.info("sentence: %s", sentence)
