"""One annotated sentence says which words are learned: markup, strategies, released flags.

``a [brown] <teddy:bear> on a [rolling] <board:skateboard>``: ``<name:init words>`` is a learnable
word spelt ``<name>`` that starts from "init words"; ``[adjective]`` is bound to the next
learnable word (MCPL sec. 3.4, "Bind adj."). The strategies "one" and "all" are those of MCPL
(Algorithms 2 and 3).
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ldm.prompts.spans import Caption, WordSpan, find_words, written_words

logger = logging.getLogger(__name__)

Role = Literal["noun", "adjective", "other", "concept"]
#: The role of a word that only pictures of a concept show, not those of its subject (Lego).
CONCEPT: Literal["concept"] = "concept"
#: Roles of the words that a sentence marks: those that have a place in a picture.
MARKED: tuple[Role, ...] = ("noun", CONCEPT)
#: Stands for the relation of an image in the released per-image sentences.
RELATE = "RELATE"
#: As the init of a word: draw its vectors at random.
RANDOM = "random"

_MARK = re.compile(r"<[^<>\[\]]*>|\[[^<>\[\]]*\]|[<>\[\]]")
_ORDINARY = re.compile(r"\w+(?:[-'\u2019.]\w+)*")


@dataclass(frozen=True)
class LearnableWord:
    """A word whose embedding is learned: how it is spelt, what it starts from, how many vectors.

    `init` is any text (``None``: the word's own spelling; ``"random"``: random vectors).
    `adjective` is what is bound to it.

    Raises:
        ValueError: when the name is empty or there is not at least one vector.
    """

    name: str
    init: str | None = None
    vectors: int = 1
    adjective: str | None = None
    role: Role = "noun"

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError(f"a learnable word needs a name, got {self.name!r}")
        if self.vectors < 1:
            raise ValueError(
                f"the word {self.name!r} was given {self.vectors} vectors; it needs at least one"
            )

    @property
    def start(self) -> str:
        """The text whose embedding the word starts from."""
        bracketed = re.fullmatch(r"<(.+)>", self.name)
        return self.init or (bracketed[1] if bracketed else self.name)


@dataclass(frozen=True)
class Sentence:
    """A sentence with the definition of each of its learnable words.

    `words` may hold more than the caption shows: the relation words of other images. Raises
    ValueError when the caption has a learnable word without a definition.
    """

    caption: Caption
    words: tuple[LearnableWord, ...]

    def __post_init__(self) -> None:
        unknown = set(self.caption.names()) - set(self.names)
        if unknown:
            raise ValueError(
                f"{sorted(unknown)} in {self.caption.text!r} are learnable but not defined; the "
                f"defined words are {list(self.names)}"
            )

    def __str__(self) -> str:
        return self.caption.text

    @property
    def names(self) -> tuple[str, ...]:
        """The spellings of the learnable words."""
        return tuple(word.name for word in self.words)


def _complain(sentence: str, at: int, problem: str) -> ValueError:
    """An error that shows where in the sentence the problem is."""
    return ValueError(f"{problem}\n  {sentence}\n  {' ' * at}^")


def parse_sentence(markup: str) -> Sentence:
    """Read an annotated sentence such as ``a [brown] <teddy:bear> on a <board:skateboard|2>``.

    Accepted marks: ``<name>``, ``<name:init words>``, either with ``|k`` for k vectors, and
    ``[adjective]``. The text keeps ``<name>`` and the bare adjective.

    Raises:
        ValueError: no learnable word, unbalanced or empty marks, a word defined twice
            differently, an adjective with no learnable word after it. The message quotes the
            sentence and points at the place.
    """
    text = ""
    words: dict[str, LearnableWord] = {}
    learnable: list[WordSpan] = []
    bound: list[WordSpan] = []
    waiting: list[tuple[int, int, int]] = []
    last = 0
    for match in _MARK.finditer(markup):
        text += markup[last : match.start()]
        mark, last = match.group(), match.end()
        if len(mark) == 1:
            problem = "this bracket has no partner (marks are <name:init words> and [adjective]):"
            raise _complain(markup, match.start(), problem)
        start = len(text)
        if mark[0] == "[":
            text += _adjective(markup, match)
            waiting.append((start, len(text), match.start()))
            continue
        word = _define(markup, match, words)
        text += word.name
        learnable.append(WordSpan(start, len(text), word.name))
        bound += [WordSpan(left, right, word.name) for left, right, _ in waiting]
        adjective = " ".join(text[left:right] for left, right, _ in waiting) or word.adjective
        words[word.name] = replace(word, adjective=adjective)
        waiting = []
    if waiting:
        raise _complain(markup, waiting[0][2], "this adjective has no learnable word after it:")
    if not words:
        raise _complain(markup, 0, "no learnable word: mark one as <name> or <name:init words> in")
    caption = Caption(text + markup[last:], tuple(learnable), tuple(bound))
    return Sentence(caption, tuple(replace(word, init=word.start) for word in words.values()))


def _adjective(markup: str, match: re.Match[str]) -> str:
    """The text of an ``[adjective]`` mark."""
    adjective = match.group()[1:-1].strip()
    if not adjective:
        raise _complain(markup, match.start(), "there is no adjective between these brackets:")
    return adjective


def _define(markup: str, match: re.Match[str], words: dict[str, LearnableWord]) -> LearnableWord:
    """The word of one ``<...>`` mark, merged with what earlier marks said about it."""
    body, bar, count = match.group()[1:-1].partition("|")
    name, colon, init = (part.strip() for part in body.partition(":"))
    if not name or (colon and not init):
        missing = "name" if not name else "init after the colon"
        raise _complain(markup, match.start(), f"this learnable word has no {missing}:")
    vectors = count.strip()
    if bar and not (vectors.isdecimal() and int(vectors) > 0):
        problem = f"{vectors!r} is not a number of vectors (1, 2, ...) for this word:"
        raise _complain(markup, match.start(), problem)
    known = words.get(f"<{name}>")
    if known is None:
        return LearnableWord(f"<{name}>", init or None, int(vectors or 1))
    if init and known.init and init != known.init:
        problem = f"<{name}> was to start from {known.init!r} before and from {init!r} here:"
        raise _complain(markup, match.start(), problem)
    if bar and int(vectors) != known.vectors:
        problem = f"<{name}> was given {known.vectors} vectors before and {vectors} here:"
        raise _complain(markup, match.start(), problem)
    return replace(known, init=known.init or init or None)


def apply_strategy(sentence: Sentence, strategy: Literal["one", "all"] = "one") -> Sentence:
    """Which words are learned: "one" the marked words (MCPL-one), "all" every word (MCPL-all).

    With "all", an ordinary word starts from itself and a bound adjective stays bound. ``RELATE``
    is no word: what it becomes is learned, once :func:`relate` has put it there.

    Raises:
        ValueError: for any other strategy.
    """
    if strategy == "one":
        return sentence
    if strategy != "all":
        raise ValueError(f"strategy {strategy!r}: expected 'one' (marked words) or 'all'")
    caption = sentence.caption
    taken = caption.learnable
    added = [
        WordSpan(*match.span(), match.group().lower())
        for match in _ORDINARY.finditer(caption.text)
        if match.group() != RELATE
        and all(match.end() <= span.start or span.end <= match.start() for span in taken)
    ]
    adjectives = {
        span.word
        for span in added
        if any(b.start <= span.start and span.end <= b.end for b in caption.bound)
    }
    words = {word.name: word for word in sentence.words}
    for span in added:
        role: Role = "adjective" if span.word in adjectives else "other"
        words.setdefault(span.word, LearnableWord(span.word, span.word, role=role))
    return Sentence(replace(caption, learnable=(*taken, *added)), tuple(words.values()))


def as_words(words: str | Iterable[str] | None) -> tuple[str, ...]:
    """A list of words as the released flags give it: ``"green,*,and"`` or a list; empty is off."""
    parts = words.split(",") if isinstance(words, str) else words or ()
    return tuple(dict.fromkeys(part.strip() for part in parts if part and part.strip()))


def is_symbol(word: str) -> bool:
    """Whether a word is punctuation only, such as ``*`` or ``@``: a placeholder by its looks."""
    return not any(char.isalnum() for char in word)


def released_words(
    pseudo_words: str | Iterable[str],
    adjectives: str | Iterable[str] = (),
    init_word: str | None = None,
    nouns: str | Iterable[str] = (),
) -> tuple[LearnableWord, ...]:
    """The learnable words that the released flags name.

    Placeholders (punctuation such as ``*``, or `nouns`, or a word that stands alone) start from
    `init_word`; a comma list of init words gives each placeholder its own. Ordinary words start
    from themselves.

    Raises:
        ValueError: when several init words are given but not one for each placeholder.
    """
    names, adjectives, given = as_words(pseudo_words), as_words(adjectives), as_words(nouns)
    places = [name for name in names if name in given or is_symbol(name)]
    if len(names) == 1:
        places = list(names)
    inits = [part.strip() for part in (init_word or "").split(",") if part.strip()]
    if inits and not places:
        logger.warning("init_word %r is not used: no placeholder among %s", init_word, list(names))
    elif len(inits) > 1 and len(inits) != len(places):
        raise ValueError(
            f"init_word {init_word!r} names {len(inits)} words for the placeholders {places}: give "
            "one word for all of them or one for each"
        )
    starts = dict(zip(places, inits * len(places) if len(inits) == 1 else inits, strict=False))

    def role(name: str) -> Role:
        if name in places:
            return "noun"
        return "adjective" if name in adjectives else "other"

    return tuple(LearnableWord(name, starts.get(name), role=role(name)) for name in names)


def parse_released(
    placeholder_string: str,
    pseudo_words: str | Sequence[str],
    adjectives: str | Sequence[str] = (),
    init_word: str | None = None,
    nouns: str | Sequence[str] = (),
) -> Sentence:
    """The sentence that the released flags describe: ``'green * and orange @'`` with ``'*,@'``.

    Without pseudo words the whole placeholder string is one word. Adjectives are bound to the
    next placeholder. The word ``RELATE`` stays until :func:`relate`; words that only stand for
    relations need not occur.

    Raises:
        ValueError: when a listed word or adjective is not in the sentence, or an adjective has no
            learnable word after it.
    """
    text = placeholder_string
    words = released_words(as_words(pseudo_words) or [text], adjectives, init_word, nouns)
    learnable = find_words(text, [word.name for word in words])
    found = {span.word for span in learnable}
    absent = [word.name for word in words if word.name not in found]
    if not found or (absent and not find_words(text, [RELATE])):
        raise ValueError(
            f"the pseudo words {absent} are not in the placeholder string {text!r}; list words "
            f"that it contains, or write {RELATE} where each image has its own relation"
        )
    roles = {word.name: word.role for word in words}
    spans = find_words(text, as_words(adjectives))
    missing = [name for name in as_words(adjectives) if name not in {s.word for s in spans}]
    if missing:
        raise ValueError(f"the adjectives {missing} are not in the placeholder string {text!r}")
    bound = tuple(_bind(text, span, learnable, roles) for span in spans)
    names: dict[str, list[str]] = {}
    for span in bound:
        names.setdefault(span.word, []).append(text[span.start : span.end])
    described = (
        replace(word, adjective=" ".join(dict.fromkeys(names.get(word.name, ()))) or None)
        for word in words
    )
    return Sentence(Caption(text, learnable, bound), tuple(described))


def _bind(
    text: str, adjective: WordSpan, learnable: Sequence[WordSpan], roles: dict[str, Role]
) -> WordSpan:
    """The adjective's span, bound to the first placeholder after it (else any learnable word)."""
    after = [s for s in learnable if s.start >= adjective.end and roles[s.word] != "adjective"]
    nouns = [span for span in after if roles[span.word] == "noun"]
    if not after:
        problem = f"the adjective {adjective.word!r} has no learnable word after it:"
        raise _complain(text, adjective.start, problem)
    return replace(adjective, word=(nouns or after)[0].word)


def bind_adjectives(caption: Caption, words: Mapping[str, LearnableWord]) -> Caption:
    """`caption` with the adjectives of its words bound, where they stand right before them."""
    text = caption.text
    parts = {part for word in words.values() for part in (word.adjective or "").split()}
    bound: list[WordSpan] = []
    for name, word in words.items():
        adjective = word.adjective or ""
        spans = find_words(text, [adjective]) or find_words(text, adjective.split())
        for noun in (span for span in caption.learnable if span.word == name):
            before = [s for s in spans if set(written_words(text[s.end : noun.start])) <= parts]
            bound += [replace(s, word=name) for s in before if s.end <= noun.start]
    return replace(caption, bound=tuple(dict.fromkeys(bound)))


def relate(sentence: Sentence, relation: str) -> Sentence:
    """The sentence of one image: ``RELATE`` becomes `relation`, learnable if it is a listed word.

    A sentence without ``RELATE`` stays as it is.
    """
    caption = sentence.caption
    for mark in reversed(find_words(caption.text, [RELATE])):
        text = caption.text[: mark.start] + relation + caption.text[mark.end :]
        by = len(relation) - (mark.end - mark.start)
        learnable, bound = (
            tuple(span if span.end <= mark.start else span.shifted(by) for span in spans)
            for spans in (caption.learnable, caption.bound)
        )
        found = find_words(relation, sentence.names)
        learnable += tuple(span.shifted(mark.start) for span in found)
        caption = Caption(text, learnable, bound)
    return replace(sentence, caption=caption)
