"""Which token of a changed prompt takes over the attention of which token of the source prompt.

The alignments of prompt-to-prompt (Hertz et al. 2022): *replace* pairs the words of two equally
long prompts, *refine* finds the tokens they have in common. Both work on the tokens that the text
encoder sees, so a learned word, of however many vectors, is a word like any other.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ldm.modules.encoders.tokens import NOWHERE, Tokens
from ldm.prompts.spans import Caption, find_words

#: A share of the sampling: until when, or from when until when.
Window = float | Sequence[float]
#: One window for all words, or some words with their own (the others under ``default_``).
Windows = Window | Mapping[str, Window]

DEFAULT = "default_"
_ARTICLES = frozenset({"a", "an", "the"})


@dataclass(frozen=True)
class PromptTokens:
    """A prompt as the text encoder sees it.

    `ids` are the tokens from the start to the end token, a learned word once for each of its
    vectors; `words` the space-separated words and the positions of their tokens; `size` how many
    positions, padding included, the context has.
    """

    text: str
    ids: tuple[int, ...]
    words: tuple[tuple[str, tuple[int, ...]], ...]
    size: int
    tokens: Tokens = field(repr=False)

    def positions(self, word: str | int) -> list[int]:
        """Where the tokens of `word` are: of every occurrence, or of the word of that number.

        Words are compared as they are written; what is no whole word of the prompt (a phrase, a
        word before a comma) is looked for in the text. Empty when it is not there.
        """
        if isinstance(word, int):
            return list(self.words[word][1])
        found = {at for spelt, positions in self.words if spelt == word for at in positions}
        if not found:
            spans = find_words(self.text, [word])
            found = {at for span in spans for at in self.tokens.at(0, span.start, span.end)}
        return sorted(found)


def read_prompt(encoder: Any, prompt: str | Caption, manager: Any = None) -> PromptTokens:
    """`prompt` with the positions of its words, as `encoder` sees it with the words of `manager`.

    `encoder` is a text encoder, `manager` the embedding manager of learned words, if there is one.
    """
    words = {} if manager is None else manager.words
    caption = Caption.of(prompt, words)
    tokens = encoder.tokenize([caption], words)
    ids = tokens.ids if manager is None else manager.expand(tokens.ids.to(encoder.device))
    last = max((i for i, at in enumerate(tokens.offsets[0]) if at != NOWHERE), default=0)
    spelt = [
        (caption.text[start:end], tuple(tokens.at(0, start, end)))
        for start, end in _word_spans(caption)
    ]
    row = ids[0].tolist()
    return PromptTokens(caption.text, tuple(row[: last + 2]), tuple(spelt), len(row), tokens)


def _word_spans(caption: Caption) -> list[tuple[int, int]]:
    """The space-separated words of a caption; a learned word stays whole if it has a space."""
    spans: list[tuple[int, int]] = []
    for match in re.finditer(r"\S+", caption.text):
        start, end = match.span()
        if spans and start < spans[-1][1]:
            continue
        for span in caption.learnable:
            if span.start < end < span.end:
                end = re.compile(r"\S*").match(caption.text, span.end).end()  # type: ignore[union-attr]
        spans.append((start, end))
    return spans


# Alignments --------------------------------------------------------------------------------------


def replacement_mapper(
    source: PromptTokens, target: PromptTokens, *, released: bool = False
) -> Tensor:
    """How the attention of source tokens is handed to target tokens: (source, target).

    Word i of the one prompt stands for word i of the other. Words of equally many tokens are
    paired token by token; otherwise every token of the source word is shared out equally. Rows sum
    to one, so that what every pixel looks at still does after the move.

    With `released`, tokens behind a word that changed its number of tokens are read from the same
    place in the source, not from the same word, as in the public code.

    Raises:
        ValueError: when the prompts have different numbers of words.
    """
    if len(source.words) != len(target.words):
        raise ValueError(
            f"{source.text!r} has {len(source.words)} words and {target.text!r} "
            f"{len(target.words)}: 'replace' pairs words one by one; use 'refine' for prompts of "
            "different lengths"
        )
    size = source.size
    mapper = torch.zeros(size, size)
    i = j = 0
    for (old, here), (new, there) in zip(source.words, target.words, strict=True):
        if old == new or not here or not there:
            continue
        _pair(mapper, i, j, here[0] - i)
        if len(here) == len(there):
            _pair(mapper, here[0], there[0], len(here))
        else:
            mapper[here[0] : here[-1] + 1, there[0] : there[-1] + 1] = 1 / len(there)
        i, j = here[-1] + 1, there[-1] + 1
    rest = size - max(i, j)
    _pair(mapper, j if released else i, j, rest)
    if not released:
        # The padding that has no counterpart: its attention must go somewhere.
        mapper[i + rest :, -1] = 1
    return mapper


def _pair(mapper: Tensor, i: int, j: int, count: int) -> None:
    """Source tokens from `i` on belong to target tokens from `j` on, one by one."""
    mapper[i : i + count, j : j + count].diagonal().fill_(1)


def refinement_mapper(
    source: PromptTokens, target: PromptTokens, *, released: bool = False
) -> tuple[Tensor, Tensor]:
    """For every target token the source token it continues, or -1, and whether it has one: (n,).

    The longest common subsequence of the tokens. Tokens behind the end of the target are padding,
    and stay with the source's padding. With `released` they take the same place in the source,
    which may be one of its words, as in the public code.
    """
    matched = _common(source.ids, target.ids)
    behind = torch.arange(len(target.ids), target.size)
    if not released:
        behind = behind.clamp(min=min(len(source.ids), source.size - 1))
    mapper = torch.cat([torch.tensor(matched, dtype=torch.long), behind])
    return mapper, (mapper >= 0).float()


def mapper_matrix(mapper: Tensor) -> Tensor:
    """The matrix (source, target) of a refinement mapper (n,); a column without source is zero."""
    columns = torch.nn.functional.one_hot(mapper.clamp(min=0), len(mapper)).float()
    return (columns * (mapper >= 0)[:, None]).T


def _common(source: Sequence[Any], target: Sequence[Any]) -> list[int]:
    """For each item of `target` the index of the same item in `source`, or -1; order is kept.

    Of several longest matchings the one that leaves late items of `target` unmatched.
    """
    rows, columns = len(source), len(target)
    best = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            same = best[i - 1][j - 1] + 1 if source[i - 1] == target[j - 1] else 0
            best[i][j] = max(best[i][j - 1], best[i - 1][j], same)
    matched = [-1] * columns
    i, j = rows, columns
    while i and j:
        if best[i][j] == best[i][j - 1]:
            j -= 1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            matched[j] = i
    return matched


def changed_words(source: PromptTokens, target: PromptTokens) -> tuple[list[int], list[int]]:
    """The token positions of the words that only the source has, and of those only the target has.

    Articles count only where nothing else changed.
    """
    old = [word.lower().strip(",.;:!?") for word, _ in source.words]
    new = [word.lower().strip(",.;:!?") for word, _ in target.words]
    matched = _common(old, new)
    lost = [k for k in range(len(old)) if k not in matched]
    won = [k for k, i in enumerate(matched) if i < 0]
    return _telling(source, old, lost), _telling(target, new, won)


def _telling(prompt: PromptTokens, words: Sequence[str], chosen: Sequence[int]) -> list[int]:
    kept = [k for k in chosen if words[k] not in _ARTICLES] or chosen
    return sorted({at for k in kept for at in prompt.words[k][1]})


# Per word ----------------------------------------------------------------------------------------


def replacement_windows(targets: Sequence[PromptTokens], steps: int, windows: Windows) -> Tensor:
    """In which steps which target tokens take over attention: (steps + 1, prompts, 1, 1, tokens).

    A window is a share of the sampling: 0.8 is the first 80 %, (0.2, 0.6) what lies between.
    A mapping gives words windows of their own; the others have that of ``default_``, or all steps.

    Raises:
        ValueError: for a window outside [0, 1], or a word that no prompt has.
    """
    own = dict(windows) if isinstance(windows, Mapping) else {DEFAULT: windows}
    default = own.pop(DEFAULT, (0.0, 1.0))
    alphas = torch.zeros(steps + 1, len(targets), 1, 1, targets[0].size)
    start, stop = window_steps(default, steps + 1)
    alphas[start:stop] = 1
    for word, window in own.items():
        start, stop = window_steps(window, steps + 1)
        places = [target.positions(word) for target in targets]
        if not any(places):
            raise _absent(word, [target.text for target in targets])
        for row, found in enumerate(places):
            alphas[:, row, :, :, found] = 0
            alphas[start:stop, row, :, :, found] = 1
    return alphas


def window_steps(window: Window, steps: int) -> tuple[int, int]:
    """The first step of a window (see `replacement_windows`), and the first one behind it.

    Raises:
        ValueError: unless 0 <= start <= end <= 1.
    """
    pair = (0.0, window) if isinstance(window, int | float) else tuple(window)
    if len(pair) != 2 or not 0 <= pair[0] <= pair[1] <= 1:
        raise ValueError(
            f"the window {window!r} is no part of the sampling: give an end between 0 and 1, or "
            "(start, end) with 0 <= start <= end <= 1"
        )
    return int(pair[0] * steps), int(pair[1] * steps)


def equalizer(prompt: PromptTokens, factors: Mapping[str, float]) -> Tensor:
    """What the attention to each token of `prompt` is multiplied by: (n,), one where not named.

    Raises:
        ValueError: for a word that the prompt does not have.
    """
    scales = torch.ones(prompt.size)
    for word, factor in factors.items():
        places = prompt.positions(word)
        if not places:
            raise _absent(word, [prompt.text])
        scales[places] = float(factor)
    return scales


def _absent(word: str, texts: Sequence[str]) -> ValueError:
    quoted = " nor in ".join(repr(text) for text in texts)
    return ValueError(f"the word {word!r} is not in {quoted}: give a word as the prompt spells it")
