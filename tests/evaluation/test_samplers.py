"""Samplers against a reference of many steps, and inversions against their picture."""

import numpy as np
import pytest
import torch

from ldm.data.playroom import spec_from_names
from ldm.evaluation.judge import Reading
from ldm.evaluation.samplers import Setting, compare_samplers, decoded, draw, measure_inversion
from ldm.inference import SAMPLERS
from tests.editing.conftest import model as model  # noqa: PLC0414 (a fixture)

QUICK = Setting(scale=2.0, seed=5, batch=2)


class Blind:
    """A judge that sees nothing."""

    def read(self, images: torch.Tensor) -> list[Reading]:
        return [Reading((), "nowhere", np.zeros((64, 64), np.uint8)) for _ in images]


def test_a_drawing_does_not_depend_on_its_batch(model):
    prompts = ["a cat", "a dog", "a <teddy>"]
    together = draw(model, SAMPLERS["ddim"](model), prompts, 3, QUICK)
    alone = draw(model, SAMPLERS["ddim"](model), prompts, 3, Setting(2.0, 5, 1))
    torch.testing.assert_close(together.latents, alone.latents, rtol=1e-3, atol=1e-4)
    assert together.seconds > 0
    assert decoded(model, together.latents, batch=2).shape == (3, 3, 16, 16)


def test_more_steps_come_nearer_to_the_reference(model):
    scenes = [("a cat", spec_from_names(["cat"])), ("a dog", spec_from_names(["red dog"]))]
    rows = compare_samplers(
        model, Blind(), scenes, {"ddim": SAMPLERS["ddim"]}, (2, 16), QUICK, reference=64
    )
    assert [(row.sampler, row.steps) for row in rows] == [("ddim", 64), ("ddim", 2), ("ddim", 16)]
    itself, rough, fine = (row.distance.value for row in rows)
    assert itself == 0
    assert fine < rough
    assert {row.objects.value for row in rows} == {0.0}, "a blind judge finds nothing right"
    assert {row.colours.count for row in rows} == {1}, "one of the scenes asks for a colour"


def test_the_first_stage_bounds_what_comes_back(model):
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    found = measure_inversion(model, images, ["a cat"], steps=3, scale=3.0, rounds=3)
    assert found["first stage only"]["latent error"].value == 0
    ways = [name for name in found if name != "first stage only"]
    assert len(ways) == 4
    assert all(found[name]["latent error"].value > 0 for name in ways)
    null, plain = found["null-text, guidance 3"], found["DDIM, guidance 3"]
    assert null["latent error"].value <= plain["latent error"].value + 1e-6
    with pytest.raises(ValueError, match="scale of 1"):
        measure_inversion(model, images, ["a cat"], steps=2, scale=1.0)
