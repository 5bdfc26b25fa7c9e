"""The playroom: a drawn world with captions in the papers' language and exact masks.

`PlayroomConcepts` is loaded on first use: unlike the rest it needs torch.
"""

from typing import Any

from ldm.data.playroom.captions import caption_for
from ldm.data.playroom.concepts import (
    concept_scenes,
    word_masks,
    write_concept_set,
)
from ldm.data.playroom.dataset import PlayroomScenes, scene
from ldm.data.playroom.objects import OBJECTS
from ldm.data.playroom.places import PLACES
from ldm.data.playroom.sampling import sample_spec
from ldm.data.playroom.scene import ObjectInstance, Scene, render_scene
from ldm.data.playroom.sets import CONCEPT_SETS, ConceptSet, get_concept_set
from ldm.data.playroom.spec import ObjectSpec, SceneSpec, parse_object, spec_from_names
from ldm.data.playroom.vocabulary import vocabulary, write_vocabulary

__all__ = [
    "CONCEPT_SETS",
    "OBJECTS",
    "PLACES",
    "ConceptSet",
    "ObjectInstance",
    "ObjectSpec",
    "PlayroomConcepts",
    "PlayroomScenes",
    "Scene",
    "SceneSpec",
    "caption_for",
    "concept_scenes",
    "get_concept_set",
    "parse_object",
    "render_scene",
    "sample_spec",
    "scene",
    "spec_from_names",
    "vocabulary",
    "word_masks",
    "write_concept_set",
    "write_vocabulary",
]


def __getattr__(name: str) -> Any:
    """Loads `PlayroomConcepts` when it is asked for."""
    if name == "PlayroomConcepts":
        from ldm.data.playroom.concept_dataset import PlayroomConcepts

        return PlayroomConcepts
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
