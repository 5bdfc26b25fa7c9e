"""The noise schedule against recorded figures, and its laws."""

import numpy as np
import pytest
import torch

from ldm.modules.diffusionmodules.schedule import (
    PARAMETERIZATIONS,
    NoiseSchedule,
    extract_into_tensor,
    make_beta_schedule,
    make_ddim_sampling_parameters,
    make_ddim_timesteps,
    make_karras_timesteps,
    noise_like,
)
from tests.golden import golden

SPACINGS = ("uniform", "quad", "trailing")
GOLDEN = golden("schedule")


def schedule_of(
    beta_schedule: str = "linear", parameterization: str = "eps", v_posterior: float = 0.0, **kwargs
) -> NoiseSchedule:
    betas = make_beta_schedule(beta_schedule, GOLDEN.config["timesteps"], **kwargs)
    return NoiseSchedule.from_betas(betas, v_posterior, parameterization)


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return schedule_of(**GOLDEN.config["q"])


@pytest.fixture
def noised(schedule: NoiseSchedule) -> dict[str, torch.Tensor]:
    x_start, noise = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)
    t = torch.tensor([0, 1, 250, 700, 999])
    return {
        "x_start": x_start,
        "noise": noise,
        "t": t,
        "x_t": schedule.q_sample(x_start, t, noise),
    }


@pytest.mark.parametrize("case", GOLDEN.config["cases"])
def test_every_table_equals_the_golden(case: str) -> None:
    tables = schedule_of(**GOLDEN.config["cases"][case])
    for name in NoiseSchedule.names():
        GOLDEN.check(f"{case}.{name}", getattr(tables, name)[GOLDEN["indices"]])


def test_forward_process_and_posterior_equal_the_golden(schedule: NoiseSchedule) -> None:
    x_start, t, noise = GOLDEN["q_x_start"], GOLDEN["q_t"], GOLDEN["q_noise"]
    x_t = schedule.q_sample(x_start, t, noise)
    GOLDEN.check("q_sample", x_t)
    GOLDEN.check("q_predict_start", schedule.predict_start_from_noise(x_t, t, noise))
    for key, value in zip(
        ("q_mean", "q_var", "q_logvar"), schedule.q_mean_variance(x_start, t), strict=True
    ):
        GOLDEN.check(key, value)
    posterior = schedule.q_posterior(x_start, x_t, t)
    for key, value in zip(("mean", "var", "logvar"), posterior, strict=True):
        GOLDEN.check(f"q_posterior_{key}", value)


@pytest.mark.parametrize("steps", [7, 10, 30, 50, 200])
def test_uniform_timesteps_equal_the_golden(steps: int) -> None:
    expected = GOLDEN[f"ddim_timesteps_{steps}"].tolist()
    assert make_ddim_timesteps("uniform", steps, 1000).tolist() == expected


def test_quadratic_timesteps_equal_the_golden() -> None:
    expected = GOLDEN["ddim_timesteps_quad_10"].tolist()
    assert make_ddim_timesteps("quad", 10, 1000).tolist() == expected


@pytest.mark.parametrize("available", [1000, 10, 2])
@pytest.mark.parametrize("method", SPACINGS)
def test_every_number_of_steps_gives_increasing_steps_within_the_schedule(
    method: str, available: int
) -> None:
    for wanted in range(1, available + 1):
        steps = make_ddim_timesteps(method, wanted, available, verbose=False)
        assert steps[0] >= 0, wanted
        assert steps[-1] < available, wanted
        assert (np.diff(steps) > 0).all(), wanted
        if method == "uniform":
            assert len(steps) >= wanted


@pytest.mark.parametrize("method", ["uniform", "trailing"])
def test_as_many_steps_as_the_schedule_has_visit_every_one(method: str) -> None:
    assert make_ddim_timesteps(method, 1000, 1000).tolist() == list(range(1000))


def test_trailing_steps_are_as_many_as_asked_and_start_at_the_noisiest() -> None:
    for wanted in range(1, 1001):
        steps = make_ddim_timesteps("trailing", wanted, 1000, verbose=False)
        assert len(steps) == wanted
        assert steps[-1] == 999


def test_karras_steps_are_even_in_the_root_of_sigma(schedule: NoiseSchedule) -> None:
    a = schedule.alphas_cumprod
    for wanted in range(1, 1001, 3):
        steps = make_karras_timesteps(a, wanted)
        assert steps[-1] == 999
        assert steps[0] >= 0
        assert (np.diff(steps) > 0).all()
    steps = make_karras_timesteps(a, 10, rho=7.0)
    roots = ((1 - a[steps]) / a[steps]).numpy() ** (1 / 14)
    assert len(steps) == 10
    np.testing.assert_allclose(np.diff(roots), np.diff(roots).mean(), rtol=0.06)


@pytest.mark.parametrize("wanted", [0, -1, 1001])
def test_a_number_of_steps_outside_the_schedule_is_refused(wanted: int) -> None:
    with pytest.raises(ValueError, match=r"use 1 to 1000"):
        make_karras_timesteps(schedule_of().alphas_cumprod, wanted)
    with pytest.raises(ValueError, match=r"use 1 to 1000"):
        make_ddim_timesteps("uniform", wanted, 1000)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'quad'"):
        make_ddim_timesteps("cubic", 10, 1000)
    with pytest.raises(ValueError, match="'cosine'"):
        make_beta_schedule("sigmoid", 10)
    with pytest.raises(ValueError, match="'v'"):
        schedule_of(parameterization="score")


@pytest.mark.parametrize("betas", [[0.1], [0.1, 1.0], [0.0, 0.1], [[0.1, 0.2]], [0.1, np.nan]])
def test_betas_that_are_no_variances_are_refused(betas: list) -> None:
    with pytest.raises(ValueError, match="betas must be"):
        NoiseSchedule.from_betas(betas)


def test_beta_schedules_run_between_the_given_ends() -> None:
    for kind, power in (("linear", 1), ("sqrt_linear", 1), ("sqrt", 0.5)):
        betas = make_beta_schedule(kind, 50, 1e-3, 1e-1)
        np.testing.assert_allclose(betas[[0, -1]], [1e-3**power, 1e-1**power])
    roots = np.sqrt(make_beta_schedule("linear", 50, 1e-3, 1e-1))
    np.testing.assert_allclose(np.diff(roots), np.diff(roots)[0])


def test_sampling_parameters_agree_with_the_tables(schedule: NoiseSchedule) -> None:
    """Over all steps with eta 1 a sigma is the posterior's deviation."""
    sigmas, alphas, alphas_prev = make_ddim_sampling_parameters(
        schedule.alphas_cumprod, np.arange(1000), eta=1.0
    )
    np.testing.assert_allclose(sigmas**2, schedule.posterior_variance, rtol=2e-3, atol=1e-12)
    np.testing.assert_allclose(alphas, schedule.alphas_cumprod)
    np.testing.assert_allclose(alphas_prev, schedule.alphas_cumprod_prev)


def test_start_and_noise_are_found_again_under_any_parameterization(
    schedule: NoiseSchedule, noised: dict
) -> None:
    x_start, noise, t, x_t = (noised[k] for k in ("x_start", "noise", "t", "x_t"))
    for parameterization in PARAMETERIZATIONS:
        output = schedule.target(parameterization, x_start, noise, t)
        found = schedule.prediction(parameterization, output, x_t, t)
        torch.testing.assert_close(found.start, x_start, rtol=0, atol=2e-5)
        torch.testing.assert_close(found.noise, noise, rtol=0, atol=2e-5)


def test_velocity_is_the_quarter_turn_of_the_noised_latent(
    schedule: NoiseSchedule, noised: dict
) -> None:
    """x_t and v are one rotation of (x_0, eps): lengths are kept."""
    x_start, noise, t, x_t = (noised[k] for k in ("x_start", "noise", "t", "x_t"))
    v = schedule.velocity(x_start, noise, t)
    torch.testing.assert_close(x_t**2 + v**2, x_start**2 + noise**2, rtol=1e-5, atol=1e-5)


def test_bound_weights_of_velocity_and_noise_weigh_the_same_error_equally(
    schedule: NoiseSchedule, noised: dict
) -> None:
    """An error in v, read as an error in eps at the same x_t, costs the same."""
    t, x_t, v = torch.tensor([1, 10, 300, 700, 999]), noised["x_t"], noised["noise"]
    error = 0.1 * torch.ones_like(v)
    in_noise = schedule.predict_eps_from_v(x_t, t, v + error) - schedule.predict_eps_from_v(
        x_t, t, v
    )
    for_v = extract_into_tensor(
        schedule_of("linear", "v", 0.0, **GOLDEN.config["q"]).lvlb_weights, t, v.shape
    )
    for_noise = extract_into_tensor(schedule.lvlb_weights, t, v.shape)
    torch.testing.assert_close(for_v * error**2, for_noise * in_noise**2, rtol=1e-3, atol=1e-9)


def test_posterior_is_bayes_rule(schedule: NoiseSchedule) -> None:
    """q(x_{t-1} | x_t, x_0) has the precision of both neighbours, and their weighted mean."""
    t = torch.tensor([1, 40, 999])
    x_start, x_t = torch.randn(2, 3, 1, dtype=torch.float64)
    beta = schedule.betas[t].double()[:, None]
    a_prev = schedule.alphas_cumprod_prev[t].double()[:, None]
    precision = (1 - beta) / beta + 1 / (1 - a_prev)
    mean = ((1 - beta).sqrt() * x_t / beta + a_prev.sqrt() * x_start / (1 - a_prev)) / precision
    found, variance, log_variance = schedule.q_posterior(x_start, x_t, t)
    torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(variance.double(), 1 / precision, rtol=1e-4, atol=0)
    torch.testing.assert_close(log_variance.exp(), variance)


def test_v_posterior_mixes_the_two_variances() -> None:
    large = schedule_of(v_posterior=1.0)
    torch.testing.assert_close(large.posterior_variance, large.betas)


def test_the_schedule_is_read_back_from_buffers(schedule: NoiseSchedule) -> None:
    module = torch.nn.Module()
    for name in NoiseSchedule.names():
        module.register_buffer(name, getattr(schedule, name))
    assert NoiseSchedule.from_buffers(module.double()).betas.dtype == torch.float64
    assert len(NoiseSchedule.names()) == 13


def test_noise_follows_its_generator_and_repeats_rows_when_asked() -> None:
    def draw(**kwargs) -> torch.Tensor:
        return noise_like((3, 2, 5), "cpu", generator=torch.Generator().manual_seed(4), **kwargs)

    assert torch.equal(draw(), draw())
    repeated = draw(repeat=True)
    assert torch.equal(repeated[0], repeated[2])
    assert not torch.equal(draw()[0], draw()[2])


def test_one_generator_a_row_makes_rows_independent() -> None:
    def draw(*seeds: int) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return noise_like((len(seeds), 2, 5), "cpu", generator=generators)

    assert torch.equal(draw(1, 2, 3)[1], draw(2)[0])
    with pytest.raises(ValueError, match="2 generators for 3 rows"):
        noise_like((3, 1), "cpu", generator=[torch.Generator()] * 2)
