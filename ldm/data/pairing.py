"""Which sentence a picture is shown with, and the words that a whole set of pictures defines.

A sentence of the picture's own wins over the sentence given for its kind; either may be annotated
(``a <teddy:bear> on a <board>``), or plain text in which words defined elsewhere are found.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from ldm.data.metadata import KINDS, Item
from ldm.prompts import (
    Caption,
    LearnableWord,
    Sentence,
    apply_strategy,
    bind_adjectives,
    parse_released,
    parse_sentence,
    relate,
)

#: A sentence, its annotated text, or one of either for each kind of picture.
Wording = Sentence | str | Mapping[str, Sentence | str]
Strategy = Literal["one", "all"]
OPENING = re.compile(r"(?:an?\s+|the\s+)?(\S.*?\bof\b)", re.IGNORECASE)


def given_sentences(
    wording: Wording | None, placeholder: str, coarse_class: str | None = None
) -> dict[str, Sentence]:
    """The sentence for each kind of picture, from what the user gave.

    Without `wording` the placeholder is the word to learn, after the coarse class if there is one;
    of a placeholder of several words ('green * and orange @') those made of punctuation are.

    Raises:
        ValueError: for an unknown kind, both a sentence and a coarse class, or no learnable word.
    """
    if wording is None:
        return dict.fromkeys(KINDS, _placeholder_sentence(placeholder, coarse_class))
    if coarse_class:
        raise ValueError(
            f"coarse_class_text {coarse_class!r} goes with placeholder_token only; write the class "
            "into the sentence"
        )
    if not isinstance(wording, Mapping):
        return dict.fromkeys(KINDS, _parsed(wording))
    unknown = sorted(set(wording) - set(KINDS))
    if unknown:
        raise ValueError(f"there are sentences for {unknown}; the kinds of pictures are {KINDS}")
    return {kind: _parsed(each) for kind, each in wording.items()}


def _parsed(wording: Sentence | str) -> Sentence:
    return wording if isinstance(wording, Sentence) else parse_sentence(wording)


def _placeholder_sentence(placeholder: str, coarse_class: str | None) -> Sentence:
    """The sentence of the original options: the placeholder and, before it, the coarse class."""
    text = f"{coarse_class} {placeholder}" if coarse_class else placeholder
    if find_marks(placeholder):
        return parse_sentence(text)
    words = placeholder.split()
    if len(words) > 1:
        words = [word for word in words if not any(char.isalnum() for char in word)]
    if not words:
        raise ValueError(
            f"placeholder_token {placeholder!r} has several words, none of them punctuation only "
            "such as *: mark the words to learn in `sentence`, as in 'a <teddy:bear>'"
        )
    return parse_released(text, words)


def find_marks(text: str) -> bool:
    """Whether `text` is annotated: has a ``<word>`` or an ``[adjective]``."""
    return re.search(r"[<\[]", text) is not None


def pair(
    items: Sequence[Item],
    given: Mapping[str, Sentence],
    strategy: Strategy = "one",
    own_only: bool = False,
) -> list[Sentence]:
    """The sentence of each item, relation filled in, `strategy` applied, definitions made one.

    With `own_only` the given sentences only define words, and every item must bring its own.

    Raises:
        ValueError: for an item without sentence or learnable word, or a word that two sentences
            define differently; the message names the file.
    """
    known = {word.name: word for each in given.values() for word in each.words}
    fallback = {} if own_only else given
    pairs = []
    for item in items:
        try:
            sentence = relate(_sentence(item, fallback, known), item.relation)
            pairs.append(apply_strategy(sentence, strategy))
        except ValueError as error:
            raise ValueError(f"{item}: {error}") from error
        if not sentence.caption.learnable:
            raise ValueError(
                f"{item}: its sentence {sentence.caption.text!r} has no learnable word; write one "
                f"of {sorted(known)} in it, mark a word as <name:init words>, or remove the image"
            )
    words = {word.name: word for word in merge_words(pairs)}
    return [replace(each, words=tuple(words[name] for name in each.names)) for each in pairs]


def _sentence(
    item: Item, fallback: Mapping[str, Sentence], known: Mapping[str, LearnableWord]
) -> Sentence:
    """The sentence of one item, before its relation is filled in.

    What a sentence of the item's own leaves open about a word is taken from `known`.
    """
    if item.text is not None:
        if find_marks(item.text):
            own = parse_sentence(item.text)
            words = (_merge(known.get(word.name, word), word, own) for word in own.words)
            return replace(own, words=tuple(words))
        caption = bind_adjectives(Caption.of(item.text, known), known)
        return Sentence(caption, tuple(known.values()))
    if item.kind not in fallback:
        raise ValueError(
            f"there is no sentence for this picture (of kind {item.kind!r}): give it one in "
            "metadata.jsonl or in a .txt file beside it, or one for all in `sentence`"
        )
    return fallback[item.kind]


def merge_words(sentences: Iterable[Sentence]) -> tuple[LearnableWord, ...]:
    """Each learnable word of the sentences once, in order, from the fullest definition given.

    A mention that says less (``<teddy>`` after ``<teddy:bear|2>``) refers to the same word.

    Raises:
        ValueError: when two sentences start a word differently or give it other numbers of vectors.
    """
    words: dict[str, LearnableWord] = {}
    for sentence in sentences:
        for word in sentence.words:
            words[word.name] = _merge(words.get(word.name, word), word, sentence)
    return tuple(words.values())


def _merge(old: LearnableWord, new: LearnableWord, sentence: Sentence) -> LearnableWord:
    """Two definitions of one word as one."""
    inits = {word.init for word in (old, new) if word.init and word.init != _bare(word)}
    vectors = {word.vectors for word in (old, new) if word.vectors > 1}
    if len(inits) > 1 or len(vectors) > 1:
        raise ValueError(
            f"{new.name!r} is defined twice, from {old.start!r} with {old.vectors} vectors and, in "
            f"{sentence.caption.text!r}, from {new.start!r} with {new.vectors}; make them the same"
        )
    return replace(
        old,
        init=inits.pop() if inits else old.init or new.init,
        vectors=vectors.pop() if vectors else 1,
        adjective=old.adjective or new.adjective,
    )


def _bare(word: LearnableWord) -> str:
    """What a word starts from when nothing is said."""
    return replace(word, init=None).start


def openings(templates: Iterable[str]) -> frozenset[str]:
    """How captions begin, without article: "photo of", "close-up photo of"."""
    heads = (OPENING.match(template.split("{}")[0]) for template in templates)
    return frozenset(match[1].lower() for match in heads if match)


def is_caption(text: str, known: frozenset[str]) -> bool:
    """Whether `text` is a whole caption ("a photo of <subject>") that needs no template."""
    match = OPENING.match(text)
    return match is not None and match[1].lower() in known
