"""Where words stand in a text: character spans, captions that carry them, and finding words.

Everything downstream (token positions, attention maps, contrastive views) starts from these
spans, so that a word of several pieces, punctuation or no spaces at all needs no special case
anywhere else.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

#: Characters that continue a word: letters, digits, underscore; no script written without spaces.
_JOINING = r"[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"


@dataclass(frozen=True)
class WordSpan:
    """The characters ``text[start:end]`` belong to the learnable word `word`."""

    start: int
    end: int
    word: str

    def shifted(self, by: int) -> "WordSpan":
        """The same span in a text that has `by` more characters before it."""
        return WordSpan(self.start + by, self.end + by, self.word)


@dataclass(frozen=True)
class Caption:
    """A caption that knows which of its characters are learnable words.

    `bound` holds the spans of adjectives; the word of such a span is the learnable word that the
    adjective is bound to (MCPL sec. 3.4, "Bind adj.").

    Raises:
        ValueError: when a span is empty, lies outside the text, or two learnable spans overlap.
    """

    text: str
    learnable: tuple[WordSpan, ...] = ()
    bound: tuple[WordSpan, ...] = ()

    def __post_init__(self) -> None:
        for span in (*self.learnable, *self.bound):
            if not 0 <= span.start < span.end <= len(self.text):
                raise ValueError(
                    f"the span {span.start}..{span.end} of {span.word!r} is not inside the "
                    f"{len(self.text)} characters of {self.text!r}"
                )
        ordered = tuple(sorted(self.learnable, key=lambda span: span.start))
        for left, right in pairwise(ordered):
            if right.start < left.end:
                raise ValueError(
                    f"{left.word!r} and {right.word!r} overlap in {self.text!r}: one character can "
                    "belong to one learnable word only"
                )
        object.__setattr__(self, "learnable", ordered)

    def __str__(self) -> str:
        return self.text

    @classmethod
    def of(cls, text: "str | Caption", words: Iterable[str] = ()) -> "Caption":
        """`text` with every occurrence of `words` marked learnable; a caption stays as it is."""
        return text if isinstance(text, Caption) else cls(text, find_words(text, words))

    def names(self) -> tuple[str, ...]:
        """The learnable words of the caption, each once, in order of appearance."""
        return tuple(dict.fromkeys(span.word for span in self.learnable))

    def shifted(self, by: int) -> tuple[tuple[WordSpan, ...], tuple[WordSpan, ...]]:
        """The learnable and the bound spans after `by` more characters were put in front."""
        return (
            tuple(span.shifted(by) for span in self.learnable),
            tuple(span.shifted(by) for span in self.bound),
        )


def _pattern(word: str) -> re.Pattern[str]:
    """What `word` looks like in a text: whole words only, unless its edge is punctuation."""
    before = rf"(?<!{_JOINING})" if re.match(_JOINING, word[0]) else ""
    after = rf"(?!{_JOINING})" if re.match(_JOINING, word[-1]) else ""
    flags = re.IGNORECASE if word == word.lower() else 0
    return re.compile(before + re.escape(word) + after, flags)


def find_words(text: str, words: Iterable[str]) -> tuple[WordSpan, ...]:
    """Every occurrence of `words` in `text`, in order of appearance.

    Longer words win over shorter ones inside them. A letter or digit at the edge of a word must
    not touch another letter or digit ("art" is not in "party"); punctuation such as ``*`` matches
    anywhere. Lower-case words match any case.
    """
    found: list[WordSpan] = []
    unique = {word for word in words if word.strip()}
    for word in sorted(unique, key=lambda word: (-len(word), word)):
        for match in _pattern(word).finditer(text):
            start, end = match.span()
            if all(end <= other.start or other.end <= start for other in found):
                found.append(WordSpan(start, end, word))
    return tuple(sorted(found, key=lambda span: span.start))


def written_words(text: str) -> list[str]:
    """The words of a text in order, without punctuation; ``<teddy>`` is one word."""
    return re.findall(r"<[^<>\s]+>|[^\W_]+(?:['\u2019-][^\W_]+)*", text)
