"""The pictures of a named set, to learn from and held back, with the truth about them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.data.playroom.concepts import concept_scenes, word_masks, write_concept_set
from ldm.data.playroom.dataset import to_float
from ldm.data.playroom.scene import Scene
from ldm.data.playroom.sets import ConceptSet, get_concept_set
from ldm.data.playroom.spec import ObjectSpec
from ldm.data.playroom.splits import is_drawn

#: Colours to ask for that a thing was not shown in.
NEW_COLOURS = ("blue", "red", "yellow", "green", "purple", "orange", "pink")


@dataclass(frozen=True)
class Pictures:
    """A set as one seed draws it: `shown` is learned from, `held` is not."""

    chosen: ConceptSet
    folder: Path
    shown: tuple[Scene, ...]
    held: tuple[Scene, ...]

    @property
    def things(self) -> dict[str, ObjectSpec]:
        """What each word is, of those that are objects."""
        objects = {one.name: one for one in self.chosen.spec.objects}
        return {w: objects[name] for w, name in self.chosen.shows.items() if name in objects}

    def truth(self, scene: Scene) -> dict[str, np.ndarray]:
        """Where each word is in one of the pictures, bool (h, w)."""
        return word_masks(self.chosen.name, scene)


def draw_set(folder: Path, name: str, seed: int, count: int, held: int, size: int) -> Pictures:
    """The pictures of a set; those to learn from are in a folder of their own under `folder`.

    Raises:
        ValueError: for an unknown set, or fewer pictures than it has things.
    """
    scenes = tuple(scene for _, scene in concept_scenes(name, size, count + held, seed))
    own = write_concept_set(folder / f"{name}-{size}-{count}-{seed}", name, size, count, seed)
    return Pictures(get_concept_set(name), own, scenes[:count], scenes[count:])


def images(scenes: Sequence[Scene]) -> Tensor:
    """Their pictures, (b, 3, size, size) in [-1, 1]."""
    arrays = [torch.from_numpy(to_float(scene.image)) for scene in scenes]
    return torch.stack(arrays).movedim(-1, 1).contiguous()


def without_adjectives(markup: str) -> str:
    """A sentence without what is bound to its words: "a <bear:toy> on a <skateboard:toy>"."""
    bare = re.sub(r"\[[^\[\]]*\]\s*", "", markup)
    return re.sub(r"\b([Aa])n(?= <[^aeiouAEIOU])", r"\1", bare)


def alone(markup: str, word: str) -> str:
    """The part of a sentence that is about one word: "a [brown] <bear:toy>".

    Raises:
        ValueError: when the sentence does not have the word.
    """
    mark = rf"<{re.escape(word.strip('<>'))}(?:[:|][^<>]*)?>"
    found = re.search(rf"(?:\ban? )?(?:\[[^\[\]]*\] )*{mark}", markup)
    if found is None:
        raise ValueError(f"the sentence {markup!r} does not have the word {word!r}")
    return found.group()


def new_colour(thing: ObjectSpec) -> str:
    """A colour that the thing does not have; one that training has drawn it in, if any."""
    others = [colour for colour in NEW_COLOURS if colour != thing.colour]
    return next((c for c in others if is_drawn(thing.name, c)), others[0])
