"""Attend-and-Excite on a whole toy model: what it moves, and when it must not."""

import pytest
import torch

from ldm.editing import ExcitedSampler, ExciteOptions
from ldm.editing.attend_excite import ExcitedAttention, Excitement, neglect, smooth
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.models.diffusion.sampling import plan
from ldm.modules.attention_control import attention_sites
from ldm.modules.diffusionmodules.schedule import make_ddim_timesteps

PROMPTS = ["a <teddy> on a <board>", "a cat and a <board>"]
STEPS = 4


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def draw(model, options: ExciteOptions | None, make=DDIMSampler, prompts=PROMPTS) -> torch.Tensor:
    sampler = make(model)
    if options is not None:
        sampler = ExcitedSampler(sampler, prompts, options)
    latents, _ = sampler.sample(
        STEPS, 2, (4, 8, 8), model.get_learned_conditioning(prompts), x_T=noise(), verbose=False,
        unconditional_guidance_scale=3.0,
        unconditional_conditioning=model.get_learned_conditioning(["", ""]),
    )  # fmt: skip
    return latents


def first_jump(model):
    visited = make_ddim_timesteps("uniform", STEPS, 1000, verbose=False)
    return plan(model.schedule, visited, 0.0)[0]


def test_moving_the_latent_makes_the_neglected_word_seen_more(model):
    options = ExciteOptions(["<board>"], step_sizes=(50.0, 50.0), thresholds={})
    excite, x, jump = Excitement(model, PROMPTS, options), noise(), first_jump(model)
    cond = model.get_learned_conditioning(PROMPTS)
    before, _ = excite.slope(cond, x, jump.t)
    after, _ = excite.slope(cond, excite(cond, x, jump, STEPS), jump.t)
    assert (after < before).all()


def test_refinement_goes_on_until_the_threshold_or_the_last_round(model):
    cond, x, jump = model.get_learned_conditioning(PROMPTS), noise(), first_jump(model)

    def moves(**more) -> torch.Tensor:
        options = ExciteOptions(["<board>"], step_sizes=(50.0, 50.0), **more)
        excite = Excitement(model, PROMPTS, options)
        return excite.slope(cond, excite(cond, x, jump, STEPS), jump.t)[0]

    once = moves(thresholds={})
    assert torch.equal(moves(thresholds={0.0: 0.0}), once), "it is reached already"
    assert torch.equal(moves(thresholds={0.0: 1.0}, rounds=0), once)
    assert (moves(thresholds={0.0: 1.0}, rounds=4) < once).all()


@pytest.mark.parametrize("make", [DDIMSampler, PLMSSampler, DPMSolverSampler])
def test_every_sampler_can_be_excited(model, make):
    plain = draw(model, None, make)
    options = {"step_sizes": (50.0, 50.0), "thresholds": {}}
    changed = draw(model, ExciteOptions(["<board>"], **options), make)
    assert (changed - plain).flatten(1).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize(
    "off", [{"words": []}, {"step_sizes": (0.0, 0.0)}, {"until": 0.0}], ids=str
)
def test_switched_off_it_changes_nothing(model, off):
    assert torch.equal(
        draw(model, ExciteOptions(**{"words": ["<board>"], **off})), draw(model, None)
    )


def test_pictures_do_not_influence_each_other(model):
    options = ExciteOptions(["<board>"], step_sizes=(50.0, 50.0), thresholds={0.0: 1.0}, rounds=2)
    cond, jump, x = model.get_learned_conditioning(PROMPTS), first_jump(model), noise()
    both = Excitement(model, PROMPTS, options)(cond, x, jump, STEPS)
    alone = Excitement(model, PROMPTS[1:], options)(cond[1:], x[1:], jump, STEPS)
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)


def test_nothing_is_left_behind(model):
    draw(model, ExciteOptions(["<board>"]))
    assert {module.controller for module, _ in attention_sites(model.model.diffusion_model)} == {
        None
    }
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_words_compete_for_pixels_as_published():
    """softmax(100 A) of the mean attention A over all tokens but the first and the last."""
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 4, n, 8, generator=draw) for n in (16, 7))
    recorder = ExcitedAttention([{"<a>": [2]}, {"<a>": [3, 4], "<b>": [5]}], [4], ["<a>", "<b>"])
    for share in (1.0, 0.5):
        recorder.observe(share * q, k, 1.0, None, (4, 4))
    mean = torch.stack([(share * q @ k.mT).softmax(-1).mean(1) for share in (1.0, 0.5)]).mean(0)
    sharp = (100 * mean[..., 1:-1]).softmax(-1)
    found = recorder.sharpened().flatten(2)
    torch.testing.assert_close(found[0, 0], sharp[0, :, 1])
    torch.testing.assert_close(found[1], torch.stack([sharp[1, :, 2:4].mean(-1), sharp[1, :, 4]]))
    assert found[0, 1].eq(0).all(), "a prompt without the word"


def test_the_square_of_the_step_falls_linearly(model):
    """As published: 20 sqrt(1) in the first step, 20 sqrt(0.5) in the last."""
    cond, x = model.get_learned_conditioning(PROMPTS), noise()
    options = ExciteOptions(["<board>"], thresholds={}, until=1.0)
    excite = Excitement(model, PROMPTS, options)
    jumps = plan(model.schedule, make_ddim_timesteps("uniform", 5, 1000, verbose=False), 0.0)
    for jump, square in zip(jumps, (1.0, 0.875, 0.75, 0.625, 0.5), strict=True):
        expected = x - 20 * square**0.5 * excite.slope(cond, x, jump.t)[1]
        torch.testing.assert_close(excite(cond, x, jump, 5), expected)


def test_the_worst_word_decides_and_absent_ones_do_not_count():
    maps = torch.zeros(2, 2, 4, 4)
    maps[:, 0, 1, 1], maps[:, 1, 2, 2] = 0.9, 0.2
    present = torch.tensor([[True, True], [True, False]])
    assert neglect(maps, present, sigma=0).tolist() == pytest.approx([0.8, 0.1])
    assert (neglect(maps, present) > neglect(maps, present, sigma=0)).all(), (
        "smoothing lowers peaks"
    )


def test_smoothing_keeps_what_is_even_and_spreads_a_peak():
    even = torch.full((1, 1, 4, 4), 0.3)
    torch.testing.assert_close(smooth(even, 0.5), even)
    peak = torch.zeros(1, 1, 5, 5)
    peak[0, 0, 2, 2] = 1
    spread = smooth(peak, 0.5)
    assert spread.sum() == pytest.approx(1)
    assert 0 < spread[0, 0, 1, 2] < spread[0, 0, 2, 2] < 1


def test_misuse_is_refused(model):
    with pytest.raises(ValueError, match=r"\['<teddy>'\].*'a cat and a <board>'"):
        Excitement(model, PROMPTS, ExciteOptions(["<teddy>"]))
    for wrong in ({"until": 2.0}, {"thresholds": {0.5: 3.0}}, {"rounds": -1}, {"sigma": -1.0}):
        with pytest.raises(ValueError, match=r"give 0"):
            ExciteOptions(["<board>"], **wrong)
    with pytest.raises(ValueError, match=r"\[5\]"):
        draw(model, ExciteOptions(["<board>"], resolutions=[5]))
