"""Attention against recorded figures, and the laws of the controller slot."""

import pytest
import torch
from torch import Tensor

from ldm.modules.attention import (
    AttentionController,
    CrossAttention,
    SpatialTransformer,
    attention_probs,
    fused_attention,
)
from ldm.modules.attention_control import attention_sites, controlling
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from tests.golden import fill, golden
from tests.networks import UNET

CROSS = golden("cross_attention")


def make_unet(**changes: object) -> UNetModel:
    return fill(UNetModel(**{**UNET, **changes}))


def inputs(size: tuple[int, int] = (8, 4)) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 4, *size), torch.tensor([3, 700]), torch.randn(2, 5, 12)


class Observer(AttentionController):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.seen = []

    def observe(self, q, k, scale, site, grid):
        self.seen.append((site, grid, attention_probs(q, k, scale).detach()))


class Rewriter(AttentionController):
    """Keeps the probabilities and returns them multiplied."""

    rewrites = True

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.seen = factor, []

    def __call__(self, probs, site, grid):
        self.seen.append((site, grid, probs.detach()))
        return probs * self.factor if self.factor != 1.0 else probs


def cross_module() -> CrossAttention:
    return fill(CrossAttention(**CROSS.config), CROSS.seed)


def test_cross_attention_golden():
    module, mask = cross_module(), CROSS["mask"].bool()
    CROSS.check("out", module(CROSS["x"], CROSS["context"]))
    CROSS.check("out_masked", module(CROSS["x"], CROSS["context"], mask=mask))
    config = {**CROSS.config, "context_dim": None}
    CROSS.check("out_self", fill(CrossAttention(**config), CROSS.seed)(CROSS["x"]))
    shapes = {name: list(value.shape) for name, value in module.state_dict().items()}
    assert shapes == CROSS.keys()["cross"]


@pytest.mark.parametrize(("out", "probs"), [("out", "probs"), ("out_masked", "probs_masked")])
def test_probabilities_golden(out, probs):
    mask = CROSS["mask"].bool() if "masked" in out else None
    module, rewriter = cross_module(), Rewriter()
    with controlling(module, rewriter):
        CROSS.check(out, module(CROSS["x"], CROSS["context"], mask=mask))
    [(_, _, seen)] = rewriter.seen
    assert seen.shape == (2, 4, 24, 11)
    CROSS.check(probs, seen.flatten(0, 1))


def test_observed_probabilities_golden():
    module, observer = cross_module(), Observer()
    with controlling(module, observer):
        module(CROSS["x"], CROSS["context"], grid=(4, 6))
    [(site, grid, seen)] = observer.seen
    assert (site.is_cross, grid) == (True, (4, 6))
    CROSS.check("probs", seen.flatten(0, 1))


def test_spatial_transformer_golden():
    case = golden("blocks")
    module = fill(SpatialTransformer(**case.config["spatial_transformer"]), case.seed)
    shapes = {name: list(value.shape) for name, value in module.state_dict().items()}
    assert shapes == case.keys()["spatial_transformer"]
    for layout in (torch.contiguous_format, torch.channels_last):
        x = case["st_x"].contiguous(memory_format=layout)
        case.check("st_out", module(x, case["st_context"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_sum_to_one(dtype):
    q, k = torch.randn(2, 3, 7, 8, dtype=dtype) * 3, torch.randn(2, 3, 5, 8, dtype=dtype)
    probs = attention_probs(q, k, 0.35)
    assert probs.dtype == torch.float32
    assert probs.min() >= 0
    torch.testing.assert_close(probs.sum(-1), torch.ones(2, 3, 7))


def test_row_without_any_key_is_uniform_on_both_paths():
    module, mask = cross_module(), torch.zeros(2, 11, dtype=torch.bool)
    fused = module(CROSS["x"], CROSS["context"], mask=mask)
    with controlling(module, Rewriter()):
        explicit = module(CROSS["x"], CROSS["context"], mask=mask)
    mean = module.to_v(CROSS["context"]).mean(1, keepdim=True).expand(-1, 24, -1)
    torch.testing.assert_close(fused, module.to_out(mean))
    torch.testing.assert_close(explicit, fused)


def test_mask_hides_keys():
    module, mask = cross_module(), CROSS["mask"].bool()
    context = CROSS["context"]
    other = torch.where(mask[..., None], context, torch.randn_like(context))
    assert not torch.equal(other, context)
    torch.testing.assert_close(
        module(CROSS["x"], context, mask), module(CROSS["x"], other, mask), rtol=0, atol=0
    )


@pytest.mark.parametrize("widths", [(9, 9), (64, 5)])
def test_gradient_in_bfloat16_is_that_of_float32(widths):
    n, m = widths
    wide = [torch.randn(2, 3, size, 8) for size in (n, m, m)]
    narrow = [x.bfloat16().requires_grad_() for x in wide]
    wide = [x.detach().float().requires_grad_() for x in narrow]
    weights = torch.randn(2, 3, n, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = fused_attention(*narrow)
    assert out.dtype == torch.bfloat16
    (out * weights).sum().backward()
    (fused_attention(*wide) * weights).sum().backward()
    for a, b in zip(narrow, wide, strict=True):
        torch.testing.assert_close(a.grad.float(), b.grad, rtol=0.02, atol=0.02)


def test_no_controller_equals_identity_controller():
    unet, args = make_unet(), inputs()
    plain = unet(*args)
    rewriter = Rewriter()
    with controlling(unet, rewriter):
        torch.testing.assert_close(unet(*args), plain, rtol=1e-4, atol=1e-5)
    for _, _, probs in rewriter.seen:
        torch.testing.assert_close(probs.sum(-1), torch.ones(probs.shape[:-1]))


def test_rewriting_reaches_the_result():
    unet, args = make_unet(), inputs()
    with controlling(unet, Rewriter(factor=0.0)):
        silent = unet(*args)
        other = unet(args[0], args[1], torch.randn(2, 5, 12))
    torch.testing.assert_close(silent, other, rtol=0, atol=0)
    assert (unet(*args) - silent).abs().max() > 1e-3


def test_observing_changes_nothing():
    unet, args = make_unet(), inputs()
    plain = unet(*args)
    with controlling(unet, Observer()):
        assert torch.equal(unet(*args), plain)


def test_every_site_is_seen_once_and_in_order():
    unet, observer = make_unet(transformer_depth=2), Observer()
    with controlling(unet, observer):
        unet(*inputs((8, 4)))
    sites = [site for _, site in attention_sites(unet)]
    assert [site for site, _, _ in observer.seen] == sites
    assert [site.index for site in sites] == list(range(len(sites)))
    places = [site.place for site in sites if site.is_cross]
    assert places == ["down"] * 4 + ["mid"] * 2 + ["up"] * 8
    assert sum(site.is_cross for site in sites) * 2 == len(sites)
    for site, grid, probs in observer.seen:
        fine = site.name.startswith(("input_blocks.1.", "output_blocks.2.", "output_blocks.3."))
        assert grid == ((8, 4) if fine else (4, 2)), site
        pixels = grid[0] * grid[1]
        assert probs.shape == (2, 2, pixels, 5 if site.is_cross else pixels)


def test_sites_are_found_inside_a_larger_model():
    unet = make_unet()
    model = torch.nn.ModuleDict({"diffusion_model": unet})
    inner = [(site.place, site.index, site.is_cross) for _, site in attention_sites(unet)]
    assert [(s.place, s.index, s.is_cross) for _, s in attention_sites(model)] == inner


def test_wants_decides_where():
    class OnlyCross(Observer):
        def wants(self, site, pixels=None):
            return site.is_cross and site.place == "up"

    unet, observer = make_unet(), OnlyCross()
    with controlling(unet, observer):
        unet(*inputs())
    assert {site.place for site, _, _ in observer.seen} == {"up"}
    assert len(observer.seen) == 4


def test_sample_is_seen_alone_as_in_a_batch():
    unet, (x, t, c) = make_unet(), inputs()
    together, alone = Observer(), Observer()
    with controlling(unet, together):
        unet(x, t, c)
    with controlling(unet, alone):
        unet(x[1:], t[1:], c[1:])
    for (_, _, both), (_, _, one) in zip(together.seen, alone.seen, strict=True):
        torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-5)


def test_controlling_restores():
    unet, outer, inner = make_unet(), Observer(), Observer()
    keys = list(unet.state_dict())

    def installed() -> set:
        return {module.controller for module, _ in attention_sites(unet)}

    with controlling(unet, outer):
        with pytest.raises(ValueError, match="timesteps"), controlling(unet, inner):
            unet(inputs()[0])
        with controlling(unet, inner):
            assert installed() == {inner}
        assert installed() == {outer}
        with controlling(unet, None):
            unet(*inputs())
        assert outer.seen == inner.seen == []
        assert list(unet.state_dict()) == keys
    assert installed() == {None}
    assert {module.site for module, _ in attention_sites(unet)} == {None}


def gradients(unet: UNetModel, controller: AttentionController | None = None) -> list[Tensor]:
    x, t, c = (torch.linspace(-1, 1, 256).reshape(2, 4, 8, 4), torch.tensor([3, 700]), None)
    c = torch.linspace(1, -2, 120).reshape(2, 5, 12).requires_grad_()
    unet.zero_grad()
    with controlling(unet, controller):
        unet(x, t, c).square().mean().backward()
    return [c.grad, *(p.grad for p in unet.parameters() if p.requires_grad)]


@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointing_changes_no_gradient(frozen):
    plain, saving = make_unet(), make_unet(use_checkpoint=True)
    for unet in (plain, saving):
        unet.requires_grad_(not frozen)
    expected = gradients(plain)
    assert len(expected) > 1 or frozen
    assert expected[0].abs().max() > 0
    for a, b in zip(gradients(saving), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_checkpointing_is_honoured():
    calls = []
    for flag in (False, True):
        unet, ran = make_unet(use_checkpoint=flag), []
        hooks = [
            module.register_forward_hook(lambda *_, ran=ran: ran.append(1))
            for name, module in unet.named_modules()
            if name.endswith((".to_q", "in_layers.2"))
        ]
        gradients(unet)
        calls.append(len(ran) / len(hooks))
    assert calls == [1.0, 2.0]


class KeepingObserver(Observer):
    """Keeps what it is shown with its gradient."""

    differentiable = True

    def observe(self, q, k, scale, site, grid):
        self.seen.append(attention_probs(q, k, scale).sum())


def runs_of_attention(unet: UNetModel, controller: AttentionController | None) -> float:
    """How often each attention module runs in a forward and a backward pass."""
    ran, modules = [], [module.to_q for module, _ in attention_sites(unet)]
    hooks = [m.register_forward_hook(lambda *_: ran.append(1)) for m in modules]
    gradients(unet, controller)
    for hook in hooks:
        hook.remove()
    return len(ran) / len(modules)


def test_an_observer_sees_a_checkpointed_network_once():
    unet, observer, alone = make_unet(use_checkpoint=True), Observer(), Observer()
    got = gradients(unet, observer)
    for a, b in zip(got, gradients(make_unet(), alone), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert len(observer.seen) == len(alone.seen) == len(attention_sites(unet))
    for (site, grid, probs), expected in zip(observer.seen, alone.seen, strict=True):
        assert (site, grid) == expected[:2]
        torch.testing.assert_close(probs, expected[2], rtol=0, atol=0)
    assert runs_of_attention(unet, observer) == 2


@pytest.mark.parametrize("controller", [Rewriter, KeepingObserver])
def test_what_takes_part_in_attention_is_not_repeated(controller):
    unet = make_unet(use_checkpoint=True)
    assert runs_of_attention(unet, controller()) == 1


def test_gradient_through_what_was_observed_of_a_checkpointed_network():
    found = []
    for flag in (False, True):
        unet, observer = make_unet(use_checkpoint=flag), KeepingObserver()
        x, t, context = inputs() if not found else found[0][0]
        context = context.detach().requires_grad_()
        with controlling(unet, observer):
            unet(x, t, context)
        found.append(((x, t, context), torch.autograd.grad(sum(observer.seen), context)[0]))
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=0)


def test_gradient_passes_a_rewriting_controller():
    unet = make_unet()
    for a, b in zip(gradients(unet, Rewriter()), gradients(make_unet()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_linear_ends_are_convolutions_of_size_one():
    torch.manual_seed(0)
    convolving = SpatialTransformer(8, 2, 4, context_dim=6, norm_groups=4)
    linear = SpatialTransformer(8, 2, 4, context_dim=6, norm_groups=4, use_linear=True)
    torch.nn.init.normal_(convolving.proj_out.weight)
    state = convolving.state_dict()
    linear.load_state_dict({k: v.flatten(1) if v.ndim == 4 else v for k, v in state.items()})
    x, context = torch.randn(2, 8, 4, 6), torch.randn(2, 5, 6)
    torch.testing.assert_close(linear(x, context), convolving(x, context), rtol=1e-4, atol=1e-5)
