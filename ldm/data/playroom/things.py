"""The register of things: an object is one function and the few facts that placing it needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ldm.data.playroom.pen import Pen

Draw = Callable[[Pen], None]


@dataclass(frozen=True)
class Thing:
    """What the world knows about one kind of object. Lengths are in the object's own units."""

    name: str
    words: tuple[str, ...]
    kind: str
    extent: tuple[float, float]
    colour: str
    draw: Draw
    plural: str | None = None
    article: bool = True
    seat: float | None = None
    """Height at which something stands on it; None when nothing can."""
    seat_x: float = 0.0
    mouth: float | None = None
    """Height of the rim of a container; None for everything else."""
    torso: tuple[float, float, float] | None = None
    """Middle (x, y) and width of a body that can wear a jacket."""
    crown: tuple[float, float, float] | None = None
    """Middle (x, y) and width of a head that can wear a hat."""
    bite: tuple[float, float] | None = None
    """Where an eating animal holds its food."""
    sinks: float = 0.22
    """The share of its height that is hidden when it is in a container."""
    wears: str | None = None
    """"torso" or "crown": the part of a body that this garment goes on."""
    face: bool = False
    arms: bool = False
    rolls: bool = False
    loose: bool = True
    """False for what cannot be picked up and put on something (a house)."""


THINGS: dict[str, Thing] = {}


def thing(
    *words: str, kind: str, extent: tuple[float, float], colour: str, **facts: Any
) -> Callable[[Draw], Draw]:
    """Registers a drawing function as an object called by `words`; the first is its main word.

    Raises ValueError when the name is taken.
    """

    def register(draw: Draw) -> Draw:
        name = draw.__name__
        if name in THINGS:
            raise ValueError(
                f"an object called {name!r} is registered already; choose another name"
            )
        THINGS[name] = Thing(name, words or (name,), kind, extent, colour, draw, **facts)
        return draw

    return register
