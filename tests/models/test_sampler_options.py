"""What can be asked of a sampler besides samples: guidance, seeds, masks, callbacks, errors."""

import pytest
import torch
from torch import Tensor

from ldm.models.diffusion.ancestral import sample_ddpm
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.models.diffusion.sampler import Sampler
from ldm.models.diffusion.sampling import (
    Guide,
    Step,
    guided,
    plan,
    trajectory,
)
from ldm.modules.diffusionmodules.schedule import (
    make_ddim_timesteps,
)
from tests.models.gaussian import GaussianDenoiser, ldm_schedule

SAMPLERS = (DDIMSampler, PLMSSampler, DPMSolverSampler)


class ListeningDenoiser(GaussianDenoiser):
    """Its condition is a list or mapping of tensors (b, 1), which shift the mean of the data."""

    def apply_model(self, x: Tensor, t: Tensor, cond: list | dict) -> Tensor:
        parts = cond.values() if isinstance(cond, dict) else cond
        return super().apply_model(x, t, sum(parts))


@pytest.mark.parametrize("structure", [lambda c: [c, c], lambda c: {"a": c, "b": c}])
def test_guidance_is_linear_and_takes_lists_and_mappings(structure) -> None:
    model, x, t = ListeningDenoiser(), torch.randn(2, 1, 3, 3), torch.tensor([10, 500])
    cond, uncond = structure(torch.ones(2, 1)), structure(torch.zeros(2, 1))
    given, without = model.apply_model(x, t, cond), model.apply_model(x, t, uncond)
    expected = without + 3.0 * (given - without)
    torch.testing.assert_close(guided(model, x, t, cond, uncond, 3.0), expected)


def test_guidance_of_scale_one_is_one_unguided_pass() -> None:
    model, x, t = GaussianDenoiser(), torch.randn(2, 1, 3, 3), torch.tensor([10, 500])
    cond, uncond, heard = torch.ones(2), torch.zeros(2), []

    def on_step(index: int, conditional: slice) -> None:
        heard.append((index, conditional))

    plain = guided(model, x, t, cond, index=3, on_step=on_step)
    assert torch.equal(guided(model, x, t, cond, uncond, 1.0, index=4, on_step=on_step), plain)
    assert [len(shown) for shown, _ in model.seen] == [2, 2]
    guided(model, x, t, cond, uncond, 2.0, index=5, on_step=on_step)
    assert heard == [(3, slice(0, 2)), (4, slice(0, 2)), (5, slice(2, 4))]


def test_conditions_that_do_not_match_are_refused() -> None:
    model, x, t = GaussianDenoiser(), torch.randn(2, 1, 3, 3), torch.tensor([10, 500])
    with pytest.raises(ValueError, match=r"\(1,\).*\(2,\)"):
        guided(model, x, t, torch.ones(2), torch.ones(1), 2.0)
    with pytest.raises(ValueError, match="2 rows for a batch of 3"):
        DDIMSampler(model).sample(5, 3, (1, 3, 3), torch.ones(2), verbose=False)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_controllers_hear_every_jump_in_order(sampler: type[Sampler]) -> None:
    heard: list[int] = []
    sampler(GaussianDenoiser()).sample(
        5, 1, (1, 2, 2), on_step=lambda index, _: heard.append(index), verbose=False
    )
    assert sorted(heard) == heard
    assert set(heard) == set(range(5))
    assert len(heard) == 5 + (sampler is PLMSSampler)  # PLMS looks ahead once.


def test_one_seed_gives_one_sample() -> None:
    def draw(seed: int) -> Tensor:
        torch.rand(seed)  # The global state must not matter.
        generator = torch.Generator().manual_seed(seed)
        options = {"eta": 0.7, "noise_dropout": 0.2, "generator": generator, "verbose": False}
        return DDIMSampler(GaussianDenoiser()).sample(8, 2, (1, 3, 3), **options)[0]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_temperature_scales_the_fresh_noise() -> None:
    model, x_T = GaussianDenoiser(), torch.randn(1, 1, 3, 3)
    options = {"x_T": x_T, "eta": 1.0, "verbose": False}
    noises = torch.randn(5, 1, 1, 3, 3)

    def draw(**kwargs) -> Tensor:
        return DDIMSampler(model).sample(5, 1, (1, 3, 3), **options, **kwargs)[0]

    torch.testing.assert_close(
        draw(normals_sequence=noises, temperature=0.5), draw(normals_sequence=0.5 * noises)
    )
    torch.testing.assert_close(draw(temperature=0.0), draw(normals_sequence=0 * noises))
    with pytest.raises(ValueError, match="4 steps, but 5"):
        draw(normals_sequence=noises[:4])


def test_callbacks_see_every_step_and_intermediates_the_chosen_ones() -> None:
    indices, images = [], []
    samples, kept = DDIMSampler(GaussianDenoiser()).sample(
        10,
        2,
        (1, 3, 3),
        callback=indices.append,
        img_callback=lambda image, index: images.append((index, image)),
        log_every_t=4,
        verbose=False,
    )
    assert indices == list(range(10))
    assert [index for index, _ in images] == indices
    assert len(kept["x_inter"]) == len(kept["pred_x0"]) == 1 + 4  # The start, steps 0, 1, 5 and 9.
    assert torch.equal(kept["x_inter"][-1], samples)
    assert torch.equal(kept["pred_x0"][-1], images[-1][1])


def test_a_trajectory_is_walked_as_it_is_read_and_can_be_revised() -> None:
    model = GaussianDenoiser()
    jumps = plan(model.schedule, make_ddim_timesteps("uniform", 5, 1000), eta=0.0)
    steps = trajectory(
        Guide(model), jumps, torch.zeros(1, 1, 2, 2), DDIMSampler(model).rule(), revise=shift
    )
    first = next(steps)
    assert len(model.seen) == 1
    assert (first.index, first.t) == (0, 801)
    next(steps)
    assert torch.equal(model.seen[1][0], first.x)


def shift(step: Step) -> Tensor:
    return step.x + 1.0


def test_a_mask_keeps_the_known_region_at_every_noise_level() -> None:
    model = GaussianDenoiser(mean=0.0)
    known, mask = torch.full((2, 1, 4, 4), 5.0), torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1.0
    samples, _ = DDIMSampler(model).sample(20, 2, (1, 4, 4), mask=mask, x0=known, verbose=False)
    for x, t in model.seen:
        a = model.schedule.alphas_cumprod[t[0]].item()
        deviation = (x[..., :2] - a**0.5 * 5.0) / (1 - a) ** 0.5
        assert deviation.abs().max() < 4.5
        assert deviation.std() > 0.5
    assert (samples[..., 2:] - 0.0).abs().max() < 2.0
    with pytest.raises(ValueError, match="no x0"):
        DDIMSampler(model).sample(5, 2, (1, 4, 4), mask=mask, verbose=False)


def test_a_score_corrector_changes_the_noise_that_is_used() -> None:
    class Corrector:
        def modify_score(self, model, noise, x, t, cond, gain):
            return gain * noise

    x_T = torch.randn(1, 1, 2, 2)
    options = {"x_T": x_T, "verbose": False, "log_every_t": 1}
    _, kept = DDIMSampler(GaussianDenoiser()).sample(
        4, 1, (1, 2, 2), score_corrector=Corrector(), corrector_kwargs={"gain": 0.0}, **options
    )
    a = ldm_schedule().alphas_cumprod[751].item()
    torch.testing.assert_close(kept["pred_x0"][1], x_T / a**0.5, rtol=1e-4, atol=1e-4)


def test_starts_are_quantised_by_the_first_stage_when_asked() -> None:
    class Rounding:
        def quantize(self, x: Tensor) -> tuple[Tensor, None]:
            return x.round(), None

    model = GaussianDenoiser(mean=1.3, std=0.0)
    model.first_stage_model = Rounding()
    for sampler in SAMPLERS:
        _, kept = sampler(model).sample(
            4, 1, (1, 2, 2), quantize_x0=True, log_every_t=1, verbose=False
        )
        starts = torch.stack(kept["pred_x0"][1:])
        assert torch.equal(starts, starts.round()), sampler
    with pytest.raises(ValueError, match="codebook"):
        DDIMSampler(GaussianDenoiser()).sample(4, 1, (1, 2, 2), quantize_x0=True, verbose=False)


def test_ancestral_sampling_can_begin_lower_and_refine() -> None:
    model = GaussianDenoiser(std=0.0)
    _, kept = sample_ddpm(
        model,
        1,
        (1, 2, 2),
        timesteps=30,
        refine=lambda x: x.clamp(-1, 1),
        log_every_t=1,
        verbose=False,
    )
    assert [int(t[0]) for _, t in model.seen] == list(range(29, -1, -1))
    assert torch.equal(kept["pred_x0"][-1], torch.ones(1, 1, 2, 2))
    torch.testing.assert_close(kept["x_inter"][-1], torch.ones(1, 1, 2, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("original", [False, True])
def test_encoding_to_the_very_last_step_and_back_works(original: bool) -> None:
    model = GaussianDenoiser(std=0.0)
    sampler = DDIMSampler(model)
    sampler.make_schedule(20, verbose=False)
    count = 1000 if original else 20
    x0 = torch.full((2, 1, 2, 2), 1.5)
    noisy = sampler.stochastic_encode(x0, count, use_original_steps=original)
    a = model.schedule.alphas_cumprod[999 if original else 951].item()
    assert ((noisy - a**0.5 * x0) / (1 - a) ** 0.5).abs().max() < 4
    back = sampler.decode(noisy, None, count, use_original_steps=original)
    assert (back - x0).abs().max() < 0.2
    assert torch.equal(sampler.decode(noisy, None, 0), noisy)
    with pytest.raises(ValueError, match="use 0 to"):
        sampler.decode(noisy, None, count + 1, use_original_steps=original)


def test_misuse_is_refused_with_the_remedy() -> None:
    model = GaussianDenoiser()
    with pytest.raises(RuntimeError, match="make_schedule"):
        DDIMSampler(model).decode(torch.zeros(1, 1, 2, 2), None, 3)
    for sampler in (PLMSSampler, DPMSolverSampler):
        with pytest.raises(ValueError, match="eta must be 0"):
            sampler(model).sample(5, 1, (1, 2, 2), eta=0.5, verbose=False)
    with pytest.raises(ValueError, match=r"\(2, 1, 2, 2\).*\(1, 1, 2, 2\)"):
        DDIMSampler(model).sample(5, 1, (1, 2, 2), x_T=torch.zeros(2, 1, 2, 2), verbose=False)
    with pytest.raises(TypeError, match="guidance"):
        DDIMSampler(model).sample(5, 1, (1, 2, 2), guidance=2.0)
