"""ReVersion: the steering loss."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from ldm.concepts.context_loss import ContextLoss
from ldm.concepts.steering import Steering
from tests.concepts.toy import make_step

CPU = torch.device("cpu")


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
