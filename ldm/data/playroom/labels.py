"""What is to be read from a picture: the truth of a drawn scene as class numbers and masks.

The order of every list is that of the world itself, so a network that reads pictures and the one
that draws them can never disagree about names.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np

from ldm.data.playroom.colours import COLOURS, NATURAL
from ldm.data.playroom.dataset import SLOTS, to_float
from ldm.data.playroom.objects import OBJECTS
from ldm.data.playroom.places import NOWHERE, PLACES
from ldm.data.playroom.sampling import (
    ASIDE,
    GROUND_COLOURS,
    fitting_adjective,
    names_and_relations,
)
from ldm.data.playroom.scene import ObjectInstance, Scene, render_scene
from ldm.data.playroom.spec import ADJECTIVES, COUNTS, STATES, ObjectSpec, SceneSpec

OWN = "own"
"""The colour of what has its natural colour, where that is none of the named ones."""
ALIKE = 35.0
"""Colours nearer than this, in RGB, are one to the eye: a watermelon's own pink is red."""
MOST = 5
"""As many kinds of objects as a scene can have."""
LEAST_AREA = 0.006
"""The share of the picture below which an object cannot be recognised."""
LEAST_VISIBLE = 0.35
"""The share of an object that has to be uncovered for it to be recognised."""
MOST_KEPT = 12_000
"""Scenes that `LabelledScenes` keeps in memory, of 20 kB each."""
UNKNOWN = -1
"""In place of a class: nothing to be learned or judged here."""

BESIDE = "beside"
OPPOSITES: dict[str, str] = {
    "on": "under",
    "under": "on",
    "in": "around",
    "around": "in",
    "wearing": "worn by",
    "worn by": "wearing",
    "eating": "eaten by",
    "eaten by": "eating",
    BESIDE: BESIDE,
}
"""Every relation that can be read of an ordered pair, and what it is for the pair turned round.

"and" and "beside" look the same: both are read as "beside".
"""

NAMES: tuple[str, ...] = tuple(OBJECTS)
COLOUR_NAMES: tuple[str, ...] = (*COLOURS, OWN)
STATE_NAMES: tuple[str | None, ...] = (None, *STATES)
ADJECTIVE_NAMES: tuple[str | None, ...] = (None, *ADJECTIVES)
COUNT_VALUES: tuple[int, ...] = (1, *COUNTS)
RELATION_NAMES: tuple[str, ...] = tuple(OPPOSITES)
PLACE_NAMES: tuple[str, ...] = (*PLACES, NOWHERE.name)

_FACES = ("closed eyes", "arms raised", "smiley face")
_ALONE = "walking on a rope"
_HOW_MANY = ((1, 0.44), (2, 0.34), (3, 0.13), (4, 0.05), (5, 0.04))


def shown_colour(name: str, colour: str | None, adjective: str | None = None) -> str:
    """The colour word for what an object looks like: its colour, or what its own colour is called.

    `OWN` when no named colour comes close to its own one.
    """
    own = "straw" if adjective == "wooden" else OBJECTS[name].colour
    colour = colour or own
    if colour in COLOURS:
        return colour
    tone = np.array(NATURAL[colour], float)
    distances = {each: np.linalg.norm(tone - rgb) for each, rgb in COLOURS.items()}
    nearest = min(distances, key=lambda each: distances[each])
    return nearest if distances[nearest] < ALIKE else OWN


def recognisable(one: ObjectInstance) -> bool:
    """Whether enough of an object can be seen to know what it is."""
    return one.mask.mean() >= LEAST_AREA and one.visible >= LEAST_VISIBLE


def pair_relations(spec: SceneSpec) -> dict[tuple[int, int], str]:
    """How each object is to each other one, for all ordered pairs; `OPPOSITES` lists the words."""
    pairs = {
        (i, j): BESIDE for i in range(len(spec.objects)) for j in range(len(spec.objects)) if i != j
    }
    for index, relation in enumerate(spec.relations):
        if relation in ASIDE:
            continue
        first = index
        if relation in ("wearing", "eating"):
            first = _bearer(spec, index)
        pairs[first, index + 1] = relation
        pairs[index + 1, first] = OPPOSITES[relation]
    return pairs


def _bearer(spec: SceneSpec, index: int) -> int:
    """Who wears or eats what comes after object `index`: the first of its stack with a body."""
    start = index
    while start and spec.relations[start - 1] not in ASIDE:
        start -= 1
    for each in range(start, index + 1):
        thing = OBJECTS[spec.objects[each].name]
        if thing.torso or thing.crown or thing.bite:
            return each
    return index


@dataclass(frozen=True)
class Targets:
    """The truth of a scene as numbers; per object -1 where too little of it can be seen.

    `labels` uint8 (size, size): 0 for the background, 1 + a number in `NAMES`; `instances` likewise
    with 1 + the object's number in the scene. `things`, `colours`, `states`, `counts`, `adjectives`
    (5,) and `relations` (5, 5) are class numbers; `absent` (objects,) tells which names cannot be
    seen at all.
    """

    labels: np.ndarray
    instances: np.ndarray
    things: np.ndarray
    colours: np.ndarray
    states: np.ndarray
    counts: np.ndarray
    adjectives: np.ndarray
    relations: np.ndarray
    absent: np.ndarray
    place: int


def targets(scene: Scene) -> Targets:
    """What should be read from a drawn scene. Raises ValueError for a scan."""
    if scene.spec.scan is not None:
        raise ValueError("a scan has no objects to read; give a scene")
    shape = scene.image.shape[:2]
    labels, instances = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    facts = np.full((5, MOST), UNKNOWN, np.int64)
    relations = np.full((MOST, MOST), UNKNOWN, np.int64)
    absent = np.ones(len(NAMES), bool)
    seen = [recognisable(one) for one in scene.objects]
    for k, one in enumerate(scene.objects):
        kind = NAMES.index(one.name)
        labels[one.mask], instances[one.mask] = kind + 1, k + 1
        absent[kind] &= not one.mask.any()
        if seen[k]:
            facts[:, k] = (
                kind,
                COLOUR_NAMES.index(shown_colour(one.name, one.colour, one.adjective)),
                STATE_NAMES.index(one.state),
                COUNT_VALUES.index(one.count),
                ADJECTIVE_NAMES.index(one.adjective),
            )
    for (i, j), relation in pair_relations(scene.spec).items():
        if seen[i] and seen[j]:
            relations[i, j] = RELATION_NAMES.index(relation)
    place = PLACE_NAMES.index(scene.place or NOWHERE.name)
    things, colours, states, counts, adjectives = facts
    return Targets(
        labels, instances, things, colours, states, counts, adjectives, relations, absent, place
    )


def balanced_spec(rng: Random, most: int = MOST) -> SceneSpec:
    """A random scene of the whole world in which nothing is rare: what a judge learns from.

    It has at most `most` kinds of objects.

    Unlike `sampling.sample_spec` it knows no splits: unnamed and unseen objects, states and pairs
    of colour and object come as often as others; states and counts come often.
    """
    draw, wanted = rng.random(), 1
    for wanted, share in _HOW_MANY:  # noqa: B007 - the number that is left when it breaks
        draw -= share
        if draw < 0:
            break
    wanted = min(wanted, most)
    names, relations = names_and_relations(rng, rng.choice(NAMES), NAMES, wanted)
    objects = [_object(rng, name) for name in names]
    chosen = rng.randrange(len(objects))
    if wanted <= 2 and set(relations) <= set(ASIDE) and rng.random() < 0.42 / wanted:
        count = rng.choice(tuple(COUNTS)) if wanted == 1 else rng.choice((2, 3))
        objects[chosen] = _object(rng, names[chosen], count=count)
    elif wanted <= 2 and rng.random() < 0.75:
        objects[chosen] = _object(rng, names[chosen], state=_state(rng, wanted, relations))
    place = rng.choice(PLACE_NAMES)
    ground = rng.choice(GROUND_COLOURS) if place == "table" and rng.random() < 0.75 else None
    return SceneSpec(
        tuple(objects),
        relations,
        None if place == NOWHERE.name else place,
        ground,
        rng.getrandbits(40),
    )


def _state(rng: Random, wanted: int, relations: tuple[str, ...]) -> str:
    """Any state; what touches something else keeps its shape, and only what is alone walks."""
    fitting = STATES if set(relations) <= set(ASIDE) else _FACES
    return rng.choice([state for state in fitting if wanted == 1 or state != _ALONE])


def _object(rng: Random, name: str, *, state: str | None = None, count: int = 1) -> ObjectSpec:
    """One object in any colour; a fifth keep their own."""
    colour = None if rng.random() < 0.2 else rng.choice(tuple(COLOURS))
    adjective = fitting_adjective(rng, OBJECTS[name])
    return ObjectSpec(name, colour, None if state else adjective, state, count)


class LabelledScenes:
    """Random scenes of the whole world with what is to be read from them, by number or step key.

    An example is {"image": float32 (size, size, 3) in [-1, 1]} and the entries of `Targets`. By
    step key, half of the pictures are mirrored; with `reuse` = n only one of n slots of a batch
    shows a new scene, the others one of the last `window` steps, kept so that it need not be drawn
    again. In the first `alone` steps there is one kind of object in each scene, which is where
    learning to tell them apart is quickest.
    """

    keyed = True

    def __init__(
        self,
        size: int = 64,
        seed: int = 0,
        length: int = 100_000,
        *,
        alone: int = 0,
        reuse: int = 1,
        window: int = 200,
    ):
        if size < 16:
            raise ValueError(f"size is at least 16 pixels, got {size}")
        if min(reuse, window) < 1:
            raise ValueError(f"reuse={reuse} and window={window} must be at least 1")
        self.size, self.seed, self.length, self.alone = size, seed, length, alone
        self.reuse, self.window = reuse, window
        self._kept: OrderedDict[int, tuple[np.ndarray, Targets]] = OrderedDict()

    def __len__(self) -> int:
        return self.length

    def scene(self, number: int) -> Scene:
        """Scene `number`: the same picture anywhere."""
        most = 1 if number < self.alone * SLOTS else MOST
        return render_scene(balanced_spec(Random(f"labels:{self.seed}:{number}"), most), self.size)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        if isinstance(key, (int, np.integer)):
            if not 0 <= key < self.length:
                raise IndexError(f"scene {key} of {self.length}")
            image, truth = self._drawn(int(key))
            return {"image": to_float(image), **vars(truth)}
        rng = Random(f"reuse:{self.seed}:{key.step}:{key.slot}")
        step, turn = key.step, key.slot % self.reuse
        if turn:
            step = max(0, step - rng.randrange(1, self.window + 1))
        image, truth = self._drawn(step * SLOTS + key.slot - turn)
        if rng.random() < 0.5:
            image, truth = image[:, ::-1], _mirrored(truth)
        return {"image": to_float(image), **vars(truth)}

    def _drawn(self, number: int) -> tuple[np.ndarray, Targets]:
        """Picture and truth of a scene, from memory if it was drawn lately."""
        if number in self._kept:
            return self._kept[number]
        drawn = self.scene(number)
        found = drawn.image, targets(drawn)
        if self.reuse > 1:
            self._kept[number] = found
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return found


def _mirrored(truth: Targets) -> Targets:
    labels, instances = truth.labels[:, ::-1].copy(), truth.instances[:, ::-1].copy()
    return replace(truth, labels=labels, instances=instances)
