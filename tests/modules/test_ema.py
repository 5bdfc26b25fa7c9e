"""The laws of averaged weights, and the names under which public checkpoints keep them."""

import gzip
import json

import pytest
import torch
from torch import nn

from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.ema import LitEma
from tests.golden import FOLDER


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def shift(model: nn.Module, by: float = 1.0) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by)


def test_names_are_those_of_public_checkpoints():
    with gzip.open(FOLDER / "manifests" / "celebahq-ldm-vq-4.json.gz", "rt") as file:
        manifest = json.load(file)["keys"]
    config = {
        "image_size": 64,
        "in_channels": 3,
        "out_channels": 3,
        "model_channels": 224,
        "attention_resolutions": [8, 4, 2],
        "num_res_blocks": 2,
        "channel_mult": [1, 2, 3, 4],
        "num_head_channels": 32,
    }
    with torch.device("meta"):
        model = nn.ModuleDict({"diffusion_model": UNetModel(**config)})
        state = LitEma(model).state_dict()
    prefix = "model_ema."
    expected = {k.removeprefix(prefix): v for k, v in manifest.items() if k.startswith(prefix)}
    assert {name: list(value.shape) for name, value in state.items()} == expected


def test_average_is_the_recursion():
    model = make()
    ema, expected = LitEma(model, decay=0.9, use_num_updates=True), weights(model)
    for n in range(1, 25):
        shift(model, 1.0 / n)
        ema(model)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = [
            decay * e + (1 - decay) * p for e, p in zip(expected, weights(model), strict=True)
        ]
    assert ema.num_updates == 24
    ema.copy_to(model)
    for got, want in zip(weights(model), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_constant_decay_without_counting():
    model = make()
    start = weights(model)
    ema = LitEma(model, decay=0.75, use_num_updates=False)
    shift(model)
    ema(model)
    assert ema.num_updates == -1
    ema.copy_to(model)
    for got, want in zip(weights(model), start, strict=True):
        torch.testing.assert_close(got, want + 0.25)


def test_scope_restores_exactly():
    model = make()
    ema, averaged = LitEma(model), weights(model)
    shift(model, 0.1)
    before = weights(model)
    with ema.scope(model):
        assert all(map(torch.equal, weights(model), averaged))
    assert all(map(torch.equal, weights(model), before))
    with pytest.raises(RuntimeError, match="shape"), ema.scope(model):
        model(torch.zeros(1, 5))
    assert all(map(torch.equal, weights(model), before))
    ema.store(model.parameters())
    ema.copy_to(model)
    ema.restore(model.parameters())
    assert all(map(torch.equal, weights(model), before))


def test_averages_survive_a_checkpoint():
    model = make()
    ema = LitEma(model, decay=0.5)
    shift(model)
    ema(model)
    again = LitEma(make())
    again.load_state_dict(ema.state_dict())
    for one in (ema, again):
        one(model)
    assert all(map(torch.equal, ema.buffers(), again.buffers()))
    assert not any(buffer.requires_grad for buffer in ema.buffers())


def test_misuse_is_refused():
    model = make()
    with pytest.raises(ValueError, match="between 0 and 1"):
        LitEma(model, decay=1.5)
    ema = LitEma(model)
    with pytest.raises(RuntimeError, match="call store"):
        ema.restore(model.parameters())
    with pytest.raises(ValueError, match="not the model"):
        ema(nn.Linear(2, 2))
    clash = nn.ModuleDict({"a": nn.Linear(1, 1)})
    clash.register_parameter("aweight", nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match="without dots"):
        LitEma(clash)
