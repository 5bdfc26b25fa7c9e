"""The U-Net against recorded figures, public checkpoints' names, and the laws of its options."""

import gzip
import json

import pytest
import torch

from ldm.modules.diffusionmodules import util
from ldm.modules.diffusionmodules.openaimodel import (
    AttentionBlock,
    Downsample,
    ResBlock,
    UNetModel,
    Upsample,
)
from tests.golden import FOLDER, fill, golden

SMALL = {
    "image_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
    "num_heads": 2,
}
TEXT = {**SMALL, "use_spatial_transformer": True, "context_dim": 12}


def read(name: str) -> dict:
    with gzip.open(FOLDER / "manifests" / name, "rt") as file:
        return json.load(file)


def public_unets() -> dict[str, dict]:
    """Every distinct U-Net of the public configs, by the name of one that has it."""
    found = {}

    def walk(node: object, name: str) -> None:
        if not isinstance(node, dict):
            return
        if str(node.get("target", "")).endswith("openaimodel.UNetModel"):
            found.setdefault(json.dumps(node["params"], sort_keys=True), name)
        for value in node.values():
            walk(value, name)

    for name, config in read("public-configs.json.gz").items():
        walk(config, name)
    return {name: json.loads(params) for params, name in found.items()}


def public_config(path: str) -> dict:
    """The U-Net's parameters in the public config file called `path`."""
    values = read("public-configs.json.gz")[path]["values"]
    return values["model"]["params"]["unet_config"]["params"]


def shapes(module: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in module.state_dict().items()}


def test_timestep_embedding_golden():
    case = golden("timestep_embedding")
    case.check("dim32", util.timestep_embedding(case["timesteps"], 32))
    case.check("dim33", util.timestep_embedding(case["timesteps"], 33))
    case.check("dim320", util.timestep_embedding(case["timesteps"], 320)[:, ::7])
    case.check("float_dim32", util.timestep_embedding(case["timesteps_float"], 32))


def test_res_block_golden():
    case = golden("blocks")
    block = fill(ResBlock(**case.config["res_block"]), case.seed)
    assert shapes(block) == case.keys()["res_block"]
    case.check("rb_out", block(case["rb_x"], case["rb_emb"]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["text2img", "sdv1_style", "headch", "uncond"])
def test_unet_golden(name, layout):
    case = golden(f"unet_{name}")
    unet = fill(UNetModel(**case.config), case.seed).to(memory_format=layout)
    assert shapes(unet) == case.keys()["unet"]
    x = case["x"].contiguous(memory_format=layout)
    with torch.no_grad():
        out = unet(x, case["timesteps"], context=case.tensors.get("context"))
    case.check("out", out)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("txt2img-1p4B", "configs/latent-diffusion/txt2img-1p4B-eval.yaml"),
        ("sd-v1", "configs/stable-diffusion/v1-inference.yaml"),
        ("celebahq-ldm-vq-4", "configs/latent-diffusion/celebahq-ldm-vq-4.yaml"),
    ],
)
def test_state_dict_keys_are_those_of_public_checkpoints(name, path):
    manifest, prefix = read(f"{name}.json.gz"), "model.diffusion_model."
    with torch.device("meta"):
        unet = UNetModel(**public_config(path))
    expected = {k.removeprefix(prefix): v for k, v in manifest["keys"].items() if prefix in k}
    assert len(expected) > 300
    assert shapes(unet) == expected


@pytest.mark.parametrize("name", sorted(public_unets()))
def test_every_public_unet_runs_when_narrow(name):
    config = {**public_unets()[name], "model_channels": 32, "num_res_blocks": 1}
    unet = UNetModel(**config)
    context = torch.randn(1, 7, config["context_dim"]) if "context_dim" in config else None
    with torch.no_grad():
        out = unet(torch.randn(1, config["in_channels"], 16, 32), torch.zeros(1), context)
    assert out.shape == (1, config["out_channels"], 16, 32)


def test_it_starts_at_zero_and_learns():
    unet = UNetModel(**TEXT)
    out = unet(torch.randn(2, 3, 8, 8), torch.tensor([1, 2]), torch.randn(2, 4, 12))
    assert torch.count_nonzero(out) == 0
    out.sum().backward()
    assert unet.out[2].weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    "options",
    [
        {"use_scale_shift_norm": True, "resblock_updown": True},
        {"conv_resample": False},
        {"use_new_attention_order": True},
        {"num_heads": -1, "num_head_channels": 16},
        {"num_heads_upsample": 4},
        {"dims": 1},
        {"dims": 3},
        {"dropout": 0.5},
        {"use_checkpoint": True},
    ],
    ids=str,
)
def test_options_run_and_depend_on_input(options):
    unet = fill(UNetModel(**SMALL, **options)) if "num_heads" not in options else None
    unet = unet or fill(UNetModel(**{**SMALL, **options}))
    x = torch.randn(2, 3, *(8,) * options.get("dims", 2))
    out = unet(x, torch.tensor([1, 500]))
    assert out.shape == x.shape
    assert not torch.allclose(out, unet(x, torch.tensor([900, 500])), atol=1e-4)
    assert not torch.allclose(out, unet(x.flip(-1), torch.tensor([1, 500])), atol=1e-4)


def test_classes_condition_the_result():
    unet = fill(UNetModel(**SMALL, num_classes=5))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 500])
    assert unet.label_emb.weight.shape == (5, 128)
    a, b = (unet(x, t, y=torch.tensor([label, 0])) for label in (1, 4))
    assert not torch.allclose(a[0], b[0], atol=1e-4)
    torch.testing.assert_close(a[1], b[1])


def test_codebook_scores():
    unet = fill(UNetModel(**SMALL, n_embed=7))
    assert {"id_predictor.0.weight", "id_predictor.1.weight"} <= set(unet.state_dict())
    assert unet(torch.randn(1, 3, 8, 8), torch.tensor([1])).shape == (1, 7, 8, 8)


def test_numbers_of_heads():
    def heads(**options: object) -> list[int]:
        unet = UNetModel(**{**SMALL, **options})
        return [m.num_heads for m in unet.modules() if isinstance(m, AttentionBlock)]

    # one block on the way down, one in the middle, two on the way up
    assert heads() == [2, 2, 2, 2]
    assert heads(num_heads_upsample=4) == [2, 2, 4, 4]
    assert heads(num_heads_upsample=4, legacy=False) == [2, 2, 2, 2]
    assert heads(num_head_channels=16) == [4, 4, 4, 4]


def test_attention_orders_differ_by_a_permutation():
    old = fill(AttentionBlock(64, num_heads=4))
    new = AttentionBlock(64, num_heads=4, use_new_attention_order=True)
    rows = torch.arange(192).reshape(4, 3, 16).transpose(0, 1).flatten()
    state = old.state_dict()
    state["qkv.weight"], state["qkv.bias"] = state["qkv.weight"][rows], state["qkv.bias"][rows]
    new.load_state_dict(state)
    x = torch.randn(2, 64, 3, 5)
    assert (old(x) - x).abs().max() > 0.01
    torch.testing.assert_close(new(x), old(x))


def test_resampling_is_inverse_on_flat_blocks():
    x = torch.randn(1, 32, 3, 4)
    assert torch.equal(Downsample(32, False)(Upsample(32, False)(x)), x)
    assert Downsample(32, True, out_channels=64)(x).shape == (1, 64, 2, 2)
    assert Upsample(32, True, out_channels=64)(x).shape == (1, 64, 6, 8)
    with pytest.raises(ValueError, match="use_conv=True"):
        Downsample(32, False, out_channels=64)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_autocast_is_close_and_gives_the_type_of_the_input(layout):
    unet = fill(UNetModel(**TEXT)).to(memory_format=layout)
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=layout)
    t, c = torch.tensor([1, 500]), torch.randn(2, 4, 12)
    exact = unet(x, t, c)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = unet(x, t, c)
    assert narrow.dtype == torch.float32
    assert narrow.is_contiguous(memory_format=layout)
    assert 0 < (narrow - exact).abs().max() < 0.05 * exact.abs().max()
    narrow.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unet.parameters())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_narrow_weights(layout):
    exact, unet = fill(UNetModel(**TEXT)), fill(UNetModel(**TEXT)).bfloat16()
    unet = unet.to(memory_format=layout)
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=layout)
    t, c = torch.tensor([1, 500]), torch.randn(2, 4, 12, requires_grad=True)
    assert unet.dtype == torch.bfloat16
    out = unet(x, t, c)
    assert out.dtype == torch.float32
    assert (out - exact(x, t, c)).abs().max() < 0.05 * out.abs().max()
    out.sum().backward()
    assert c.grad.abs().max() > 0
    assert UNetModel(**SMALL, use_fp16=True).dtype == torch.float16


def test_group_norm_keeps_type_and_value():
    norm = fill(util.normalization(64))
    x = torch.randn(2, 64, 4, 6)
    for layout in (torch.contiguous_format, torch.channels_last):
        narrow = norm(x.bfloat16().contiguous(memory_format=layout))
        assert narrow.dtype == torch.bfloat16
        assert narrow.is_contiguous(memory_format=layout)
        torch.testing.assert_close(narrow.float(), norm(x), rtol=0.02, atol=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": -1}, "neither num_heads nor num_head_channels"),
        ({"num_heads": 3}, "divisor of every width"),
        ({"num_head_channels": 24}, "divisor of every width"),
        ({"use_spatial_transformer": True}, "context_dim"),
        ({"context_dim": 12}, "use_spatial_transformer=True"),
        ({"model_channels": 20}, "multiple of 32"),
        ({"dims": 4}, "dims=4"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        UNetModel(**{**SMALL, **change})


def test_impossible_inputs_are_refused():
    unet, x, t = UNetModel(**SMALL), torch.randn(1, 3, 8, 8), torch.tensor([1])
    with pytest.raises(ValueError, match="timesteps are missing"):
        unet(x)
    with pytest.raises(ValueError, match="y was given"):
        unet(x, t, y=torch.tensor([0]))
    with pytest.raises(ValueError, match="no y was given"):
        UNetModel(**SMALL, num_classes=2)(x, t)
    with pytest.raises(ValueError, match="multiples of 2"):
        unet(x[..., :7], t)
