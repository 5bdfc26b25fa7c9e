"""From pictures to noise and back, on an exact denoiser and on a whole toy model."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.editing import EditOptions, ddim_inversion, edit, null_text_inversion, reconstruct
from ldm.editing.inversion import (
    Inversion,
    fit_image,
    inversion_rule,
    picture_size,
    sampling_plan,
)
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.sampling import Guide, trajectory
from tests.models.gaussian import GaussianDenoiser

PROMPT = "a <teddy> on a <board>"
STEPS, SCALE = 5, 4.0


@pytest.fixture(scope="module")
def latents(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 8, 8, generator=generator)


@pytest.fixture(scope="module")
def null_text(model, latents) -> Inversion:
    return null_text_inversion(model, latents, [PROMPT, "a cat"], STEPS, SCALE, rounds=5)


def error(model, inversion: Inversion, scale: float) -> torch.Tensor:
    """Mean squared error of each picture's latents."""
    gap = reconstruct(model, inversion, scale) - inversion.path[0]
    return gap.square().flatten(1).mean(1)


@pytest.mark.parametrize("parameterization", ["eps", "x0", "v"])
def test_the_way_to_the_noise_is_the_way_back(parameterization):
    """With the fixed point found, a jump backwards is undone by the jump forwards."""
    model = GaussianDenoiser(parameterization=parameterization)
    x = model.mean + model.std * torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    errors = []
    for rounds in (0, 2, 40):
        jumps = sampling_plan(model, 20)
        walk = trajectory(Guide(model), jumps[::-1], x, inversion_rule(rounds))
        *_, last = walk
        back, _ = DDIMSampler(model).sample(20, 2, (1, 4, 4), x_T=last.x, verbose=False)
        errors.append((back - x).abs().max().item())
    assert errors[0] < 1
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 1e-3


def test_the_noise_of_data_has_the_moments_of_the_last_level():
    model = GaussianDenoiser()
    x = model.mean + model.std * torch.randn(400, 1, 4, 4)
    jumps = sampling_plan(model, 200)
    *_, last = trajectory(Guide(model), jumps[::-1], x, inversion_rule())
    mean, std = model.moments(jumps[0].alpha)
    assert (last.x.mean() - mean).abs() < 0.05
    assert (last.x.std() - std).abs() < 0.05


def test_own_pictures_are_found_again(model):
    """What the model drew without guidance comes back, the closer the more rounds."""
    x_T = torch.randn(1, 4, 8, 8)
    cond = model.get_learned_conditioning([PROMPT])
    drawn, _ = DDIMSampler(model).sample(STEPS, 1, (4, 8, 8), cond, x_T=x_T, verbose=False)
    loose = ddim_inversion(model, drawn, [PROMPT], STEPS)
    close = ddim_inversion(model, drawn, [PROMPT], STEPS, rounds=12)
    assert len(loose.path) == STEPS + 1
    assert torch.equal(loose.path[0], drawn)
    assert error(model, close, 1.0) < error(model, loose, 1.0)


def test_null_text_is_at_least_as_near_as_ddim(model, latents, null_text):
    ddim = ddim_inversion(model, latents, [PROMPT, "a cat"], STEPS)
    assert torch.equal(ddim.noise, null_text.noise), "it begins with DDIM inversion"
    fitted, guided = error(model, null_text, SCALE), error(model, ddim, SCALE)
    assert (fitted <= guided).all()
    assert fitted.sum() < 0.7 * guided.sum()


def test_no_fitting_leaves_the_empty_prompt(model, latents):
    inversion = null_text_inversion(model, latents, [PROMPT] * 2, STEPS, SCALE, rounds=0)
    empty = model.get_learned_conditioning(["", ""])
    assert all(torch.equal(null, empty) for null in inversion.nulls)
    ddim = ddim_inversion(model, latents, [PROMPT] * 2, STEPS)
    assert torch.equal(reconstruct(model, inversion), reconstruct(model, ddim, SCALE))


def test_fitting_stops_when_it_is_near_enough(model, latents):
    calls = []
    original = model.apply_model

    def counted(*args):
        calls.append(1)
        return original(*args)

    model.apply_model = counted
    try:
        for tolerance, count in ((1e9, 1), (0.0, 4)):
            calls.clear()
            null_text_inversion(
                model, latents[:1], [PROMPT], STEPS, SCALE, rounds=3, tolerance=tolerance
            )
            # Inversion, and in each step the conditional pass, the tries and the jump.
            assert len(calls) == STEPS * (1 + 1 + count + 1)
    finally:
        del model.apply_model


def test_pictures_do_not_influence_each_other(model, latents, null_text):
    alone = null_text_inversion(model, latents[:1], [PROMPT], STEPS, SCALE, rounds=5)
    for one, both in zip(alone.nulls, null_text.nulls, strict=True):
        torch.testing.assert_close(one[0], both[0], rtol=1e-3, atol=1e-3)


def test_the_model_stays_frozen_and_without_gradient(model, null_text):
    assert len(null_text.nulls) == STEPS
    assert not any(null.requires_grad for null in null_text.nulls)
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_a_real_picture_is_edited_from_its_inversion(model, null_text):
    options = EditOptions(steps=STEPS, scale=SCALE, blend=True, threshold=0.6)
    prompts = [PROMPT, "a cat"]
    done = edit(model, prompts, ["a cat on a <board>", "a dog"], options, inversion=null_text)
    rebuilt = reconstruct(model, null_text)
    torch.testing.assert_close(done.source_latents, rebuilt, rtol=1e-3, atol=1e-3)
    outside = ~done.mask.expand_as(rebuilt)
    assert torch.equal(done.edited_latents[outside], done.source_latents[outside])
    assert not torch.equal(done.edited_latents, done.source_latents)
    same = edit(model, prompts, prompts, options, inversion=null_text)
    assert torch.equal(same.edited_latents, rebuilt)


def test_an_inversion_belongs_to_its_settings(model, null_text):
    for wrong in ({"steps": 4}, {"scale": 3.0}):
        options = EditOptions(**{"steps": STEPS, "scale": SCALE, **wrong})
        with pytest.raises(ValueError, match=r"was made with.*the edit asks for"):
            edit(model, [PROMPT, "a cat"], "a dog", options, inversion=null_text)
    with pytest.raises(ValueError, match="was made with"):
        edit(model, ["a bear", "a cat"], "a dog", EditOptions(STEPS, SCALE), inversion=null_text)
    with pytest.raises(ValueError, match="scale of 1"):
        null_text_inversion(model, null_text.path[0], [PROMPT, "a cat"], STEPS, 1.0)
    with pytest.raises(ValueError, match="1 prompts for 2 pictures"):
        ddim_inversion(model, null_text.path[0], PROMPT, STEPS)


def test_pictures_are_fitted_whole(model):
    assert picture_size(model) == (16, 4)
    assert picture_size(model, 32) == (32, 4)
    pixels = np.zeros((50, 100, 3), np.uint8)
    pixels[:, 90:] = 255
    image = fit_image(Image.fromarray(pixels), 16, 4)
    assert image.shape == (1, 3, 8, 16)
    assert image[0, 0, 4, 0] == -1
    assert image[0, 0, 4, -1] > 0.5, "the right edge is still there"
    assert fit_image(Image.new("RGB", (1000, 10)), 16, 4).shape == (1, 3, 4, 16)
    for wrong in (0, 18):
        with pytest.raises(ValueError, match="multiple of 4"):
            fit_image(Image.new("RGB", (8, 8)), wrong, 4)


def test_latents_are_the_middle_of_the_posterior(model):
    images = torch.rand(2, 3, 8, 16) * 2 - 1
    latents = model.encode_images(images)
    posterior = model.first_stage_model.encode(images)
    torch.testing.assert_close(latents, 0.5 * posterior.mean)
    assert torch.equal(latents, model.encode_images(images)), "nothing is drawn"
