"""The blocks of the first stage: shapes, memory layout, precision, quantisation."""

import pytest
import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.group_norm import GroupNorm
from ldm.modules.diffusionmodules.model import (
    AttnBlock,
    Decoder,
    Downsample,
    Encoder,
    Normalize,
    ResnetBlock,
    StageConfig,
    Upsample,
)
from ldm.modules.vector_quantizer import VectorQuantizer
from tests.golden import fill

SMALL = {
    "ch": 32,
    "out_ch": 3,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "in_channels": 3,
    "resolution": 16,
    "z_channels": 4,
}


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The gradients of a lopsided function of the output, for input and weights."""
    x = x.detach().requires_grad_()
    y = module(x)
    weights = torch.linspace(-1.0, 2.0, y.numel()).reshape(y.shape)
    return list(torch.autograd.grad((y.float() * weights).sum(), [x, *module.parameters()]))


def test_encoder_and_decoder_change_size_by_the_same_factor():
    encoder, decoder = Encoder(**SMALL), Decoder(**SMALL)
    latent = encoder(torch.randn(2, 3, 16, 24))
    assert latent.shape == (2, 8, 8, 12)
    assert decoder(latent[:, :4]).shape == (2, 3, 16, 24)
    assert Encoder(**SMALL, double_z=False)(torch.randn(1, 3, 16, 16)).shape == (1, 4, 8, 8)


def test_decoder_ends_early_or_bounded_when_asked():
    z = torch.randn(1, 4, 8, 8) * 50
    assert fill(Decoder(**SMALL, give_pre_end=True))(z).shape == (1, 32, 16, 16)
    free, bounded = fill(Decoder(**SMALL)), fill(Decoder(**SMALL, tanh_out=True))
    torch.testing.assert_close(bounded(z), free(z).tanh())


def test_attention_sits_where_configured():
    names = [n for n, m in Encoder(**SMALL, attn_resolutions=[8]).named_modules() if "attn" in n]
    assert "down.1.attn.0.q" in names
    assert not any(name.startswith("down.0.attn.0") for name in names)
    without = Encoder(**SMALL, attn_resolutions=[8], attn_type="none")
    assert not any("attn" in name for name in without.state_dict())


@pytest.mark.parametrize("wrong", [{"attn_type": "linear"}, {"use_linear_attn": True}])
def test_unpublished_attention_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match="linear"):
        StageConfig(**SMALL, **wrong)


def test_unknown_keyword_is_refused_by_name():
    with pytest.raises(TypeError, match="chanels"):
        Encoder(**SMALL, chanels=3)


def test_attention_equals_the_formula():
    block, x = fill(AttnBlock(32)), torch.randn(2, 32, 4, 6)
    h = block.norm(x)
    q, k, v = (project(h).flatten(2) for project in (block.q, block.k, block.v))
    probabilities = (torch.einsum("bci,bcj->bij", q, k) / 32**0.5).softmax(-1)
    gathered = torch.einsum("bij,bcj->bci", probabilities, v).reshape(x.shape)
    torch.testing.assert_close(block(x), x + block.proj_out(gathered), atol=1e-5, rtol=1e-5)


def test_downsampling_pads_right_and_bottom_only():
    down = Downsample(1)
    with torch.no_grad():
        down.conv.weight.zero_()[0, 0, 0, 0] = 1.0
        down.conv.bias.zero_()
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    torch.testing.assert_close(down(x), x[..., ::2, ::2])


def test_resampling_without_convolution_has_no_weights():
    x = torch.randn(1, 2, 4, 4)
    up, down = Upsample(2, with_conv=False), Downsample(2, with_conv=False)
    assert not up.state_dict()
    assert not down.state_dict()
    torch.testing.assert_close(down(up(x)), x)


@pytest.mark.parametrize(("channels", "groups"), [(32, 32), (512, 32), (48, 16), (24, 8)])
def test_groups_divide_the_channels(channels, groups):
    norm = Normalize(channels)
    assert (norm.num_groups, norm.eps) == (groups, 1e-6)


def test_fewer_groups_are_used_throughout():
    for part in (Encoder(**SMALL, norm_groups=8), Decoder(**SMALL, norm_groups=8)):
        norms = [module for module in part.modules() if isinstance(module, nn.GroupNorm)]
        assert norms
        assert {norm.num_groups for norm in norms} == {8}


@pytest.mark.parametrize("channels", [32, 64, 512])
def test_group_norm_has_the_gradients_of_torch_in_every_layout(channels):
    ours, theirs = GroupNorm(32, channels, eps=1e-6), nn.GroupNorm(32, channels, eps=1e-6)
    fill(ours), fill(theirs)
    x = torch.randn(2, channels, 4, 6) + 1.0
    for layout in (torch.contiguous_format, torch.channels_last):
        laid_out = x.contiguous(memory_format=layout)
        torch.testing.assert_close(ours(laid_out), theirs(x))
        for got, expected in zip(gradients(ours, laid_out), gradients(theirs, x), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_layout_and_precision_change_little():
    encoder, x = fill(Encoder(**SMALL, attn_resolutions=[8])), torch.randn(2, 3, 16, 16)
    expected = encoder(x)
    last = encoder(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(x.contiguous(memory_format=torch.channels_last))
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() < 0.05 * expected.norm()


def test_residual_block_keeps_its_input_when_the_convolutions_add_nothing():
    block, x = ResnetBlock(32), torch.randn(1, 32, 4, 4)
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    torch.testing.assert_close(block(x), x)
    assert not any("nin_shortcut" in name for name in block.state_dict())
    assert "nin_shortcut.weight" in ResnetBlock(32, 64).state_dict()


def test_quantiser_takes_the_nearest_code_and_passes_the_gradient_through():
    quantizer = VectorQuantizer(5, 3, sane_index_shape=True)
    nn.init.normal_(quantizer.embedding.weight)
    z = torch.randn(2, 3, 4, 4, requires_grad=True)
    codes, loss, (_, _, indices) = quantizer(z)
    distances = torch.cdist(z.movedim(1, -1).reshape(-1, 3), quantizer.embedding.weight)
    assert (indices.flatten() == distances.argmin(1)).all()
    torch.testing.assert_close(codes, quantizer.get_codebook_entry(indices))
    (gradient,) = torch.autograd.grad(codes.sum(), z, retain_graph=True)
    torch.testing.assert_close(gradient, torch.ones_like(z))
    loss.backward()
    assert quantizer.embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("legacy", "share"), [(True, 0.25), (False, 1.0)])
def test_beta_weighs_the_half_that_public_checkpoints_weighed(legacy, share):
    quantizer, z = VectorQuantizer(4, 2, beta=0.25, legacy=legacy), torch.randn(1, 2, 3, 3)
    codes, loss, (_, _, indices) = quantizer(z)
    distance = (quantizer.get_codebook_entry(indices.reshape(1, 3, 3)) - z).square().mean()
    torch.testing.assert_close(loss, 1.25 * distance)
    loss.backward()
    flat = quantizer.embedding.weight.detach().clone().requires_grad_()
    (flat[indices].reshape(1, 3, 3, 2).movedim(-1, 1) - z).square().mean().backward()
    torch.testing.assert_close(quantizer.embedding.weight.grad, share * flat.grad)
    torch.testing.assert_close(
        quantizer.get_codebook_entry(indices, shape=(1, 3, 3, 2)), codes.detach()
    )
