"""Edits of the playroom counted by a judge: which edits, and what is counted."""

import numpy as np
import pytest
import torch

from ldm.data.playroom import OBJECTS
from ldm.editing import EditOptions
from ldm.evaluation.editing import EditCase, edit_cases, grey_change, measure_edits
from ldm.evaluation.judge import Reading, SeenThing
from tests.editing.conftest import model as model  # noqa: PLC0414 (a fixture)

SHOWS = {"<teddy>": "bear", "<board>": "skateboard", "<road>": "ground"}


def reading(*names: str) -> Reading:
    """A picture of which the first thing fills the left half."""
    mask = np.zeros((64, 64), bool)
    mask[:, :32] = True
    things = tuple(SeenThing(n, 1.0, "own", 1.0, None, 1.0, 1, mask, 0.5) for n in names)
    labels = mask * (1 + list(OBJECTS).index(names[0])) if names else mask * 0
    return Reading(things, "nowhere", labels.astype(np.uint8))


class Told:
    """A judge that says what it is told: for the sources, then for the results."""

    def __init__(self, *readings: Reading) -> None:
        self.readings = list(readings)

    def read(self, images: torch.Tensor) -> list[Reading]:
        said, self.readings = self.readings[: len(images)], self.readings[len(images) :]
        return said


def test_edits_replace_learned_words_by_what_is_not_there():
    cases = edit_cases(SHOWS, 30, seed=3)
    assert cases == edit_cases(SHOWS, 30, seed=3)
    assert cases != edit_cases(SHOWS, 30, seed=4)
    assert {case.word for case in cases} == {"<teddy>", "<board>"}, "the ground is no object"
    for case in cases:
        assert case.word in case.source
        assert case.word not in case.target
        assert case.new not in ("bear", "skateboard")
        assert f"a {OBJECTS[case.new].words[0]}" in case.target.replace("an ", "a ")


def test_the_same_edit_in_plain_words():
    case = EditCase("a photo of a <teddy> on a <board> at night", "<teddy>", "bear", "cat", 1)
    plain = case.plain(SHOWS | {"<road>": "box"})
    bear, board = OBJECTS["bear"].words[0], OBJECTS["skateboard"].words[0]
    assert plain.source == f"a photo of a {bear} on a {board} at night"
    assert plain.target == f"a photo of a cat on a {board} at night"
    assert (plain.word, plain.seed) == (bear, 1)


def test_words_that_are_no_objects_are_refused():
    with pytest.raises(ValueError, match="<road>"):
        edit_cases({"<road>": "ground"}, 1)


def test_change_is_in_grey_levels():
    before, after = torch.full((1, 3, 2, 2), -1.0), torch.full((1, 3, 2, 2), -1.0)
    after[..., 0, 0] = 1.0
    assert grey_change(before, after).tolist() == [[[255.0, 0.0], [0.0, 0.0]]]


def test_what_is_counted(model):
    cases = [
        EditCase("a <teddy> on a <board>", "<teddy>", "bear", "cat", 0),
        EditCase("a <teddy> on a <board>", "<teddy>", "bear", "cat", 1),
    ]
    judge = Told(reading("bear"), reading(), reading("cat"), reading("bear"))
    found = measure_edits(model, judge, cases, EditOptions(steps=2, scale=2.0))
    assert found.appears.value == 0.5
    assert found.had.value == 0.5
    assert (found.gone.value, found.gone.count) == (1.0, 1), "only where it was"
    assert (found.outside.count, found.inside.count) == (1, 1)
    assert found.outside.value > 0


def test_equal_prompts_change_nothing(model):
    same = EditCase("a cat on a <board>", "cat", "cat", "cat", 0)
    judge = Told(reading("cat"), reading("cat"))
    found = measure_edits(model, judge, [same], EditOptions(steps=2, scale=2.0))
    assert (found.outside.value, found.inside.value, found.gone.value) == (0, 0, 0)
