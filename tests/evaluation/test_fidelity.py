import numpy as np
import pytest

from ldm.data.playroom.labels import pair_relations
from ldm.data.playroom.spec import spec_from_names
from ldm.evaluation.fidelity import asked_relations, fidelity, said
from ldm.evaluation.judge import Reading, SeenThing

BLANK = np.zeros((64, 64), np.uint8)


def seen(name, colour="red", state=None, count=1):
    return SeenThing(name, 0.9, colour, 0.9, state, 0.9, count, BLANK.astype(bool), 0.1)


def reading(*things, place="grass"):
    return Reading(things, place, BLANK)


def test_everything_right():
    spec = spec_from_names(["red dog", "blue chair"], "on", "grass")
    shown = reading(seen("chair", "blue"), seen("dog"))
    found = fidelity(spec, shown, {(0, 1): "on"})
    assert (found.objects, found.colours, found.relation, found.count, found.place) == (True,) * 5
    assert found.states is None
    assert found.nothing_else


def test_colours_belong_to_their_objects():
    spec = spec_from_names(["red dog", "blue chair"])
    assert fidelity(spec, reading(seen("dog", "blue"), seen("chair", "red"))).colours is False


def test_a_missing_object_has_no_colour_count_or_relation():
    spec = spec_from_names(["red dog", "blue chair"], "beside")
    found = fidelity(spec, reading(seen("chair", "blue"), seen("cat")))
    assert not found.objects
    assert found.colours is False
    assert found.relation is False
    assert not found.count
    assert not found.nothing_else


def test_what_is_not_asked_is_not_judged():
    found = fidelity(spec_from_names(["dog", "cat"], "and"), reading(seen("dog"), seen("cat")))
    assert found.colours is None
    assert found.place is None
    assert found.relation is None
    assert found.count, "one of each is asked"


@pytest.mark.parametrize(("count", "right"), [(3, True), (2, False), (1, False)])
def test_counts(count, right):
    found = fidelity(spec_from_names(["three red balls"]), reading(seen("ball", count=count)))
    assert found.count is right


def test_states():
    spec = spec_from_names(["red dog, closed eyes"])
    assert fidelity(spec, reading(seen("dog", state="closed eyes"))).states
    assert fidelity(spec, reading(seen("dog"))).states is False


def test_asked_relations_name_the_partner():
    spec = spec_from_names(
        ["bear", "skateboard", "jacket", "taxi"], ["on", "wearing", "beside"], "grass"
    )
    assert asked_relations(spec) == {(0, 1): "on", (0, 2): "wearing", (2, 3): "beside"}
    assert set(asked_relations(spec)) <= set(pair_relations(spec))


def test_only_what_a_caption_says_is_asked():
    spec = spec_from_names(["red dog", "blue mug"], "and", "grass")
    asked = said(spec, "a red dog and a mug", ("dog", "mug"))
    assert [one.colour for one in asked.objects] == ["red", None]
    assert asked.place is None
    assert said(spec, "a dog and a blue mug in the park", ("dog", "mug")).place == "grass"
    several = spec_from_names(["three red balls"])
    assert said(several, "three red balls", ("ball",)).objects[0].colour == "red"


def test_own_colours_count_as_what_they_look_like():
    spec = spec_from_names(["red watermelon"])
    assert fidelity(spec, reading(seen("watermelon"))).colours
