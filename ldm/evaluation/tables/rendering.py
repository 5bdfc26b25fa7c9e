"""Do words render what they should? Prompts in new sentences, pictures of them, and their score."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.data.playroom.colours import COLOURS
from ldm.data.playroom.spec import ObjectSpec
from ldm.evaluation.tables.bank import Drawing
from ldm.evaluation.tables.pictures import new_colour
from ldm.prompts.sentence import Sentence
from ldm.prompts.spans import Caption, find_words

#: Sentences that put two things in a relation.
RELATED = "a photo of a {first} {relation} a {second}"


@dataclass(frozen=True)
class Ask:
    """A picture to draw and what it should show: the thing of `word`, in `colour` if it is asked.

    Of a `relation` the drawing should show `things` in it, the first to the second.
    """

    drawing: Drawing
    word: str = ""
    colour: str | None = None
    relation: str = ""
    things: tuple[str, ...] = ()


def noise_seed(*facts: Any) -> int:
    """The seed of a picture's noise: the same for all arms that are asked the same."""
    return zlib.crc32(":".join(map(str, facts)).encode())


def asks_of(
    run: int, seed: int, sentence: Sentence, things: Mapping[str, ObjectSpec], options: Any
) -> list[Ask]:
    """The pictures that a run is asked to draw of each of its words.

    In a prompt, ``{word}`` is the word, ``{adjective}`` what is bound to it in the sentence (if
    anything) and ``{colour}`` one that it was not shown in. Of the learned words only these enter a
    prompt: with MCPL-all, "a" and "on" are the known ones.
    """
    definitions = {word.name: word for word in sentence.words}
    asks = []
    for word, thing in things.items():
        adjective = definitions[word].adjective or ""
        fresh = new_colour(thing)
        for number, text in enumerate(options["prompts"]):
            colour = fresh if "{colour}" in text else adjective if "{adjective}" in text else None
            prompt = text.format(word=word, adjective=adjective, colour=fresh)
            prompt = " ".join(prompt.split())
            learned = [word, *([adjective] if adjective in definitions else [])]
            caption = Caption(prompt, find_words(prompt, learned))
            for sample in range(options["samples"]):
                drawing = Drawing(run, caption, noise_seed(seed, word, number, sample))
                asks.append(Ask(drawing, word, colour if colour in COLOURS else None))
    return asks


def relation_asks(run: int, seed: int, sentence: Sentence, options: Any) -> list[Ask]:
    """Pictures of the set's two things in each relation, said with the learned word for it."""
    first, second = (word for word in sentence.words if word.adjective)
    learned = {word.name for word in sentence.words}
    asks = []
    for relation in options["relations"]:
        spoken = f"<{relation}>" if f"<{relation}>" in learned else "<relation>"
        text = RELATED.format(
            first=f"{first.adjective} {first.name}",
            second=f"{second.adjective} {second.name}",
            relation=spoken if spoken in learned else relation,
        )
        caption = Caption(text, find_words(text, learned))
        for sample in range(options["samples"]):
            drawing = Drawing(run, caption, noise_seed(seed, relation, sample))
            names = (first.name.strip("<>"), second.name.strip("<>"))
            asks.append(Ask(drawing, relation=relation, things=names))
    return asks


def score(
    asks: Sequence[Ask], readings: Sequence[Any], things: Mapping[str, ObjectSpec]
) -> dict[str, float]:
    """Shares of pictures whose biggest thing is right.

    `object` is right when it is the word's own, `object_permuted` when it is that of the word that
    suits best (words that came out swapped score as others), `colour` when it has the colour that
    was asked for, `rendered` when object and colour are right.
    """
    names = {word: thing.name for word, thing in things.items()}
    seen: dict[str, list[str]] = {word: [] for word in names}
    colours, both = [], []
    for ask, reading in zip(asks, readings, strict=True):
        biggest = reading.things[0] if reading.things else None
        seen[ask.word].append(biggest.name if biggest else "")
        right = biggest is not None and biggest.name == names[ask.word]
        fits = biggest is not None and ask.colour in (None, biggest.colour)
        if ask.colour is not None:
            colours.append(fits)
        both.append(right and fits)
    shares = {
        word: {other: float(np.mean([n == names[other] for n in found])) for other in names}
        for word, found in seen.items()
    }
    orders = [
        float(np.mean([shares[word][other] for word, other in zip(names, order, strict=True)]))
        for order in permutations(names)
    ]
    values = {
        "object": float(np.mean([shares[word][word] for word in names])),
        "object_permuted": max(orders),
        "rendered": float(np.mean(both)),
    }
    return {**values, "colour": float(np.mean(colours))} if colours else values


def score_relations(
    judge: Any, asks: Sequence[Ask], readings: Sequence[Any], drawn: Tensor
) -> dict[str, float]:
    """Share of pictures that show both things (`both`), and in the right relation (`relation`)."""
    rows, masks = [], []
    for row, (ask, reading) in enumerate(zip(asks, readings, strict=True)):
        found = {thing.name: thing.mask for thing in reversed(reading.things)}
        if all(name in found for name in ask.things):
            rows.append(row)
            masks.append([torch.as_tensor(found[name]) for name in ask.things])
    right = []
    if rows:
        first, second = (torch.stack(side) for side in zip(*masks, strict=True))
        told = judge.relation(drawn[rows], first, second)
        right = [asks[row].relation == said for row, said in zip(rows, told, strict=True)]
    return {"both": len(rows) / len(asks), "relation": sum(right) / len(asks)}
