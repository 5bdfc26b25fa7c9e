"""Weights laid out as the configuration says: nothing of what is learned is rounded."""

import sys

import pytest
import torch
from omegaconf import OmegaConf

from benchmarks.workload import Workload
from ldm.checkpoint import read_embeddings
from ldm.concepts.recorder import WordAttention
from ldm.errors import UserError
from ldm.modules.attention_control import controlling
from ldm.training.host import keep_freed_memory, narrow_frozen, settle


def made(toy) -> Workload:
    return Workload.of([str(toy.method), str(toy.backbone)], 2)


def test_narrow_network_gives_nearly_the_same_gradient(toy):
    exact, work = made(toy).gradient(1), made(toy)
    table = work.model.cond_stage_model.token_embedding.weight.clone()
    settle(work.model, OmegaConf.create({"frozen_dtype": "bfloat16", "channels_last": True}))
    found = work.gradient(1)
    assert found.dtype == torch.float32
    assert 0 < (found - exact).norm() / exact.norm() < 0.05
    unet = work.model.model.diffusion_model
    assert {p.dtype for p in unet.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in work.model.first_stage_model.parameters()} == {torch.float32}
    again = work.model.cond_stage_model.token_embedding.weight
    assert torch.equal(again, table), "new words start from what is not rounded"
    assert unet.input_blocks[0][0].weight.is_contiguous(memory_format=torch.channels_last)


def test_narrowing_twice_is_narrowing_once(toy):
    work = made(toy)
    narrow_frozen(work.model, torch.bfloat16)
    once = work.gradient(1)
    narrow_frozen(work.model, torch.bfloat16)
    assert torch.equal(work.gradient(1), once)


def test_what_is_trained_is_not_narrowed(toy):
    work = made(toy)
    work.model.model.requires_grad_(True)
    with pytest.raises(UserError, match="frozen_dtype"):
        settle(work.model, OmegaConf.create({"frozen_dtype": "bfloat16"}))


def test_unknown_type_is_named(toy):
    with pytest.raises(UserError, match="int8"):
        settle(made(toy).model, OmegaConf.create({"frozen_dtype": "int8"}))


def test_a_compiled_network_gives_the_same_gradient_and_attention(toy):
    exact, work = made(toy).gradient(1), made(toy)
    keys = list(work.model.state_dict())
    settle(work.model, OmegaConf.create({"compile": "eager"}))
    assert list(work.model.state_dict()) == keys
    torch.testing.assert_close(work.gradient(1), exact)
    network, context = work.model.model.diffusion_model, work.model.get_learned_conditioning(["a"])
    x, t, maps = torch.randn(1, *work.model.latent_shape()), torch.tensor([5]), []
    for run in (network, network.forward):
        recorder = WordAttention([{"a": [1]}], [8])
        with torch.no_grad(), controlling(network, recorder):
            run(x, t, context=context)
        maps.append(recorder.maps())
    torch.testing.assert_close(*maps)


def test_an_unknown_backend_is_named(toy):
    with pytest.raises(UserError, match="fastest"):
        settle(made(toy).model, OmegaConf.create({"compile": "fastest"}))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_memory_is_kept():
    assert keep_freed_memory()


def test_a_run_with_a_narrow_network(toy, tmp_path, command):
    done = command(toy.arguments(tmp_path / "logs", "frozen_dtype=bfloat16"), tmp_path / "logs")
    assert done.code == 0, done.said
    words = read_embeddings(done.folder / "checkpoints" / "embeddings.safetensors").vectors
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in words.values())
