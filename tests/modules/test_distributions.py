"""The Gaussian of a latent: moments, reproducible samples, and divergences."""

import math

import pytest
import torch

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution, normal_kl


def gaussian(mean: float, logvar: float, **kwargs: bool) -> DiagonalGaussianDistribution:
    """The same Gaussian for each of the 2x3x4x4 values of two latents."""
    values = torch.tensor([mean, logvar]).repeat_interleave(3).reshape(1, 6, 1, 1)
    return DiagonalGaussianDistribution(values.expand(2, 6, 4, 4), **kwargs)


def test_the_standard_normal_has_no_divergence_from_itself():
    standard = gaussian(0.0, 0.0)
    assert torch.equal(standard.kl(), torch.zeros(2))
    torch.testing.assert_close(standard.kl(standard), torch.zeros(2))


def test_divergence_is_the_closed_form_for_every_image():
    one, other = gaussian(1.0, 0.5), gaussian(-0.5, -1.0)
    per_value = 0.5 * (math.exp(0.5) + 1.0 - 1.0 - 0.5)
    torch.testing.assert_close(one.kl(), torch.full((2,), 48 * per_value))
    torch.testing.assert_close(one.kl(gaussian(0.0, 0.0)), one.kl())
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(one.mean, one.std),
        torch.distributions.Normal(other.mean, other.std),
    )
    torch.testing.assert_close(one.kl(other), expected.flatten(1).sum(1))
    torch.testing.assert_close(
        normal_kl(one.mean, one.logvar, other.mean, other.logvar), expected, rtol=1e-5, atol=1e-5
    )


def test_likelihood_is_that_of_the_normal_distribution():
    one, sample = gaussian(1.0, 0.5), torch.randn(2, 3, 4, 4)
    expected = -torch.distributions.Normal(one.mean, one.std).log_prob(sample)
    torch.testing.assert_close(one.nll(sample), expected.flatten(1).sum(1))


def test_samples_follow_the_generator_alone():
    one = gaussian(1.0, 0.5)
    first, again = (one.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, one.sample(torch.Generator().manual_seed(4)))


def test_samples_have_the_moments():
    values = torch.tensor([2.0, math.log(9.0)]).reshape(1, 2, 1, 1).expand(1, 2, 200, 200)
    sample = DiagonalGaussianDistribution(values).sample(torch.Generator().manual_seed(0))
    assert sample.mean().item() == pytest.approx(2.0, abs=0.06)
    assert sample.std().item() == pytest.approx(3.0, abs=0.06)


def test_a_deterministic_one_is_its_mean():
    one = gaussian(1.0, 0.5, deterministic=True)
    assert torch.equal(one.sample(), one.mode())
    assert torch.equal(one.kl(), torch.zeros(2))
    assert torch.equal(one.nll(torch.randn(2, 3, 4, 4)), torch.zeros(2))


def test_extreme_variances_are_clamped():
    assert gaussian(0.0, -100.0).logvar.unique().tolist() == [-30.0]
    assert gaussian(0.0, 100.0).logvar.unique().tolist() == [20.0]
