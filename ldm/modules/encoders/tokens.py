"""Text to token ids, with learnable words as tokens of their own.

Ordinary text goes through a tokenizer of `transformers`. A learnable word never does: it is one
token whatever its spelling, and its positions are known from where it stands in the caption.
"""

import copy
import difflib
import logging
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ldm.prompts.sentence import is_symbol
from ldm.prompts.spans import Caption, WordSpan

logger = logging.getLogger(__name__)

Offsets = list[tuple[int, int]]
#: The characters that a start, end or padding token stands for: none.
NOWHERE = (-1, -1)


@dataclass(frozen=True)
class WordToken:
    """What the tokenizer must know about a learnable word: its id, and how many vectors it
    becomes."""

    id: int
    vectors: int = 1


@dataclass(frozen=True)
class Tokens:
    """Captions as token ids, and where their words are.

    `ids` (b, max_length) holds a learnable word once; the embedding manager puts its vectors
    there, pushing what follows to the right. All positions count after that: they index the
    context that the encoder returns. `learnable` and `bound` give, per caption, the positions of
    each learnable word and of the adjectives bound to it; `offsets` the characters behind each
    position.
    """

    ids: Tensor
    learnable: list[dict[str, list[int]]]
    bound: list[dict[str, list[int]]]
    offsets: list[Offsets] = field(repr=False)

    def at(self, row: int, start: int, end: int) -> list[int]:
        """The positions in caption `row` of the tokens that touch ``text[start:end]``."""
        return [i for i, (s, e) in enumerate(self.offsets[row]) if s < end and start < e]


@dataclass(frozen=True)
class _Piece:
    """One token before expansion: its id, the vectors it becomes, its characters."""

    id: int
    vectors: int
    start: int
    end: int


def pretrained_tokenizer(kind: Any, name: str, advice: str) -> Any:
    """The tokenizer called `name`, or that of a folder; `kind` is its class in `transformers`.

    What is on this machine is taken first, so that without a network nothing waits for one.

    Raises:
        OSError: when it is neither here nor to be had; `advice` says what to do.
    """
    failure: Exception | None = None
    for local_files_only in (True, False):
        try:
            found = kind.from_pretrained(name, local_files_only=local_files_only)
        except (OSError, ValueError) as error:
            failure = error
            continue
        # Of files that it does not find, transformers makes a tokenizer without any words.
        if len(found) > len(found.all_special_ids):
            return found
    raise OSError(
        f"the tokenizer {name!r} is neither on this machine nor could it be downloaded: {advice}"
    ) from failure


class TextTokenizer:
    """A fast tokenizer of `transformers`, loaded when first used, that knows learnable words."""

    def __init__(self, load: Callable[[], Any], max_length: int) -> None:
        self._load = load
        self._backend: Any = None
        self.max_length = max_length
        #: Words of which it was said already that they fall off the end, and that are not known.
        self._told_lost: set[str] = set()
        self._told_unknown: set[str] = set()

    @property
    def backend(self) -> Any:
        """The tokenizer of `transformers` itself."""
        if self._backend is None:
            self._backend = self._load()
        return self._backend

    @property
    def special_ids(self) -> tuple[int, int, int]:
        """The ids of the start, end and padding tokens."""
        backend = self.backend
        start = backend.cls_token_id if backend.cls_token_id is not None else backend.bos_token_id
        end = backend.sep_token_id if backend.sep_token_id is not None else backend.eos_token_id
        return start, end, backend.pad_token_id if backend.pad_token_id is not None else end

    def pieces(self, text: str) -> tuple[list[int], Offsets]:
        """The token ids of ordinary text, without start and end, and the characters of each."""
        out = self._splitter.encode(text, add_special_tokens=False)
        return out.ids, out.offsets

    @cached_property
    def _splitter(self) -> Any:
        """What `transformers` wraps, without its checks, which take longer than it does.

        A copy: calls of the tokenizer set truncation and padding of the original.
        """
        splitter = copy.deepcopy(self.backend.backend_tokenizer)
        splitter.no_truncation()
        splitter.no_padding()
        return splitter

    def token_ids(self, text: str) -> list[int]:
        """The token ids of ordinary text, without start and end."""
        return self.pieces(text)[0]

    def single_id(self, word: str) -> int | None:
        """The id of `word` if the vocabulary has it in one piece."""
        ids = self.token_ids(word)
        return ids[0] if len(ids) == 1 and ids[0] != self.backend.unk_token_id else None

    def placeholder_id(self, word: str) -> int | None:
        """The vocabulary id that a placeholder such as ``*`` keeps; ``None`` for all other
        words."""
        return self.single_id(word) if is_symbol(word) else None

    def unknown(self, text: str) -> bool:
        """Whether part of `text` is not in the vocabulary at all."""
        unk = self.backend.unk_token_id
        return unk is not None and unk != self.special_ids[1] and unk in self.token_ids(text)

    def spelt_out(self, text: str) -> list[str]:
        """The words of `text` that the vocabulary has letter by letter only: ``z-e-b-r-a``.

        If single characters are all that it has to continue a word with, any word of several
        pieces is one of them: ``is-l-a-n-d``.
        """
        return self._spelt_out(text, self.pieces(text)[1])

    def _spelt_out(self, text: str, offsets: Offsets) -> list[str]:
        """The words of `text` that its tokens, at these characters, spell."""
        found = []
        for match in re.finditer(r"[^\W\d_]{2,}", text):
            word, (start, end) = match[0], match.span()
            sizes = [right - left for left, right in offsets if start <= left < end]
            # Scripts without upper case, such as Chinese, may have words of one character.
            several = len(sizes) > 1 and word.lower() != word.upper()
            if several and (max(sizes) == 1 or self._only_spells):
                found.append(word)
        return found

    @cached_property
    def _only_spells(self) -> bool:
        """Whether the vocabulary is of whole words, and letters to write all others with."""
        inner = {piece[2:] for piece in self.backend.get_vocab() if piece.startswith("##")}
        return set(string.ascii_lowercase) <= inner and all(len(piece) == 1 for piece in inner)

    def tokenize(
        self,
        captions: Sequence[str | Caption],
        words: Mapping[str, WordToken | int] | None = None,
    ) -> Tokens:
        """Ids of a batch of captions, padded to `max_length`, with the positions of their words.

        In a plain string every occurrence of a word of `words` is learnable, in a
        :class:`Caption` only what its spans say. Text that is too long is cut in front of the end
        token; the first time that a learnable word is lost by that is a warning.
        """
        known = {
            name: token if isinstance(token, WordToken) else WordToken(token)
            for name, token in (words or {}).items()
        }
        rows = [self._row(Caption.of(caption, known), known) for caption in captions]
        ids = torch.tensor([row[0] for row in rows], dtype=torch.long)
        return Tokens(
            ids=ids.reshape(len(rows), self.max_length),
            learnable=[row[1] for row in rows],
            bound=[row[2] for row in rows],
            offsets=[row[3] for row in rows],
        )

    def _row(
        self, caption: Caption, known: Mapping[str, WordToken]
    ) -> tuple[list[int], dict[str, list[int]], dict[str, list[int]], Offsets]:
        """Ids, learnable positions, bound positions and offsets of one caption."""
        start, end, padding = self.special_ids
        kept, cut_at = self._fit(self._split(caption, known))
        ids = [start, *(piece.id for piece in kept), end]
        offsets = [NOWHERE]
        for piece in kept:
            offsets += [(piece.start, piece.end)] * piece.vectors
        offsets += [NOWHERE] * (self.max_length - len(offsets))
        learnable = [span for span in caption.learnable if span.word in known]
        if cut_at is not None:
            self._warn(caption, [span.word for span in learnable if span.end > cut_at])
        ids += [padding] * (self.max_length - len(ids))
        return ids, _positions(learnable, offsets), _positions(caption.bound, offsets), offsets

    def _split(self, caption: Caption, known: Mapping[str, WordToken]) -> Iterator[_Piece]:
        """The caption's tokens in order: pieces of ordinary text, learnable words whole."""
        last = 0
        for span in caption.learnable:
            if span.word in known:
                yield from self._ordinary(caption.text, last, span.start)
                token = known[span.word]
                yield _Piece(token.id, token.vectors, span.start, span.end)
                last = span.end
        yield from self._ordinary(caption.text, last, len(caption.text))

    def _ordinary(self, text: str, start: int, end: int) -> Iterator[_Piece]:
        if text[start:end].strip():
            ids, offsets = self.pieces(text[start:end])
            self._tell_unknown(self._spelt_out(text[start:end], offsets))
            for token, (left, right) in zip(ids, offsets, strict=True):
                yield _Piece(token, 1, start + left, start + right)

    def _tell_unknown(self, words: Iterable[str]) -> None:
        """Warn, once a word, of words that the text encoder has only as letters."""
        for word in words:
            if word not in self._told_unknown:
                self._told_unknown.add(word)
                close = difflib.get_close_matches(word.lower(), self._whole_words(), n=1)
                logger.warning(
                    "the text encoder does not know %r: its vocabulary has it letter by letter%s",
                    word, f"; the nearest that it has is {close[0]!r}" if close else "",
                )  # fmt: skip

    def _whole_words(self) -> list[str]:
        """The words that the vocabulary has in one piece."""
        pieces = self.backend.get_vocab()
        # CLIP marks what ends a word, BERT what continues one.
        ends = [piece.removesuffix("</w>") for piece in pieces if piece.endswith("</w>")]
        words = ends or [piece for piece in pieces if not piece.startswith("##")]
        return sorted(word for word in words if len(word) > 1 and word.isalpha())

    def _fit(self, pieces: Iterator[_Piece]) -> tuple[list[_Piece], int | None]:
        """The pieces that fit between start and end token; the character where the text is cut."""
        kept: list[_Piece] = []
        room = self.max_length - 2
        for piece in pieces:
            room -= piece.vectors
            if room < 0:
                return kept, piece.start
            kept.append(piece)
        return kept, None

    def _warn(self, caption: Caption, lost: list[str]) -> None:
        new = set(lost) - self._told_lost
        self._told_lost |= new
        if new:
            logger.warning(
                "the learnable words %s fall off the end: only %d tokens fit of %r; shorten it",
                sorted(new),
                self.max_length,
                caption.text,
            )


def _positions(spans: Sequence[WordSpan], offsets: Offsets) -> dict[str, list[int]]:
    """For each word the positions of the tokens that touch one of its spans."""
    found: dict[str, list[int]] = {}
    for span in spans:
        hits = [i for i, (s, e) in enumerate(offsets) if s < span.end and span.start < e]
        if hits:
            found[span.word] = sorted({*found.get(span.word, ()), *hits})
    return found
