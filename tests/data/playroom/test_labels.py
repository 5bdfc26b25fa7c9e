from random import Random

import numpy as np
import pytest

from ldm.data.playroom import labels
from ldm.data.playroom.labels import (
    BESIDE,
    COLOUR_NAMES,
    COUNT_VALUES,
    NAMES,
    OPPOSITES,
    OWN,
    PLACE_NAMES,
    RELATION_NAMES,
    STATE_NAMES,
    UNKNOWN,
    LabelledScenes,
    balanced_spec,
    pair_relations,
    shown_colour,
    targets,
)
from ldm.data.playroom.scene import render_scene
from ldm.data.playroom.spec import SceneSpec, spec_from_names
from ldm.data.playroom.splits import UNSEEN_OBJECTS, UNSEEN_PAIRS, UNSEEN_STATES
from ldm.data.steps import StepKey


def test_targets_say_what_was_drawn():
    spec = spec_from_names(["brown bear, closed eyes", "red ball"], "beside", "snow", seed=3)
    truth = targets(render_scene(spec))
    assert [NAMES[k] for k in truth.things[:2]] == ["bear", "ball"]
    assert [COLOUR_NAMES[k] for k in truth.colours[:2]] == ["brown", "red"]
    assert [STATE_NAMES[k] for k in truth.states[:2]] == ["closed eyes", None]
    assert [COUNT_VALUES[k] for k in truth.counts[:2]] == [1, 1]
    assert RELATION_NAMES[truth.relations[0, 1]] == BESIDE
    assert PLACE_NAMES[truth.place] == "snow"
    assert (truth.things[2:] == UNKNOWN).all()
    assert sorted(np.flatnonzero(~truth.absent)) == sorted(truth.things[:2])


def test_masks_agree_with_the_scene():
    scene = render_scene(spec_from_names(["dog", "chair"], "on", seed=1))
    truth = targets(scene)
    for number, one in enumerate(scene.objects):
        assert np.array_equal(truth.instances == number + 1, one.mask)
        assert np.array_equal(truth.labels == NAMES.index(one.name) + 1, one.mask)


def test_counts_and_scans():
    truth = targets(render_scene(spec_from_names(["four green mugs"])))
    assert COUNT_VALUES[truth.counts[0]] == 4
    with pytest.raises(ValueError, match="scan"):
        targets(render_scene(SceneSpec(scan="cavity")))


def test_what_is_hardly_visible_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(labels, "LEAST_AREA", 2.0)
    truth = targets(render_scene(spec_from_names(["dog"])))
    assert (truth.things == UNKNOWN).all()
    assert not truth.absent[NAMES.index("dog")], "it is not absent either"


@pytest.mark.parametrize(
    ("name", "colour", "adjective", "shown"),
    [
        ("bear", "green", None, "green"),
        ("watermelon", None, None, "red"),
        ("cactus", None, None, "green"),
        ("box", None, None, OWN),
        ("robot", None, "wooden", OWN),
    ],
)
def test_own_colours_are_called_by_what_they_look_like(name, colour, adjective, shown):
    assert shown_colour(name, colour, adjective) == shown


@pytest.mark.parametrize(
    ("names", "relations", "expected"),
    [
        (["dog", "chair"], ["on"], {(0, 1): "on"}),
        (["bananas", "basket"], ["in"], {(0, 1): "in"}),
        (["hamster", "watermelon"], ["eating"], {(0, 1): "eating"}),
        (["bear", "skateboard", "jacket"], ["on", "wearing"], {(0, 1): "on", (0, 2): "wearing"}),
        (["ball", "mug"], ["and"], {}),
    ],
)
def test_relations_of_pairs(names, relations, expected):
    pairs = pair_relations(spec_from_names(names, relations))
    for pair, relation in pairs.items():
        turned = expected.get(pair[::-1])
        assert relation == expected.get(pair, OPPOSITES[turned] if turned else BESIDE)


def test_opposites_are_mutual():
    assert all(OPPOSITES[OPPOSITES[relation]] == relation for relation in OPPOSITES)


def test_balanced_scenes_hold_back_nothing():
    specs = [balanced_spec(Random(seed)) for seed in range(1500)]
    objects = [one for spec in specs for one in spec.objects]
    assert {one.name for one in objects} == set(NAMES) >= set(UNSEEN_OBJECTS)
    assert {one.state for one in objects} == set(STATE_NAMES) >= set(UNSEEN_STATES)
    assert {one.count for one in objects} == set(COUNT_VALUES)
    assert {spec.place or "nowhere" for spec in specs} == set(PLACE_NAMES)
    drawn = {(one.colour, one.name) for one in objects}
    assert len(drawn & set(UNSEEN_PAIRS)) > len(UNSEEN_PAIRS) // 2
    for spec in specs[:60]:
        render_scene(spec, 32)


def test_examples_depend_on_their_key_alone():
    one, other = LabelledScenes(reuse=4, window=3), LabelledScenes(reuse=4, window=3)
    for step in range(3):
        for slot in range(4):
            one[StepKey(step, slot)]
    key = StepKey(5, 2)
    first, second = one[key], other[key]
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_reuse_shows_scenes_of_earlier_steps_again():
    data = LabelledScenes(size=16, reuse=4, window=2)
    for step in range(6):
        for slot in range(8):
            data[StepKey(step, slot)]
    assert len(data._kept) == 2 * 6, "one slot in four draws a new scene"


def test_the_first_steps_show_one_kind_of_object():
    data = LabelledScenes(size=16, alone=2)
    keys = [StepKey(step, slot) for step in range(4) for slot in range(8)]
    kinds = [(data[key]["things"] >= 0).sum() for key in keys]
    assert max(kinds[:16]) == 1
    assert max(kinds[16:]) > 1


def test_a_bad_size_number_or_reuse_is_refused():
    with pytest.raises(ValueError, match="16"):
        LabelledScenes(size=8)
    with pytest.raises(ValueError, match="reuse"):
        LabelledScenes(reuse=0)
    with pytest.raises(IndexError):
        LabelledScenes(length=2)[2]
