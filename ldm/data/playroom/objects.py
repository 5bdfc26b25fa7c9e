"""All objects of the world: importing the themes fills the register."""

from ldm.data.playroom import objects_animals, objects_household, objects_vehicles
from ldm.data.playroom.things import THINGS, Thing, thing

__all__ = ["OBJECTS", "Thing", "get_thing", "objects_animals", "objects_household",
           "objects_vehicles", "thing"]  # fmt: skip

OBJECTS: dict[str, Thing] = dict(sorted(THINGS.items()))


def get_thing(name: str) -> Thing:
    """The object called `name` (or by one of its words).

    Raises ValueError listing the objects when there is none.
    """
    if name in OBJECTS:
        return OBJECTS[name]
    for one in OBJECTS.values():
        if name in one.words:
            return one
    raise ValueError(f"no object is called {name!r}; accepted are {', '.join(OBJECTS)}")
