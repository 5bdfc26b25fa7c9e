"""Figures of learned words: how far they moved, what they are near, whether they look right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.evaluation.localisation import binary_mask, iou

#: Word -> true object (by the name of its word) -> overlap.
Overlaps = dict[str, dict[str, float]]
#: More words than this are not matched with each other's objects: their orders are too many.
MOST_MATCHED = 8


@dataclass(frozen=True)
class WordReport:
    """One row of the word table.

    `moved` is the distance from the start, `nearest` the known words with the highest cosine, and
    `iou` the overlap with the true mask, `iou_before` that of the words as they started.
    """

    word: str
    starts_from: str
    vectors: int
    bound_adjective: str | None
    norm_before: float
    norm_after: float
    moved: float
    nearest: tuple[str, ...] = ()
    iou: float | None = None
    iou_before: float | None = None


@torch.no_grad()
def report_words(
    manager: Any, encoder: Any, after: Overlaps | None = None, before: Overlaps | None = None
) -> list[WordReport]:
    """The word table: start, norms, distance moved, neighbours, overlap with true masks if known.

    Norms and distances of a word with several vectors are their means.
    """
    rows = []
    for word in manager.learnable:
        now = manager.string_to_param_dict[word.name].detach().float()
        start = manager.initial_embeddings[word.name].detach().float()
        rows.append(
            WordReport(
                word=word.name,
                starts_from=word.start,
                vectors=len(now),
                bound_adjective=word.adjective,
                norm_before=_round(start.norm(dim=-1).mean()),
                norm_after=_round(now.norm(dim=-1).mean()),
                moved=_round((now - start).norm(dim=-1).mean()),
                nearest=nearest_words(encoder, now.mean(0)),
                iou=_own(after, word.name),
                iou_before=_own(before, word.name),
            )
        )
    return rows


def _own(overlaps: Overlaps | None, word: str) -> float | None:
    value = (overlaps or {}).get(word, {}).get(word)
    return None if value is None else _round(value)


def _round(value: Tensor | float) -> float:
    return round(float(value), 4)


def nearest_words(encoder: Any, vector: Tensor, count: int = 3) -> tuple[str, ...]:
    """The whole words of the encoder's vocabulary with the highest cosine to `vector` (d,)."""
    table = encoder.token_embedding.weight.detach().float()
    tokenizer = encoder.require_tokenizer().backend
    order = F.cosine_similarity(table, vector.to(table)[None]).argsort(descending=True).tolist()
    special, found = set(tokenizer.all_special_ids), []
    for number in order[: 20 * count]:
        token = tokenizer.convert_ids_to_tokens(number)
        # Rows beyond the vocabulary have no text, and "##ing" is the end of a word only.
        if token is not None and number not in special and not token.startswith(("##", "[")):
            found.append(token.removesuffix("</w>"))
    return tuple(dict.fromkeys(found))[:count]


def word_overlaps(
    maps: Mapping[str, Tensor], truths: Sequence[Mapping[str, np.ndarray]], threshold: float = 0.5
) -> Overlaps:
    """Mean IoU of every word's mask with every true object, over the pictures that show both.

    Only words that are an object themselves are measured; a picture shows a word where its map is
    not empty.
    """
    objects = list(dict.fromkeys(name for truth in truths for name in truth))
    scores: Overlaps = {}
    for word in (name for name in objects if name in maps):
        stack = maps[word]
        masks = binary_mask(stack, threshold, _size(truths)).cpu().numpy()
        shown = stack.flatten(1).amax(1).gt(0).tolist()
        for thing in objects:
            pairs = [i for i, truth in enumerate(truths) if thing in truth and shown[i]]
            if pairs:
                mean = np.mean([iou(masks[i], truths[i][thing]) for i in pairs])
                scores.setdefault(word, {})[thing] = _round(float(mean))
    return scores


def _size(truths: Sequence[Mapping[str, np.ndarray]]) -> tuple[int, int]:
    shape = next(mask.shape for truth in truths for mask in truth.values())
    return shape[0], shape[1]


def mean_overlap(overlaps: Overlaps) -> float | None:
    """The plain mean IoU: each word with its own object."""
    own = [row[word] for word, row in overlaps.items() if word in row]
    return _round(float(np.mean(own))) if own else None


def best_matching(overlaps: Overlaps) -> tuple[float, dict[str, str]] | None:
    """The permuted mean IoU: words matched one to one with objects as suits them best.

    Words that found each other's objects score as high here as words that found their own. ``None``
    when there is nothing to match, or too much of it.
    """
    words = list(overlaps)
    if not words or len(words) > MOST_MATCHED:
        return None
    best: tuple[float, dict[str, str]] | None = None
    for order in permutations(words):
        values = [overlaps[w].get(thing, 0.0) for w, thing in zip(words, order, strict=True)]
        mean = _round(float(np.mean(values)))
        if best is None or mean > best[0]:
            best = mean, dict(zip(words, order, strict=True))
    return best
