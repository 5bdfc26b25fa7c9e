"""ReVersion: the steering loss, and timesteps drawn where the noise is strong."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from ldm.concepts.context_loss import ContextLoss
from ldm.concepts.steering import Steering, importance_weights
from ldm.models.diffusion.draws import draw, draw_timesteps
from tests.concepts.toy import make_step

CPU = torch.device("cpu")
SKEWED = importance_weights(1000, 0.5)


def held(vectors):
    return SimpleNamespace(string_to_param_dict={"<R>": vectors})


def step(number, vectors, run=0, **details):
    given = {"run": torch.tensor([run, run]), "extras": {"step": torch.tensor([number, number])}}
    return make_step(2, embeddings=held(vectors), **{**given, **details})


def steering(**options) -> Steering:
    """The term over ten positives and six negatives of width five."""
    generator = torch.Generator().manual_seed(7)
    term = Steering(1.0, {"<R>": "relation"}, **options)
    near, far = (torch.randn(n, 5, generator=generator) for n in (10, 6))
    term.neighbours = {"<R>": (near, far)}
    return term


def formula(vector, near, far):
    """InfoNCE of unit vectors at 0.07 with all of `near` in the numerator."""
    vector, near, far = (F.normalize(each, dim=-1) for each in (vector, near, far))
    top = (near @ vector / 0.07).exp().sum()
    return -math.log(top / (top + (far @ vector / 0.07).exp().sum()))


def test_equals_the_published_formula_with_all_positives():
    vector, term = torch.randn(1, 5), steering(positives_per_step=None)
    value = term(step(0, vector))
    assert value.loss.item() == pytest.approx(formula(vector[0], *term.neighbours["<R>"]), rel=1e-4)
    assert set(value.logs) == {"steering_share"}


def test_a_step_draws_its_positives_from_seed_run_and_step_alone():
    vector, term = torch.randn(1, 5), steering()
    near, far = term.neighbours["<R>"]
    losses = {}
    for number in range(12):
        chosen = term.choose(near, step(number, vector), 0)
        assert chosen.shape == (4, 5)
        assert len({tuple(row) for row in chosen.tolist()}) == 4
        loss = term(step(number, vector)).loss.item()
        assert loss == pytest.approx(formula(vector[0], chosen, far), rel=1e-4)
        losses[number] = loss
    torch.manual_seed(99)
    for number in reversed(range(12)):
        assert steering()(step(number, vector)).loss.item() == losses[number]


def test_seeds_runs_and_steps_draw_different_positives():
    def choices(run=0, **options):
        term, vector = steering(**options), torch.randn(1, 5)
        near, _ = term.neighbours["<R>"]
        return torch.stack([term.choose(near, step(n, vector, run), 0) for n in range(12)])

    plain = choices()
    assert len(plain.flatten(1).unique(dim=0)) > 8
    assert torch.equal(plain, choices())
    assert not torch.equal(plain, choices(run=1))
    assert not torch.equal(plain, choices(seed=1))


def test_every_positive_takes_part_sooner_or_later():
    term, vector = steering(), torch.randn(1, 5)
    near, _ = term.neighbours["<R>"]
    rows = {tuple(r) for n in range(40) for r in term.choose(near, step(n, vector), 0).tolist()}
    assert rows == {tuple(row) for row in near.tolist()}


def test_a_batch_without_steps_draws_from_the_global_generator():
    term, vector = steering(), torch.randn(1, 5)
    plain = make_step(2, embeddings=held(vector))
    torch.manual_seed(5)
    first = [term(plain).loss.item() for _ in range(4)]
    torch.manual_seed(5)
    assert [term(plain).loss.item() for _ in range(4)] == first
    assert len(set(first)) > 1


def test_packed_runs_equal_each_alone():
    vectors, term = torch.randn(2, 3, 5), steering()
    run, at = torch.tensor([0, 0, 1, 1]), torch.tensor([4, 4, 4, 4])
    together = make_step(4, run=run, runs=2, embeddings=held(vectors), extras={"step": at})
    alone = [term(step(4, vectors[number], run=number)).loss for number in range(2)]
    torch.testing.assert_close(term(together).loss, torch.cat(alone))


def test_the_word_moves_towards_prepositions():
    vector = torch.randn(1, 5, requires_grad=True)
    term = steering(positives_per_step=None)
    near, far = term.neighbours["<R>"]

    def margin():
        word = vector.detach()
        return (F.cosine_similarity(word, near).max() - F.cosine_similarity(word, far).max()).item()

    before = margin()
    for number in range(50):
        (gradient,) = torch.autograd.grad(term(step(number, vector)).loss.sum(), vector)
        with torch.no_grad():
            vector -= 0.02 * gradient
    assert margin() > before


def test_is_the_context_loss_by_other_options():
    vector, term = torch.randn(2, 5), steering(positives_per_step=None)
    other = ContextLoss(1.0, {"<R>": "relation"}, similarity="cosine", temperature=0.07)
    other.neighbours = term.neighbours
    assert torch.equal(other(step(0, vector)).loss, term(step(0, vector)).loss)
    assert (Steering().weight, Steering().positives_per_step) == (0.01, 4)
    with pytest.raises(ValueError, match="positives_per_step"):
        Steering(positives_per_step=0)


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
        assert torch.allclose(importance_weights(8, 0.0), torch.full((8,), 0.125).double())
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
