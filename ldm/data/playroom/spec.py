"""What a scene consists of, as plain data: no picture, nothing random but a seed for the pose."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ldm.data.playroom.colours import COLOURS
from ldm.data.playroom.objects import get_thing
from ldm.data.playroom.places import get_place
from ldm.data.playroom.scans import SCANS

ADJECTIVES: tuple[str, ...] = ("fluffy", "striped", "patterned", "wooden", "shiny", "rolling")
STATES: tuple[str, ...] = (
    "frozen in ice",
    "burnt and melted",
    "crumpled",
    "closed eyes",
    "arms raised",
    "smiley face",
    "walking on a rope",
)
RELATIONS: tuple[str, ...] = ("and", "beside", "on", "under", "in", "wearing", "eating")
COUNTS: dict[int, str] = {2: "two", 3: "three", 4: "four", 5: "five"}


@dataclass(frozen=True)
class ObjectSpec:
    """One kind of object of a scene: what, in which colour, how made, in which state, how many.

    Raises ValueError naming the accepted values for anything the world does not have.
    """

    name: str
    colour: str | None = None
    adjective: str | None = None
    state: str | None = None
    count: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", get_thing(self.name).name)
        _check("colour", self.colour, (None, *COLOURS))
        _check("adjective", self.adjective, (None, *ADJECTIVES))
        _check("state", self.state, (None, *STATES))
        _check("count", self.count, (1, *COUNTS))


@dataclass(frozen=True)
class SceneSpec:
    """A whole scene: objects, how each relates to those before it, the place, a seed for the pose.

    `relations[i]` ties object i + 1 to the ones before it: "and" and "beside" put it at the side,
    "on", "under" and "in" read "the last one is on / under / in it", and "wearing" and "eating"
    belong to the last animal or toy with a body. `scan` replaces all of it by a medical scan.
    Raises ValueError for a relation that does not fit.
    """

    objects: tuple[ObjectSpec, ...] = ()
    relations: tuple[str, ...] = ()
    place: str | None = None
    ground_colour: str | None = None
    seed: int = 0
    scan: str | None = None

    def __post_init__(self) -> None:
        if self.scan is not None:
            _check("scan", self.scan, tuple(SCANS))
            return
        if not self.objects:
            raise ValueError("a scene needs at least one object, or a scan")
        if len(self.relations) != len(self.objects) - 1:
            raise ValueError(
                f"{len(self.objects)} objects need {len(self.objects) - 1} relations, "
                f"got {list(self.relations)}"
            )
        if self.place is not None:
            get_place(self.place)
        _check("ground_colour", self.ground_colour, (None, *COLOURS))
        for relation in self.relations:
            _check("relation", relation, RELATIONS)


def _check(what: str, value: object, accepted: Sequence[object]) -> None:
    if value not in accepted:
        raise ValueError(
            f"{what} {value!r} is unknown; accepted are {', '.join(map(str, accepted))}"
        )


def parse_object(text: str) -> ObjectSpec:
    """The object that a short description names: "brown fluffy bear", "three red balls".

    A state may follow after a comma: "brown bear, frozen in ice". Raises ValueError for words that
    the world does not have.
    """
    head, _, state = text.partition(",")
    words = head.split()
    facts: dict[str, Any] = {"state": state.strip() or None}
    numbers = {word: number for number, word in COUNTS.items()}
    while len(words) > 1:
        if words[0] in numbers:
            facts["count"] = numbers[words[0]]
        elif words[0] in COLOURS:
            facts["colour"] = words[0]
        elif words[0] in ADJECTIVES:
            facts["adjective"] = words[0]
        else:
            break
        words = words[1:]
    name = " ".join(words)
    if facts.get("count", 1) != 1 and name.endswith("s"):
        try:
            get_thing(name)
        except ValueError:
            name = name[:-1]
    return ObjectSpec(name, **facts)


def spec_from_names(
    names: Sequence[str],
    relations: Sequence[str] | str = "and",
    place: str | None = None,
    ground_colour: str | None = None,
    seed: int = 0,
) -> SceneSpec:
    """A scene from short descriptions: `["brown bear", "rolling skateboard"], "on", "snow"`.

    One relation given as a string holds between all neighbours.
    """
    objects = tuple(parse_object(name) for name in names)
    if isinstance(relations, str):
        relations = [relations] * (len(objects) - 1)
    return SceneSpec(objects, tuple(relations), place, ground_colour, seed)
