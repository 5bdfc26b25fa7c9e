"""Drawing random scenes of a split."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from ldm.data.playroom.colours import COLOURS
from ldm.data.playroom.objects import OBJECTS
from ldm.data.playroom.places import PLACES
from ldm.data.playroom.scans import SCANS
from ldm.data.playroom.spec import STATES, ObjectSpec, SceneSpec
from ldm.data.playroom.splits import (
    SPLITS,
    UNNAMED_OBJECTS,
    UNSEEN_OBJECTS,
    UNSEEN_PAIRS,
    UNSEEN_STATES,
    is_named,
)
from ldm.data.playroom.things import Thing

HOW_MANY = ((1, 0.33), (2, 0.42), (3, 0.16), (4, 0.06), (5, 0.03))
PLAIN_ADJECTIVES = ("rolling", "fluffy")
GROUND_COLOURS = ("red", "green", "blue", "white", "pink", "yellow", "purple")
P_SCAN, P_COUNT, P_STATE, P_NOWHERE = 0.04, 0.24, 0.22, 0.06

_DRAWN = tuple(name for name in OBJECTS if name not in UNSEEN_OBJECTS)
_NAMED = tuple(name for name in _DRAWN if is_named(name))
_SEATS = tuple(name for name in _DRAWN if OBJECTS[name].seat is not None)
_MOUTHS = tuple(name for name in _DRAWN if OBJECTS[name].mouth is not None)
ASIDE = ("and", "beside")
_FOOD = ("watermelon", "bananas", "cheese")
_FREE_STATES = tuple(state for state in STATES if state not in UNSEEN_STATES)


def _pick(rng: Random, names: tuple[str, ...], without: Sequence[str] = ()) -> str:
    """One of the names, or "" if none is left; unnamed objects come half as often as others."""
    left = [name for name in names if name not in without]
    for _ in range(20):
        name = left[int(rng.random() * len(left))] if left else ""
        if name not in UNNAMED_OBJECTS or rng.random() < 0.5:
            break
    return name


_PLAIN = ("watermelon", "bananas", "cheese", "spoon", "chair", "tree", "cactus", "basket",
          "skateboard", "taxi")  # fmt: skip
_WOODEN = ("chair", "box", "spoon", "boat", "robot", "house", "taxi", "duck", "pot")


def fitting_adjective(rng: Random, thing: Thing) -> str | None:
    """How a thing is made or moves: something that suits it and shows."""
    if rng.random() > 0.32:
        return None
    fitting = [] if thing.name in _PLAIN else ["striped", "patterned"]
    if thing.rolls:
        fitting += ["rolling"] * 4
    if thing.kind == "animal" or thing.name == "bear":
        fitting += ["fluffy"] * 3
    else:
        fitting += ["shiny"]
    if thing.name in _WOODEN:
        fitting += ["wooden"] * 2
    return rng.choice(fitting)


def _object(rng: Random, name: str, state: str | None = None, count: int = 1) -> ObjectSpec:
    """One object in a colour that training may draw it in; a quarter keep their own colour."""
    colour = None
    if rng.random() > 0.25:
        colour = rng.choice([c for c in COLOURS if (c, name) not in UNSEEN_PAIRS])
    adjective = fitting_adjective(rng, OBJECTS[name])
    return ObjectSpec(name, colour, None if state else adjective, state, count)


def _state(rng: Random, thing: Thing, touching: bool) -> str | None:
    """A state that the thing can be in: faces and arms only where there are some.

    What touches something else keeps its shape, lest the other hang in the air.
    """
    fitting = ["closed eyes"] * thing.face + ["arms raised"] * thing.arms
    if not touching:
        fitting += [state for state in _FREE_STATES if state not in ("closed eyes", "arms raised")]
    return rng.choice(fitting) if fitting else None


def _relation(rng: Random, names: list[str], pool: tuple[str, ...]) -> tuple[str, str]:
    """How the next object relates to the last one, and which object it is."""
    last = OBJECTS[names[-1]]
    draw = rng.random()
    if draw < 0.3 and last.loose:
        return "on", _pick(rng, tuple(n for n in _SEATS if n in pool), names)
    if draw < 0.42 and last.seat is not None:
        loose = tuple(n for n in pool if OBJECTS[n].loose)
        return "under", _pick(rng, loose, names)
    if draw < 0.55 and last.loose and last.extent[0] < 1.2:
        return "in", _pick(rng, tuple(n for n in _MOUTHS if n in pool), names)
    if draw < 0.62 and (last.torso or last.crown):
        return "wearing", _pick(rng, ("jacket",) if last.torso else ("hat",), names)
    if draw < 0.7 and last.bite:
        return "eating", _pick(rng, _FOOD, names)
    return rng.choice(ASIDE), _pick(rng, pool, names)


def names_and_relations(
    rng: Random, first: str, pool: tuple[str, ...], wanted: int
) -> tuple[list[str], tuple[str, ...]]:
    """Names and relations of `wanted` objects: at most one stack, the rest stands beside it."""
    names: list[str] = [first]
    relations: list[str] = []
    while len(names) < wanted:
        relation, name = _relation(rng, names, pool)
        if not name or (relation not in ASIDE and not set(relations) <= set(ASIDE)):
            relation, name = rng.choice(ASIDE), _pick(rng, pool, names)
        names.append(name)
        relations.append(relation)
    return names, tuple(relations)


def _count(rng: Random) -> int:
    draw, total = rng.random(), 0.0
    for number, share in HOW_MANY:
        total += share
        if draw < total:
            return number
    return 2


def sample_spec(rng: Random, split: str = "seen", n_objects: int | None = None) -> SceneSpec:
    """A random scene of a split (see `splits.SPLITS`), with `n_objects` kinds of objects if given.

    Raises ValueError for a split or a number of objects that does not exist.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; accepted are {', '.join(SPLITS)}")
    if n_objects is not None and not 1 <= n_objects <= 5:
        raise ValueError(f"a scene has one to five objects, not {n_objects}")
    seed = rng.getrandbits(40)
    if split == "seen" and n_objects is None and rng.random() < P_SCAN:
        return SceneSpec(scan=rng.choice(tuple(SCANS)), seed=seed)
    pool = _DRAWN if split == "seen" else _NAMED
    first, colour = _first(rng, split, pool)
    wanted = _count(rng) if n_objects is None else n_objects
    names, relations = names_and_relations(rng, first, pool, wanted)
    objects = [_object(rng, name) for name in names]
    if colour is not None:
        objects[0] = ObjectSpec(first, colour, objects[0].adjective)
    elif wanted <= 2:
        objects = _with_state(rng, objects, relations, split)
    place = None if rng.random() < P_NOWHERE else rng.choice(tuple(PLACES))
    ground = None
    if place == "table" and rng.random() < 0.75:
        ground = rng.choice(GROUND_COLOURS)
    return SceneSpec(tuple(objects), relations, place, ground, seed)


def plain_spec(rng: Random, split: str = "seen") -> SceneSpec:
    """A random scene of one or two things in plain colours: what a model learns first.

    No scans, states or counts, and of the adjectives only the papers' own "rolling" and "fluffy".
    """
    spec = sample_spec(rng, split, 1 if rng.random() < 0.5 else 2)
    things = tuple(
        replace(
            each,
            adjective=each.adjective if each.adjective in PLAIN_ADJECTIVES else None,
            state=None,
            count=1,
        )
        for each in spec.objects
    )
    return replace(spec, objects=things)


def _first(rng: Random, split: str, pool: tuple[str, ...]) -> tuple[str, str | None]:
    """The object that a scene begins with, and its colour where the split decides it."""
    if split == "pairs":
        colour, name = rng.choice(UNSEEN_PAIRS)
        return name, colour
    if split == "unnamed":
        return rng.choice(UNNAMED_OBJECTS), None
    if split == "unseen":
        return rng.choice(UNSEEN_OBJECTS), None
    return _pick(rng, pool), None


def _with_state(
    rng: Random, objects: list[ObjectSpec], relations: tuple[str, ...], split: str
) -> list[ObjectSpec]:
    """Some scenes show one kind of object several times, or something in a state."""
    first, alone = objects[0], len(objects) == 1
    if alone and rng.random() < P_COUNT:
        return [_object(rng, first.name, count=rng.choice((2, 3, 3, 4, 4, 5, 5)))]
    if rng.random() > P_STATE * (1.6 if alone else 0.8):
        return objects
    state = _state(rng, OBJECTS[first.name], not set(relations) <= set(ASIDE))
    walks_beside = state == "walking on a rope" and not alone
    if state is None or walks_beside or (split == "named" and not is_named(first.name, state)):
        return objects
    return [_object(rng, first.name, state), *objects[1:]]
