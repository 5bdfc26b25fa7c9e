"""Timesteps drawn where the noise is strong, and what else a step draws."""

import math

import pytest
import torch

from ldm.models.diffusion.draws import draw, draw_timesteps, importance_weights

CPU = torch.device("cpu")
SKEWED = importance_weights(1000, 0.5)


class TestTimesteps:
    def batch(self, step, run=0, slots=4):
        return {"run": torch.full((slots,), run), "step": torch.full((slots,), step),
                "slot": torch.arange(slots)}  # fmt: skip

    def draws(self, step, weights, **options):
        batch = self.batch(step, **options)
        shape = (len(batch["slot"]), 4, 2, 2)
        return draw(batch, shape, 1000, seed=3, device=CPU, weights=weights)

    def test_the_weights_are_the_published_function(self):
        assert SKEWED.sum().item() == pytest.approx(1)
        for t in (0, 250, 500, 999):
            expected = (1 - 0.5 * math.cos(math.pi * t / 1000)) / 1000
            assert SKEWED[t].item() == pytest.approx(expected, rel=2e-3)
        assert (SKEWED.diff() > 0).all()
        assert importance_weights(8, 0.0) is None
        with pytest.raises(ValueError, match="skew"):
            importance_weights(10, 1.5)

    def test_timesteps_are_drawn_as_often_as_the_weights_say(self):
        t = draw_timesteps(1000, SKEWED, (40000,), torch.Generator().manual_seed(0))
        assert t.min() >= 0
        assert t.max() <= 999
        share = torch.histc(t.float(), 10, 0, 1000) / len(t)
        assert torch.allclose(share.double(), SKEWED.reshape(10, 100).sum(1), atol=0.006)

    def test_timesteps_without_weight_are_never_drawn(self):
        weights = torch.tensor([0.0, 2.0, 0.0, 1.0, 0.0])
        assert set(draw_timesteps(5, weights, (500,)).tolist()) == {1, 3}

    def test_weighted_draws_depend_on_seed_run_step_and_slot_alone(self):
        first = self.draws(5, SKEWED)
        torch.manual_seed(1)
        again = self.draws(5, SKEWED)
        fewer = self.draws(5, SKEWED, slots=2)
        assert torch.equal(first.t, again.t)
        assert torch.equal(first.t[:2], fewer.t)
        assert torch.equal(first.noise[:2], fewer.noise)
        assert not torch.equal(first.t, self.draws(6, SKEWED).t)
        assert not torch.equal(first.t, self.draws(5, SKEWED, run=1).t)

    def test_weights_change_the_timesteps_and_not_the_noise(self):
        plain, skewed = self.draws(5, None), self.draws(5, SKEWED)
        assert not torch.equal(plain.t, skewed.t)
        assert torch.equal(plain.noise, skewed.noise)
        assert torch.equal(plain.posterior, skewed.posterior)

    def test_a_plain_batch_is_weighted_too(self):
        drawn = draw({}, (4000, 1, 1, 1), 1000, seed=0, device=CPU, weights=SKEWED)
        assert drawn.t.float().mean() > 570
