"""Samplers against recorded trajectories of a real U-Net, and against exact solutions."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.ancestral import sample_ddpm
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.models.diffusion.sampler import Sampler
from ldm.models.diffusion.sampling import (
    Guide,
    ancestral_step,
    ddim_step,
    dpm_solver_step,
    plan,
    plms_epsilon,
)
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.diffusionmodules.schedule import (
    PARAMETERIZATIONS,
)
from tests.golden import Golden, fill, golden
from tests.models.gaussian import GaussianDenoiser, ldm_schedule

SAMPLERS = (DDIMSampler, PLMSSampler, DPMSolverSampler)
CPU = torch.device("cpu")


# A real network, filled by the recipe


class UNetDenoiser:
    """The smallest model that a sampler accepts around a real U-Net."""

    parameterization = "eps"
    device = CPU

    def __init__(self, unet: UNetModel) -> None:
        self.unet, self.schedule = unet, ldm_schedule()

    def apply_model(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.unet(x, t, context=cond)


@pytest.fixture(scope="module")
def denoiser() -> UNetDenoiser:
    config = golden("ddim").config["latent_diffusion"]["unet_config"]["params"]
    return UNetDenoiser(fill(UNetModel(**config)))


def run(sampler: Sampler, case: Golden, **kwargs) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """Sample as the golden was sampled, keeping every step."""
    settings = case.config["sampler"]
    return sampler.sample(
        **{
            "S": settings["S"],
            "batch_size": settings["batch_size"],
            "shape": settings["shape"],
            "conditioning": case["cond"],
            "unconditional_conditioning": case["uncond"],
            "unconditional_guidance_scale": settings["guidance_scale"],
            "x_T": case["x_T"],
            "log_every_t": 1,
            "verbose": False,
            **kwargs,
        }
    )


@pytest.fixture(scope="module")
def ddim_golden() -> Golden:
    return golden("ddim")


def test_ddim_equals_the_golden(denoiser: UNetDenoiser, ddim_golden: Golden) -> None:
    sampler = DDIMSampler(denoiser)
    samples, kept = run(sampler, ddim_golden)
    ddim_golden.check("timesteps", torch.as_tensor(sampler.ddim_timesteps))
    ddim_golden.check("alphas", torch.as_tensor(sampler.ddim_alphas))
    ddim_golden.check("alphas_prev", torch.as_tensor(sampler.ddim_alphas_prev))
    ddim_golden.check("x_steps", torch.stack(kept["x_inter"]))
    ddim_golden.check("pred_x0_steps", torch.stack(kept["pred_x0"][1:]))
    ddim_golden.check("final", samples)


def test_ddim_with_all_noise_equals_the_golden(denoiser: UNetDenoiser, ddim_golden: Golden) -> None:
    sampler = DDIMSampler(denoiser)
    samples, kept = run(sampler, ddim_golden, eta=1.0, normals_sequence=ddim_golden["noises"])
    ddim_golden.check("eta1_sigmas", torch.as_tensor(sampler.ddim_sigmas))
    ddim_golden.check("eta1_x_steps", torch.stack(kept["x_inter"]))
    ddim_golden.check("eta1_final", samples)


def test_ddim_with_some_noise_and_without_guidance_equals_the_golden(
    denoiser: UNetDenoiser, ddim_golden: Golden
) -> None:
    sampler, part = DDIMSampler(denoiser), ddim_golden.config["sampler"]["eta_part"]
    samples, _ = run(sampler, ddim_golden, eta=part, normals_sequence=ddim_golden["noises"])
    ddim_golden.check("eta_part_final", samples)
    unguided, _ = run(sampler, ddim_golden, unconditional_guidance_scale=1.0)
    ddim_golden.check("noguidance_final", unguided)


def test_the_decoded_sample_equals_the_golden(ddim_golden: Golden) -> None:
    config = ddim_golden.config["latent_diffusion"]
    autoencoder = fill(AutoencoderKL(**config["first_stage_config"]["params"]))
    with torch.no_grad():
        image = autoencoder.decode(ddim_golden["final"][:1] / config["scale_factor"])
    ddim_golden.check("image", image)


def test_plms_equals_the_golden(denoiser: UNetDenoiser) -> None:
    case, sampler = golden("plms"), PLMSSampler(denoiser)
    samples, kept = run(sampler, case)
    case.check("timesteps", torch.as_tensor(sampler.ddim_timesteps))
    case.check("x_steps", torch.stack(kept["x_inter"]))
    case.check("pred_x0_steps", torch.stack(kept["pred_x0"][1:]))
    case.check("final", samples)


def test_image_to_image_equals_the_golden(denoiser: UNetDenoiser) -> None:
    case, sampler = golden("img2img"), DDIMSampler(denoiser)
    sampler.make_schedule(case.config["ddim_steps"], ddim_eta=0.0, verbose=False)
    start = case.config["t_enc"]
    encoded = sampler.stochastic_encode(case["z0"], torch.tensor([start] * 2), noise=case["noise"])
    case.check("encoded", encoded)
    decoded = sampler.decode(
        encoded,
        case["cond"],
        start,
        unconditional_guidance_scale=case.config["guidance_scale"],
        unconditional_conditioning=case["uncond"],
    )
    case.check("decoded", decoded)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_row_does_not_see_the_other_rows(
    sampler: type[Sampler], denoiser: UNetDenoiser, ddim_golden: Golden
) -> None:
    eta = 0.0 if sampler.deterministic else 1.0

    def rows(*chosen: int) -> Tensor:
        index = list(chosen)
        return run(
            sampler(denoiser),
            ddim_golden,
            S=2,
            eta=eta,
            batch_size=len(index),
            conditioning=ddim_golden["cond"][index],
            unconditional_conditioning=ddim_golden["uncond"][index],
            x_T=ddim_golden["x_T"][index],
            generator=[torch.Generator().manual_seed(row) for row in index],
        )[0]

    both, swapped = rows(0, 1), rows(1, 0)
    torch.testing.assert_close(both, swapped.flip(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(both[1:], rows(1), rtol=1e-3, atol=1e-3)
    assert (both[0] - both[1]).abs().max() > 0.1


# Exact solutions: Gaussian data


def flow_error(
    sampler: type[Sampler], steps: int, parameterization: str = "eps", **kwargs
) -> float:
    """How far a deterministic sampler ends from the exact probability flow.

    Gaussian marginals stay Gaussian along the flow, so a point that is k standard deviations from
    the mean stays k of them away: the end is known for every start.
    """
    model = GaussianDenoiser(parameterization=parameterization)
    solver = sampler(model)
    solver.make_schedule(steps, kwargs.get("discretize"), verbose=False)
    end = solver.ddim_alphas_prev[0]
    k = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1, 1, 1)
    (mean_T, std_T), (mean_0, std_0) = model.moments(solver.ddim_alphas[-1]), model.moments(end)
    found, _ = solver.sample(steps, 9, (1, 1, 1), x_T=mean_T + k * std_T, verbose=False, **kwargs)
    return (found - (mean_0 + k * std_0)).abs().max().item()


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_converge_to_the_exact_flow(sampler: type[Sampler], parameterization: str) -> None:
    errors = [
        flow_error(sampler, steps, parameterization, discretize="trailing")
        for steps in (10, 50, 250)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.02


def test_higher_order_is_nearer_at_ten_steps() -> None:
    for spread in ("uniform", "trailing", "karras"):
        ddim = flow_error(DDIMSampler, 10, discretize=spread)
        assert flow_error(DPMSolverSampler, 10, discretize=spread) < 0.9 * ddim
        assert flow_error(PLMSSampler, 10, discretize=spread) < 0.4 * ddim
    # As each comes out of the box.
    assert flow_error(DPMSolverSampler, 10) < 0.1 * flow_error(DDIMSampler, 10)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 9, 27, 30, 36, 500, 999, 1000])
def test_every_number_of_steps_works(sampler: type[Sampler], steps: int) -> None:
    model = GaussianDenoiser(std=0.0)
    samples, _ = sampler(model).sample(steps, 2, (1, 2, 2), verbose=False)
    assert samples.isfinite().all()
    # All data is one point, so every prediction is right whatever the number of steps; only a
    # single uniform step, which looks for a clean latent right away, is too few.
    if steps > 1 or sampler.discretize != "uniform":
        assert (samples - model.mean).abs().max() < 0.15


@pytest.mark.parametrize("way", ["ancestral", "ddim"])
def test_stochastic_sampling_has_the_moments_of_the_data(way: str) -> None:
    model = GaussianDenoiser()
    generator = torch.Generator().manual_seed(0)
    mean_T, std_T = model.moments(model.schedule.alphas_cumprod[-1].item())
    x_T = mean_T + std_T * torch.randn(1, 1, 64, 64, generator=generator)
    options = {"x_T": x_T, "verbose": False, "generator": generator}
    if way == "ancestral":
        samples, _ = sample_ddpm(model, 1, (1, 64, 64), **options)
    else:
        samples, _ = DDIMSampler(model).sample(1000, 1, (1, 64, 64), eta=1.0, **options)
    assert abs(samples.mean().item() - model.mean) < 0.02
    assert abs(samples.std().item() - model.std) < 0.02


def test_ddim_with_all_noise_over_all_steps_is_ancestral_sampling() -> None:
    """Step by step the same mean and deviation; so with the same noises the same samples."""
    model = GaussianDenoiser()
    x, noise = torch.randn(2, 4, 1, 3, 3)
    guide = Guide(model)
    for jump in plan(model.schedule, np.arange(1000), eta=1.0)[::37]:
        t = torch.full((4,), jump.t)
        seen = guide.predict(x, jump.t, jump.index)
        fresh = noise if jump.t else None
        ours = ddim_step(seen.start, seen.noise, jump.alpha_prev, jump.sigma, fresh)
        exact = ancestral_step(model.schedule, x, seen.start, t, fresh)
        torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-3)
    noises = torch.randn(1000, 1, 1, 3, 3)
    options = {"x_T": x[:1], "normals_sequence": noises, "verbose": False}
    ancestral, _ = sample_ddpm(model, 1, (1, 3, 3), **options)
    ddim, _ = DDIMSampler(model).sample(1000, 1, (1, 3, 3), eta=1.0, **options)
    torch.testing.assert_close(ddim, ancestral, rtol=1e-3, atol=1e-3)


def test_multistep_weights_extrapolate_polynomials_exactly() -> None:
    """Adams-Bashforth of order k integrates a polynomial of degree k - 1 over a unit jump."""
    for order in range(1, 5):
        values = [torch.tensor(float(-back) ** (order - 1)) for back in range(order)]
        expected = 1 / order  # The integral of s^(k-1) from 0 to 1.
        assert abs(plms_epsilon(values[0], values[1:]).item() - expected) < 1e-6


def test_dpm_solver_of_first_order_is_ddim() -> None:
    x, start = torch.randn(2, 5, dtype=torch.float64)
    alpha, alpha_prev = 0.3, 0.6
    noise = (x - alpha**0.5 * start) / (1 - alpha) ** 0.5
    expected = ddim_step(start, noise, alpha_prev)
    torch.testing.assert_close(dpm_solver_step(x, start, alpha, alpha_prev), expected)
