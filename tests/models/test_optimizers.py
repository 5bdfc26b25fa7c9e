"""Muon beside AdamW: what each parameter's step is, and that a run can be resumed."""

import copy

import pytest
import torch
from torch import nn

from ldm.models.diffusion.base import DDPM
from ldm.models.diffusion.optim import Muon, adamw, matrices, orthogonalized

RATE, DECAY = 0.01, 0.1


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(11, 6), nn.Linear(6, 12), nn.Unflatten(1, (3, 2, 2)),
        nn.Conv2d(3, 5, 3, padding=1), nn.GroupNorm(5, 5), nn.Flatten(1), nn.Linear(20, 1),
    )  # fmt: skip


def optimizer_of(network: nn.Module, *, muon: bool = True):
    chosen = matrices(network) if muon else []
    return adamw(list(network.parameters()), RATE, weight_decay=DECAY, orthogonal=chosen)


def step(network: nn.Module, optimizer, seed: int) -> None:
    tokens = torch.randint(11, (32,), generator=torch.Generator().manual_seed(seed))

    def closure():
        optimizer.zero_grad()
        loss = (network(tokens).squeeze(1) - tokens / 10).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure).requires_grad


class TestOrthogonalized:
    @pytest.mark.parametrize("shape", [(8, 8), (4, 32), (32, 4)])
    def test_singular_values_are_about_one(self, shape):
        found = orthogonalized(torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)))
        values = torch.linalg.svdvals(found)
        assert found.shape == (3, *shape)
        assert values.min() > 0.5
        assert values.max() < 1.3

    def test_directions_are_kept(self):
        left, _, right = torch.linalg.svd(torch.randn(6, 6, dtype=torch.float64))
        given = left @ torch.diag(torch.linspace(0.3, 1.0, 6, dtype=torch.float64)) @ right
        found = orthogonalized(given[None])[0]
        diagonal = left.mT @ found @ right.mT
        assert torch.all(diagonal.diagonal() > 0.5)
        assert (diagonal - torch.diag(diagonal.diagonal())).abs().max() < 0.1

    def test_zeros_stay(self):
        assert not orthogonalized(torch.zeros(1, 3, 4)).any()


class TestMuon:
    def test_matrices_are_those_of_layers(self, network):
        network[1].weight.requires_grad_(False)
        assert [tuple(each.shape) for each in matrices(network)] == [(5, 3, 3, 3), (1, 20)]

    def test_a_step_has_the_length_of_adamws(self, network):
        before = [each.detach().clone() for each in matrices(network)]
        step(network, optimizer_of(network), seed=0)
        for old, new in zip(before, matrices(network), strict=True):
            moved = (new - old * (1 - RATE * DECAY)).detach()
            # Singular values of one: mean square 1 / max(m, n), times (0.2 rate)^2 max(m, n). Small
            # ones, of directions that the gradient hardly has, do not get so far.
            assert 0.5 < moved.square().mean().sqrt() / (0.2 * RATE) < 1.2

    def test_everything_else_takes_adamws_step(self, network):
        other = copy.deepcopy(network)
        step(network, optimizer_of(network), seed=0)
        step(other, optimizer_of(other, muon=False), seed=0)
        turned = {id(each) for each in matrices(network)}
        for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
            assert torch.equal(ours, theirs) == (id(ours) not in turned)

    def test_how_a_filter_lies_in_memory_changes_nothing(self, network):
        other = copy.deepcopy(network).to(memory_format=torch.channels_last)
        step(network, optimizer_of(network), seed=0)
        step(other, optimizer_of(other), seed=0)
        torch.testing.assert_close(network[3].weight, other[3].weight)

    def test_a_resumed_run_is_the_uninterrupted_one(self, network):
        optimizer = optimizer_of(network)
        step(network, optimizer, seed=0)
        resumed = copy.deepcopy(network)
        later = optimizer_of(resumed)
        later.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        step(network, optimizer, seed=1)
        step(resumed, later, seed=1)
        for ours, theirs in zip(network.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(ours, theirs)

    def test_it_learns(self, network):
        optimizer = optimizer_of(network)
        tokens = torch.arange(11)
        for number in range(60):
            step(network, optimizer, seed=number)
        assert (network(tokens).squeeze(1) - tokens / 10).square().mean() < 0.01

    def test_it_is_there_only_where_it_is_asked_for(self, network):
        assert isinstance(optimizer_of(network), Muon)
        assert not isinstance(optimizer_of(network, muon=False), Muon)

    def test_others_are_refused_by_name(self):
        with pytest.raises(ValueError, match=r"optimizer 'sgd' is unknown; .*'adamw', 'muon'"):
            DDPM({}, optimizer="sgd")
