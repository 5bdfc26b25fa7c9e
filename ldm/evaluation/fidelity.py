"""Whether a picture shows what its caption asked for, as the judge reads it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldm.data.playroom.captions import plural
from ldm.data.playroom.labels import BESIDE, pair_relations, shown_colour
from ldm.data.playroom.objects import OBJECTS
from ldm.data.playroom.places import PLACES
from ldm.data.playroom.spec import ObjectSpec, SceneSpec
from ldm.evaluation.judge import Judge, Reading
from ldm.prompts.spans import find_words

#: What is judged, in the order of tables.
ASPECTS = ("objects", "colours", "states", "relation", "count", "place")
#: How an object of a scene is to another: by their numbers in the scene.
Relations = Mapping[tuple[int, int], str]


@dataclass(frozen=True)
class Fidelity:
    """What is right about a picture; None for what was not asked.

    `objects`: everything asked for is there. `colours` and `states`: every object of which one is
    asked is there and has it. `relation`: every pair stands as asked ("and" asks
    for nothing). `count`: there are as many of each object as asked, one where no number was said.
    `nothing_else`: no other object is there.
    """

    objects: bool
    colours: bool | None
    states: bool | None
    relation: bool | None
    count: bool
    place: bool | None
    nothing_else: bool


def fidelity(spec: SceneSpec, reading: Reading, relations: Relations | None = None) -> Fidelity:
    """How a reading compares with the scene that was asked for.

    `relations` tells how pairs of the scene's objects stand in the picture (see `relations_of`);
    a pair that it lacks is wrong.
    """
    seen = [reading.find(one.name) for one in spec.objects]
    pairs = list(zip(spec.objects, seen, strict=True))
    wanted = asked_relations(spec)
    found = relations or {}
    names = {one.name for one in spec.objects}
    return Fidelity(
        objects=all(seen),
        colours=_all(
            thing is not None and thing.colour == shown_colour(one.name, one.colour)
            for one, thing in pairs
            if one.colour
        ),
        states=_all(
            thing is not None and thing.state == one.state for one, thing in pairs if one.state
        ),
        relation=_all(found.get(pair) == relation for pair, relation in wanted.items()),
        count=all(thing is not None and thing.count == one.count for one, thing in pairs),
        place=None if spec.place is None else reading.place == spec.place,
        nothing_else=all(thing.name in names for thing in reading.things),
    )


def _all(values: Iterable[bool]) -> bool | None:
    """Whether all values are true; None when there is none."""
    found = list(values)
    return all(found) if found else None


def asked_relations(spec: SceneSpec) -> dict[tuple[int, int], str]:
    """The relations between neighbours that a caption speaks of; "and" says nothing of them."""
    pairs = pair_relations(spec)
    wanted = {}
    for index, relation in enumerate(spec.relations):
        if relation == "and":
            continue
        if relation == BESIDE:
            wanted[index, index + 1] = BESIDE
            continue
        partner = next(i for i in range(index + 1) if pairs[i, index + 1] == relation)
        wanted[partner, index + 1] = relation
    return wanted


def said(spec: SceneSpec, caption: str, words: Sequence[str]) -> SceneSpec:
    """The part of a scene that its caption tells; `words` are the nouns it uses.

    Colours and places that a caption leaves out are left out here, so that they are not asked for.
    """
    objects = tuple(
        replace(one, colour=one.colour if _says_colour(one, caption, word) else None)
        for one, word in zip(spec.objects, words, strict=True)
    )
    place = spec.place
    if place is not None:
        phrases = [*PLACES[place].phrases, PLACES[place].ground]
        place = place if find_words(caption, phrases) else None
    return replace(spec, objects=objects, place=place)


def _says_colour(one: ObjectSpec, caption: str, word: str) -> bool:
    noun = plural(word, OBJECTS[one.name]) if one.count > 1 else word
    return bool(one.colour and find_words(caption, [f"{one.colour} {noun}"]))


def relations_of(
    judge: Judge, specs: Sequence[SceneSpec], readings: Sequence[Reading], images: Tensor
) -> list[dict[tuple[int, int], str]]:
    """How the pairs that captions speak of stand in the pictures (b,3,h,w), where both are seen."""
    rows, pairs, masks = [], [], []
    for row, (spec, reading) in enumerate(zip(specs, readings, strict=True)):
        for pair in asked_relations(spec):
            things = [reading.find(spec.objects[k].name) for k in pair]
            if all(things):
                rows.append(row)
                pairs.append(pair)
                masks.append(torch.stack([torch.from_numpy(t.mask) for t in things if t]))
    found: list[dict[tuple[int, int], str]] = [{} for _ in specs]
    if rows:
        both = torch.stack(masks)
        answers = judge.relation(images[rows], both[:, 0], both[:, 1])
        for row, pair, answer in zip(rows, pairs, answers, strict=True):
            found[row][pair] = answer
    return found


def score(
    judge: Judge, specs: Sequence[SceneSpec], readings: Sequence[Reading], images: Tensor
) -> list[Fidelity]:
    """How each of the pictures (b,3,h,w), read by the judge, compares with what was asked for."""
    relations = relations_of(judge, specs, readings, images)
    return [fidelity(*each) for each in zip(specs, readings, relations, strict=True)]
