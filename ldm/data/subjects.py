"""Lego's two sets of pictures: a subject with the concept, and without it (Lego sec. 3 and 4.3).

With subject separation the subject has a word of its own, learned from both sets. Without it, the
counterpart of the paper's ablation (sec. 5.5), only the pictures of the concept are shown, and the
subject is described in plain words, as textual inversion and ReVersion do.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from ldm.data.metadata import Item
from ldm.prompts import Caption, LearnableWord, Sentence, WordSpan
from ldm.prompts.sentence import CONCEPT, RANDOM

_WITH, _WITHOUT = "concept", "subject"


def mark_concepts(
    words: Iterable[LearnableWord], items: Sequence[Item], pairs: Sequence[Sentence]
) -> tuple[LearnableWord, ...]:
    """`words`, with the role "concept" for marked ones that only pictures of the concept show."""
    shown: dict[str, set[str]] = {}
    for item, sentence in zip(items, pairs, strict=True):
        for name in sentence.caption.names():
            shown.setdefault(name, set()).add(item.kind)
    return tuple(
        replace(word, role=CONCEPT)
        if word.role == "noun" and shown.get(word.name) == {_WITH}
        else word
        for word in words
    )


def without_separation(
    items: Sequence[Item], pairs: Sequence[Sentence]
) -> tuple[list[Item], list[Sentence]]:
    """The pictures of the concept alone, with their subjects described in plain words.

    A subject is a word that the sentences of the subject's own pictures have.

    Raises:
        ValueError: when no picture, or no word of a sentence, is left to learn from.
    """
    joined = list(zip(items, pairs, strict=True))
    with_it = {sentence for item, sentence in joined if item.kind == _WITH}
    subjects = {
        name
        for item, sentence in joined
        if item.kind == _WITHOUT and sentence not in with_it
        for name in sentence.caption.names()
    }
    kept = [(item, describe(pair, subjects)) for item, pair in joined if item.kind != _WITHOUT]
    if not kept:
        raise ValueError(
            "subject_separation is off but every picture is one without the concept: add pictures "
            "with it (a folder concept/, or the kind 'concept' in metadata.jsonl)"
        )
    for item, sentence in kept:
        if not sentence.caption.learnable:
            raise ValueError(
                f"{item}: without subject separation nothing is left to learn in "
                f"{sentence.caption.text!r}; mark the words of the concept as <name:init words>"
            )
    return [item for item, _ in kept], [sentence for _, sentence in kept]


def describe(sentence: Sentence, names: Collection[str]) -> Sentence:
    """`sentence` with each of the words `names` as ordinary text: what it starts from."""
    starts = {
        word.name: (replace(word, init=None) if word.init == RANDOM else word).start
        for word in sentence.words
    }
    caption = sentence.caption
    for span in reversed(caption.learnable):
        if span.word in names:
            caption = _reword(caption, span, starts[span.word])
    return Sentence(caption, tuple(word for word in sentence.words if word.name not in names))


def _reword(caption: Caption, span: WordSpan, text: str) -> Caption:
    """`caption` with `text` in place of a learnable word, after "an" where that is needed."""
    start, old = span.start, caption.text
    others = [each for each in caption.learnable if each != span]
    article = re.search(r"\b[Aa] $", old[:start]) and all(each.end != start - 1 for each in others)
    if article and text[0].lower() in "aeiou":
        start, text = start - 1, f"n {text}"
    by = len(text) - (span.end - start)
    bound = [each for each in caption.bound if each.word != span.word]
    learnable, bound_after = (
        tuple(each if each.end <= start else each.shifted(by) for each in spans)
        for spans in (others, bound)
    )
    return Caption(old[:start] + text + old[span.end :], learnable, bound_after)
