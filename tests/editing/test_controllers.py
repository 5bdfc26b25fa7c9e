"""The rewriting of attention and the local blend, against recorded figures and their laws."""

import pytest
import torch
from torch import Tensor

from ldm.editing.align import (
    equalizer,
    mapper_matrix,
    read_prompt,
    refinement_mapper,
    replacement_mapper,
    replacement_windows,
    window_steps,
)
from ldm.editing.blend import LocalBlend, WordWatch, blend_mask
from ldm.editing.controllers import CrossEdit, Moved, PromptToPrompt, Reweighted
from ldm.models.diffusion.sampling import Step
from ldm.modules import attention
from ldm.modules.attention import AttentionSite, CrossAttention
from ldm.modules.attention_control import controlling
from ldm.modules.encoders.modules import BERTEmbedder
from tests.golden import golden, weight

CASE = golden("p2p_controllers")
CONFIG = CASE.config
STEPS, HEADS = CONFIG["num_steps"], 2
CROSS = AttentionSite("down", 1, True, "attn2")
SELF = AttentionSite("down", 0, False, "attn1")
EDITED = [name.removesuffix(".in") for name in CASE.tensors if name.endswith(".in")]


@pytest.fixture(scope="module")
def bert(bert_vocab) -> BERTEmbedder:
    return BERTEmbedder(n_embed=8, n_layer=1, vocab_file=bert_vocab)


def replacing(source, target) -> CrossEdit:
    mapper = replacement_mapper(source, target)
    return Moved(mapper[None], torch.ones(1, 1, 1, target.size))


def refining(source, target) -> CrossEdit:
    mapper, kept = refinement_mapper(source, target, released=True)
    return Moved(mapper_matrix(mapper)[None], kept[None, None, None])


def controller(bert, name: str) -> PromptToPrompt:
    """The recorded controller of that name."""
    settings = CONFIG["reweight" if name == "reweight_of_replace" else name]
    prompts = {
        "replace": CONFIG["replace_prompts"],
        "refine": CONFIG["refine_prompts"],
        "reweight": CONFIG["reweight"].get("prompts"),
        "reweight_of_replace": CONFIG["replace_prompts"],
    }[name]
    source, target = (read_prompt(bert, prompt) for prompt in prompts)
    factors = equalizer(
        read_prompt(bert, CONFIG["equalizer"]["prompt"]),
        dict(zip(CONFIG["equalizer"]["words"], CONFIG["equalizer"]["values"], strict=True)),
    )[None, None, None]
    # The recorded figures triple this word; their notes do not say so.
    triple = (
        equalizer(target, {"sofa": 3.0})[None, None, None]
        if name == "reweight_of_replace"
        else None
    )
    edits = {
        "replace": lambda: replacing(source, target),
        "refine": lambda: refining(source, target),
        "reweight": lambda: Reweighted(factors),
        "reweight_of_replace": lambda: Reweighted(triple, replacing(source, target)),
    }
    return PromptToPrompt(
        edits[name](),
        replacement_windows([target], STEPS, settings["cross_replace_steps"]),
        window_steps(settings["self_replace_steps"], STEPS),
    )


def step_of(name: str) -> int:
    place = name.split(".")[1]
    return CONFIG["late"][name] if place.endswith("late") else int(place.partition("_s")[2])


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("name", EDITED)
def test_edits_golden(bert, name, guided):
    control, site = controller(bert, name.split(".")[0]), CROSS if ".cross" in name else SELF
    given = CASE[f"{name}.in"].unflatten(0, (2, HEADS))
    # Under guidance the unconditional rows come first and stay as they are.
    other = torch.rand_like(given)
    rows = slice(2, 4) if guided else slice(0, 2)
    control.begin_step(step_of(name), rows)
    probs = torch.cat([other, given]) if guided else given
    result = control(probs, site, (3, 3)) if control.wants(site) else probs
    CASE.check(f"{name}.out", result[rows].flatten(0, 1))
    if guided:
        assert torch.equal(result[:2], other)


def recorded_maps() -> list[Tensor]:
    names = [f"blend.down_cross.{i}" for i in (0, 1)] + [f"blend.up_cross.{i}" for i in (3, 4, 5)]
    return [recorded_map(name).unflatten(0, (2, HEADS)) for name in names]


def recorded_map(name: str) -> Tensor:
    shape = (4, 256, 77)
    # `weight` scales the uniform numbers of a matrix by its gain and width: take that back.
    gain = (3.0 * shape[0] / (4 * 256 * 77)) ** 0.5
    return torch.softmax(6 * weight(name, shape).double() / gain, -1).float()


def test_local_blend_golden(bert):
    prompts = [read_prompt(bert, prompt) for prompt in CONFIG["blend"]["prompts"]]
    words = CONFIG["blend"]["words"]
    watch = WordWatch([p.positions(w) for p, w in zip(prompts, words, strict=True)], [16])
    for probs in recorded_maps():
        watch.add(probs, (16, 16))
    blend = LocalBlend(watch, CONFIG["blend"]["threshold"])
    x = CASE["blend.x"]
    result = blend(Step(0, 0, x, x))
    CASE.check("blend.out", result)
    outside = ~blend.mask.expand(1, 4, 32, 32)
    assert 0.2 < outside.float().mean() < 0.8
    assert torch.equal(result[1:][outside], x[:1][outside]), "outside it is the source exactly"
    assert torch.equal(result[1:][~outside], x[1:][~outside])
    assert torch.equal(result[:1], x[:1])


# Laws --------------------------------------------------------------------------------------------


def make(cross: CrossEdit, pairs: int = 1, tokens: int = 5, **options) -> PromptToPrompt:
    return PromptToPrompt(cross, torch.ones(4, pairs, 1, 1, tokens), **options)


def identity(pairs: int = 1, tokens: int = 5) -> Moved:
    return Moved(torch.eye(tokens).expand(pairs, -1, -1), torch.ones(pairs, 1, 1, tokens))


@pytest.mark.parametrize("edit", [identity(), Reweighted(torch.ones(1, 1, 1, 5), identity())])
def test_the_identity_gives_the_source_exactly(edit):
    probs = torch.randn(2, 2, 9, 5).softmax(-1)
    result = make(edit)(probs, CROSS, (3, 3))
    assert torch.equal(result, probs[:1].expand(2, -1, -1, -1))


def test_weights_of_one_are_no_reweighting_exactly(bert):
    source, target = (read_prompt(bert, prompt) for prompt in CONFIG["refine_prompts"])
    maps = torch.randn(2, 1, 2, 9, 77).softmax(-1)
    plain = refining(source, target)
    assert torch.equal(Reweighted(torch.ones(1, 1, 1, 77), plain)(*maps), plain(*maps))
    assert not torch.equal(Reweighted(torch.full((1, 1, 1, 77), 2.0), plain)(*maps), plain(*maps))


@pytest.mark.parametrize("guided", [False, True])
def test_each_pair_has_its_own_source_and_edit(guided):
    mappers = torch.stack([torch.eye(5), torch.eye(5).flip(0)])
    cross = make(Moved(mappers, torch.ones(2, 1, 1, 5)), 2)
    start = 4 if guided else 0
    probs = torch.rand(start + 4, 2, 9, 5)
    cross.begin_step(1, slice(start, start + 4))
    result = cross(probs, CROSS, (3, 3))
    assert torch.equal(result[: start + 2], probs[: start + 2])
    assert torch.equal(result[start + 2], probs[start])
    assert torch.equal(result[start + 3], probs[start + 1].flip(-1))


def test_nothing_is_wanted_when_no_window_is_open():
    """So that the fused kernel runs there."""
    windows = torch.zeros(5, 1, 1, 1, 5)
    windows[:2] = 1
    control = PromptToPrompt(identity(), windows, (1, 3))
    wanted = []
    for index in range(4):
        control.begin_step(index, slice(0, 2))
        wanted.append((control.wants(CROSS), control.wants(SELF)))
    assert wanted == [(True, False), (True, True), (False, True), (False, False)]


def test_large_self_attention_is_left_alone_and_never_asked_for(monkeypatch):
    """At 64x64 its probabilities alone are gigabytes."""
    asked, probs = [], attention.attention_probs
    monkeypatch.setattr(attention, "attention_probs", lambda *a: asked.append(1) or probs(*a))
    layer = CrossAttention(8, None, heads=2, dim_head=4)
    with controlling(layer, make(identity(), self_steps=(0, 4), self_pixels=9)):
        layer(torch.randn(2, 16, 8))
        assert not asked
        layer(torch.randn(2, 9, 8))
        assert asked


def test_through_a_real_layer_the_edited_row_looks_like_its_source():
    layer = CrossAttention(8, 6, heads=2, dim_head=4)
    x, context = torch.randn(2, 9, 8), torch.randn(2, 5, 6)
    plain = layer(x, context)
    with controlling(layer, make(identity())):
        edited = layer(x, context)
    with controlling(layer, make(identity())):
        twice = layer(x[:1].expand(2, -1, -1), context)
    torch.testing.assert_close(edited[0], plain[0])
    assert not torch.allclose(edited[1], plain[1])
    # The source's attention over the target's own values: the queries of the target do not matter.
    torch.testing.assert_close(twice[1], edited[1])


# Masks -------------------------------------------------------------------------------------------


def test_the_watch_counts_sizes_equally_and_layers_within_them():
    watch = WordWatch([[1], [0, 2]], [4, 2])
    fine, coarse = torch.rand(3, 2, 2, 16, 3), torch.rand(2, 2, 4, 3)
    for probs in fine:
        watch.add(probs, (4, 4))
    watch.add(coarse, (2, 2))
    watch.add(torch.rand(2, 2, 64, 3), (8, 8))

    def of_words(probs: Tensor) -> Tensor:
        mean = probs.mean(1)
        return torch.stack([mean[0, :, 1], mean[1][:, [0, 2]].mean(-1)])

    means = [of_words(fine.mean(0)).reshape(2, 1, 4, 4), of_words(coarse).reshape(2, 1, 2, 2)]
    peaks = [mean.amax((-2, -1), keepdim=True) for mean in means]
    fine_, coarse_ = (mean / peak * sum(peaks) / 2 for mean, peak in zip(means, peaks, strict=True))
    enlarged = torch.nn.functional.interpolate(coarse_, (4, 4), mode="bilinear")
    torch.testing.assert_close(watch.maps(), (fine_ + enlarged) / 2)


def test_a_mask_is_where_either_of_a_pair_looks_whatever_the_scale():
    maps = torch.zeros(4, 1, 2, 2)
    maps[0, 0, 0, 0], maps[2, 0, 1, 1] = 5.0, 0.001
    maps[3, 0] = torch.tensor([[0.1, 0.2], [0.31, 1.0]])
    mask = blend_mask(maps, (4, 4), 0.3)
    assert mask.shape == (2, 1, 4, 4)
    assert mask[0, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert mask[1, 0].int().tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_without_any_attention_everything_stays_the_source():
    watch = WordWatch([[], []], [2])
    watch.add(torch.rand(2, 1, 4, 3), (2, 2))
    x = torch.randn(2, 4, 4, 4)
    assert torch.equal(LocalBlend(watch)(Step(3, 0, x, x)), x[:1].expand(2, -1, -1, -1))


def test_blending_begins_when_it_is_told_to():
    watch = WordWatch([[], []], [2])
    watch.add(torch.rand(2, 1, 4, 3), (2, 2))
    x, blend = torch.randn(2, 4, 4, 4), LocalBlend(watch, first_step=2)
    assert torch.equal(blend(Step(1, 0, x, x)), x)
    assert not torch.equal(blend(Step(2, 0, x, x)), x)


def test_maps_of_a_size_that_is_not_there_are_refused():
    watch = WordWatch([[0], [0]], [16])
    watch.add(torch.rand(2, 1, 4, 3), (2, 2))
    with pytest.raises(ValueError, match=r"\[16\].*\(2, 2\)"):
        watch.maps()


@pytest.mark.parametrize("fail", [False, True])
def test_the_slot_is_empty_again(fail):
    layer = CrossAttention(8, 6, heads=2, dim_head=4)
    try:
        with controlling(layer, make(identity(tokens=4 if fail else 5))):
            layer(torch.randn(2, 9, 8), torch.randn(2, 5, 6))
    except RuntimeError:
        assert fail
    else:
        assert not fail
    assert layer.controller is None
