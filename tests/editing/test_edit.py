"""Editing a whole toy model: what must stay exactly, what must change, what is refused."""

import pytest
import torch

from ldm.editing import EditOptions, edit, replace_word
from ldm.editing.edit import make_controller
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.modules.attention_control import attention_sites

SOURCE, TARGET = "a <teddy> on a <board>", "a cat on a <board>"
LONGER = "a brown cat on a <board>"
FAST = {"steps": 4, "scale": 3.0}


def noise(count: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def plain(model, prompts: list[str], x_T: torch.Tensor, scale: float = 3.0) -> torch.Tensor:
    """Latents of ordinary sampling."""
    return DDIMSampler(model).sample(
        4,
        len(x_T),
        x_T.shape[1:],
        model.get_learned_conditioning(prompts),
        x_T=x_T,
        verbose=False,
        unconditional_guidance_scale=scale,
        unconditional_conditioning=model.get_learned_conditioning([""] * len(x_T)),
    )[0]


def run(model, source=SOURCE, target=TARGET, *, x_T=None, inversion=None, **options):
    x_T = noise() if x_T is None and inversion is None else x_T
    chosen = EditOptions(**{**FAST, **options})
    return edit(model, source, target, chosen, x_T=x_T, inversion=inversion)


def controllers(model) -> set:
    return {module.controller for module, _ in attention_sites(model.model.diffusion_model)}


@pytest.mark.parametrize("blend", [False, True])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_equal_prompts_give_the_plain_source_bit_for_bit(model, scale, blend):
    done = run(model, SOURCE, SOURCE, scale=scale, blend=blend, reweight={"<teddy>": 1.0})
    assert torch.equal(done.edited, done.source)
    assert torch.equal(done.source_latents, plain(model, [SOURCE], noise(), scale))
    assert done.source.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("method", ["replace", "refine"])
def test_a_pair_of_equal_prompts_among_others_stays_equal(model, method, scale):
    """Here the whole machinery runs; equal rows must come out equal."""
    target = TARGET if method == "replace" else LONGER
    done = run(model, [SOURCE, SOURCE], [SOURCE, target], x_T=noise(2), method=method, scale=scale)
    torch.testing.assert_close(done.edited_latents[0], done.source_latents[0], rtol=0, atol=1e-5)
    assert (done.edited_latents[1] - done.source_latents[1]).abs().max() > 1e-2


def test_the_source_is_what_plain_sampling_draws(model):
    done = run(model, cross=1.0, self_attention=1.0)
    torch.testing.assert_close(
        done.source_latents, plain(model, [SOURCE], noise()), rtol=1e-4, atol=1e-4
    )


def test_closed_windows_are_plain_sampling_of_both_prompts(model):
    done = run(model, target=LONGER, cross=0.0, self_attention=0.0)
    both = plain(model, [SOURCE, LONGER], noise().expand(2, -1, -1, -1))
    assert torch.equal(torch.cat([done.source_latents, done.edited_latents]), both)


def test_wider_windows_stay_nearer_to_the_source(model):
    def distance(window: float) -> float:
        done = run(model, cross=window, self_attention=window)
        return (done.edited_latents - done.source_latents).abs().mean().item()

    assert distance(1.0) < distance(0.5) < distance(0.0)


def test_each_pair_is_edited_for_itself(model):
    x_T = noise(2)
    both = run(model, [SOURCE, "a cat"], [LONGER, "a dog"], x_T=x_T, blend=True)
    first = run(model, SOURCE, LONGER, x_T=x_T[:1], blend=True)
    second = run(model, "a cat", "a dog", x_T=x_T[1:], blend=True)
    for one, alone in enumerate((first, second)):
        torch.testing.assert_close(
            both.edited_latents[one], alone.edited_latents[0], rtol=1e-4, atol=1e-4
        )
        assert torch.equal(both.mask[one], alone.mask[0])


def test_blend_keeps_the_source_outside_the_mask_exactly(model):
    done = run(model, target=LONGER, blend=True, threshold=0.6)
    outside = ~done.mask.expand_as(done.source_latents)
    assert 0 < outside.float().mean() < 1
    assert torch.equal(done.edited_latents[outside], done.source_latents[outside])
    assert (done.edited_latents[~outside] - done.source_latents[~outside]).abs().min() > 0
    free = run(model, target=LONGER)
    assert free.mask is None
    assert (free.edited_latents[outside] - free.source_latents[outside]).abs().max() > 1e-2


def test_blend_words_choose_the_mask(model):
    options = {"target": LONGER, "blend": True, "threshold": 0.7}
    by_change = run(model, **options).mask
    by_board = run(model, **options, blend_words=["<board>"]).mask
    assert not torch.equal(by_change, by_board)
    with pytest.raises(ValueError, match=r"nothing to blend by.*umbrella"):
        run(model, target=LONGER, blend=True, blend_words=["umbrella"])


def test_a_mask_comes_from_the_learned_word_and_from_what_replaces_it(model):
    controller, _ = make_controller(model, [SOURCE], [LONGER], EditOptions(blend=True))
    assert controller.watch.columns.flatten(1).tolist() == [[2, 3], [2, 3]]
    controller, _ = make_controller(
        model, [SOURCE], [SOURCE], EditOptions(blend=True, reweight={"<board>": 2.0})
    )
    assert controller.watch.columns.flatten(1).tolist() == [[-1], [6]]


def test_self_attention_is_taken_over_from_a_quarter_of_the_sides(model):
    for side, taken in ((16, 16), (64, 16), (96, 24)):
        controller, _ = make_controller(model, [SOURCE], [LONGER], EditOptions(), side * side)
        assert controller.self_pixels == taken**2


def test_reweighting_moves_the_picture_and_weight_one_does_not(model):
    base = run(model)
    assert torch.equal(run(model, reweight={"cat": 1.0}).edited_latents, base.edited_latents)
    stronger = run(model, SOURCE, SOURCE, reweight={"<teddy>": 4.0})
    assert not torch.equal(stronger.edited_latents, stronger.source_latents)
    weaker = run(model, SOURCE, SOURCE, reweight={"<teddy>": 0.0})
    assert not torch.equal(stronger.edited_latents, weaker.edited_latents)


def test_auto_replaces_words_and_refines_the_rest(model):
    assert torch.equal(run(model).edited, run(model, method="replace").edited)
    assert not torch.equal(run(model).edited, run(model, method="refine").edited)
    longer = run(model, target=LONGER)
    assert torch.equal(longer.edited, run(model, target=LONGER, method="refine").edited)
    with pytest.raises(ValueError, match="use 'refine'"):
        run(model, target=LONGER, method="replace")


def test_one_seed_gives_one_edit(model):
    def draw(seed: int):
        generator = torch.Generator().manual_seed(seed)
        return edit(model, SOURCE, TARGET, EditOptions(**FAST), generator=generator).edited

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_an_edit_without_learned_words_works(model):
    manager, model.embedding_manager = model.embedding_manager, None
    try:
        done = run(model, "a cat on grass", "a dog on grass", blend=True)
    finally:
        model.embedding_manager = manager
    assert not torch.equal(done.edited, done.source)


@pytest.mark.parametrize("when", ["building", "sampling"])
def test_the_slot_is_empty_after_an_exception(model, when):
    options = {"reweight": {"umbrella": 2.0}} if when == "building" else {"resolutions": [5]}
    with pytest.raises(ValueError, match=r"umbrella|\[5\]"):
        run(model, blend=True, **options)
    assert controllers(model) == {None}


@pytest.mark.parametrize(
    ("prompt", "word", "text", "expected"),
    [
        ("a <teddy> on a <board>", "<teddy>", "a cat", "a cat on a <board>"),
        ("a photo of the <teddy>", "<teddy>", "an old cat", "a photo of an old cat"),
        ("a red <teddy> sits", "<teddy>", "a cat", "a red cat sits"),
        ("a photo of <teddy>", "<teddy>", "a cat", "a photo of a cat"),
        ("a <teddy> sits", "<teddy>", "cat", "a cat sits"),
        ("<teddy> and <teddy>", "<teddy>", "two cats", "two cats and two cats"),
        ("a cat in a category", "cat", "dog", "a dog in a category"),
    ],
)
def test_a_word_is_replaced_with_its_article(prompt, word, text, expected):
    assert replace_word(prompt, word, text) == expected


def test_misuse_is_refused_with_the_remedy(model):
    with pytest.raises(ValueError, match="'<dog>' to be replaced is not in"):
        replace_word("a <teddy>", "<dog>", "a cat")
    with pytest.raises(ValueError, match="nothing is given"):
        replace_word("a <teddy>", "<teddy>", " ")
    with pytest.raises(ValueError, match=r"'swap'.*auto"):
        EditOptions(method="swap")
    with pytest.raises(ValueError, match=r"threshold 1\.0"):
        EditOptions(threshold=1.0)
    with pytest.raises(ValueError, match="0 sampling steps"):
        EditOptions(steps=0)
    with pytest.raises(ValueError, match="2 source prompts for 1 targets"):
        edit(model, [SOURCE, SOURCE], [TARGET], EditOptions(**FAST))
    with pytest.raises(ValueError, match=r"\(2, 4, 8, 8\).*\(1, 4, 8, 8\)"):
        run(model, x_T=noise(2))
