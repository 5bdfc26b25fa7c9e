"""The recorder is the plain softmax, averaged; and every image is on its own."""

import pytest
import torch
from torch.nn import functional as F

from ldm.concepts.recorder import WordAttention, concept_words, named_positions
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.modules.attention import AttentionController
from ldm.modules.attention_control import controlling
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.prompts.sentence import LearnableWord
from tests.concepts.toy import BOUND, LEARNABLE, LENGTH, SCHEDULE, SITE, queries_and_keys, recorded
from tests.concepts.toy import tokens as make_tokens
from tests.golden import fill
from tests.networks import UNET


class Everything(AttentionController):
    """Keeps the probabilities of all cross-attention, computed the explicit way."""

    rewrites = True

    def __init__(self) -> None:
        self.seen = []

    def wants(self, site, pixels=None):
        return site.is_cross

    def __call__(self, probs, site, grid):
        self.seen.append((grid, probs.detach()))
        return probs


@pytest.fixture(scope="module")
def unet() -> UNetModel:
    return fill(UNetModel(**UNET))


def word_maps(seen, positions, words, grid):
    """Means over heads, tokens and layers, image by image and word by word."""
    layers = [probs.mean(1) for at, probs in seen if at == grid]
    maps = torch.zeros(len(positions), len(words), *grid)
    for i, row in enumerate(positions):
        for j, word in enumerate(words):
            if word in row:
                columns = [layer[i][:, row[word]].mean(-1) for layer in layers]
                maps[i, j] = torch.stack(columns).mean(0).reshape(grid)
    return maps


@pytest.mark.parametrize("latent", [(8, 8), (8, 4), (4, 8)])
def test_maps_are_the_explicit_softmax_averaged(unet, latent):
    x, t, context = torch.randn(3, 4, *latent), torch.tensor([3, 70, 9]), torch.randn(3, LENGTH, 12)
    explicit, recorder = Everything(), WordAttention(make_tokens(), [8, 4])
    with torch.no_grad():
        with controlling(unet, explicit):
            plain = unet(x, t, context=context)
        with controlling(unet, recorder):
            observed = unet(x, t, context=context)
    assert recorder.words == ["<a>", "<b>"]
    torch.testing.assert_close(observed, plain)
    half = (latent[0] // 2, latent[1] // 2)
    large = word_maps(explicit.seen, LEARNABLE, recorder.words, latent)
    small = word_maps(explicit.seen, LEARNABLE, recorder.words, half)
    tops = [maps.amax((-2, -1), keepdim=True) for maps in (large, small)]
    enlarged = F.interpolate(small / tops[1].clamp(min=1e-30), latent, mode="bilinear")
    expected = (large / tops[0].clamp(min=1e-30) + enlarged) / 2 * (tops[0] + tops[1]) / 2
    torch.testing.assert_close(recorder.maps(), expected)
    only = WordAttention(make_tokens(), [4])
    with torch.no_grad(), controlling(unet, only):
        unet(x, t, context=context)
    torch.testing.assert_close(only.maps(), small)


def test_a_size_that_no_layer_has_is_refused_with_those_there_are(unet):
    recorder = WordAttention(make_tokens(), [16])
    with torch.no_grad(), controlling(unet, recorder):
        unet(torch.randn(3, 4, 8, 4), torch.tensor([3, 70, 9]), context=torch.randn(3, LENGTH, 12))
    with pytest.raises(ValueError, match=r"\[16\].*\(4, 2\), \(8, 4\)"):
        recorder.maps()


def test_as_probabilities_the_words_of_all_tokens_sum_to_one():
    """Over sizes too, which maps of one maximum do not."""
    rows = [{f"token {k}": [k] for k in range(LENGTH)}] * 3
    recorder, (q, k) = WordAttention(rows, [4, 2]), queries_and_keys(3)
    recorder.observe(q, k, 1.0, SITE, (4, 4))
    recorder.observe(2 * q[:, :, :4], k, 1.0, SITE, (2, 2))
    total = recorder.maps(equal_peaks=False).sum(1)
    torch.testing.assert_close(total, torch.ones(3, 4, 4))
    assert (recorder.maps().sum(1) - 1).abs().max() > 0.01


def test_absent_words_are_said_to_be_absent():
    recorder = recorded(make_tokens(), *queries_and_keys(3))
    assert recorder.present.tolist() == [[True, True], [True, True], [False, True]]
    maps = recorder.maps()
    assert maps[2, 0].abs().max() == 0
    assert maps[recorder.present].amin((-2, -1)).gt(0).all()


def test_one_pass_records_words_and_adjectives():
    q, k = queries_and_keys(3)
    words = make_tokens(bound=BOUND)
    both = WordAttention(words, [4], adjectives=True)
    both.observe(q, k, 1.0, SITE, (4, 4))
    assert both.words == ["<a>", "<b>", "[<a>]", "[<b>]"]
    assert torch.equal(both.maps()[:, :2], recorded(words.learnable, q, k).maps())
    assert torch.equal(both.maps()[:, 2:], recorded(words.bound, q, k).maps())
    assert torch.equal(recorded(words, q, k).maps()[:, [0, 1]], both.maps()[:, :2])


def test_the_words_asked_for_are_recorded():
    q, k = queries_and_keys(3)
    recorder = WordAttention(make_tokens(), [4], ["<b>"])
    recorder.observe(q, k, 1.0, SITE, (4, 4))
    assert recorder.words == ["<b>"]
    assert torch.equal(recorder.maps(), recorded(make_tokens(), q, k).maps()[:, 1:])


def test_an_image_is_recorded_the_same_whatever_its_company():
    q, k = queries_and_keys(3)
    reference = recorded(make_tokens(), q, k).maps()
    other_q, other_k = queries_and_keys(3)
    other_q[1], other_k[1] = q[1], k[1]
    # The company has other words at other places, one of them of six tokens.
    company = [{"<c>": [1, 2, 3, 4, 5, 6]}, LEARNABLE[1], {"<a>": [7]}]
    changed = recorded(make_tokens(company), other_q, other_k)
    mine = changed.maps()[1, [changed.words.index("<a>"), changed.words.index("<b>")]]
    assert torch.equal(mine, reference[1])
    order = [2, 0, 1]
    moved = recorded(make_tokens([LEARNABLE[i] for i in order]), q[order], k[order])
    columns = [moved.words.index(word) for word in ("<a>", "<b>")]
    assert torch.equal(moved.maps()[:, columns], reference[order])


def test_words_with_several_tokens_are_averaged_exactly_beside_longer_ones():
    q, k = queries_and_keys(1)
    alone = recorded([{"<a>": [1, 2, 3]}], q, k).maps()
    beside = recorded([{"<a>": [1, 2, 3], "<b>": [1, 2, 3, 4, 5, 6, 7]}], q, k).maps()
    assert torch.equal(alone[:, 0], beside[:, 0])
    probs = torch.softmax(q @ k.transpose(-1, -2), -1).mean(1)
    torch.testing.assert_close(alone[0, 0].flatten(), probs[0, :, 1:4].mean(-1))


def test_low_precision_around_it_changes_nothing():
    q, k = queries_and_keys(2)
    words = make_tokens(LEARNABLE[:2])
    with torch.autocast("cpu", torch.bfloat16):
        narrow = recorded(words, q, k).maps()
    assert torch.equal(narrow, recorded(words, q, k).maps())


class Toy:
    """A U-Net as samplers see it."""

    parameterization, device = "eps", torch.device("cpu")
    schedule, num_timesteps = SCHEDULE, len(SCHEDULE.betas)

    def __init__(self, unet) -> None:
        self.unet = unet

    def apply_model(self, x, t, cond):
        return self.unet(x, t, context=cond)


def test_under_guidance_the_conditional_half_is_read(unet):
    words = make_tokens(LEARNABLE[:2])
    context, empty = torch.randn(2, LENGTH, 12), torch.randn(2, LENGTH, 12)
    guided = {"unconditional_guidance_scale": 3.0, "unconditional_conditioning": empty}
    explicit, recorder = Everything(), WordAttention(words, [8])
    for controller, options in ((explicit, {}), (recorder, {"on_step": recorder.begin_step})):
        with torch.no_grad(), controlling(unet, controller):
            DDIMSampler(Toy(unet)).sample(
                2, 2, (4, 8, 8), context, verbose=False, x_T=torch.ones(2, 4, 8, 8), **guided,
                **options,
            )  # fmt: skip
    seen = [(grid, probs[2:]) for grid, probs in explicit.seen]
    expected = word_maps(seen, words.learnable, recorder.words, (8, 8))
    torch.testing.assert_close(recorder.maps(), expected)


def test_concepts_are_the_marked_words_where_words_have_roles():
    class Words:
        learnable = (LearnableWord("<a>"), LearnableWord("on", role="other"))

    class Lego:
        learnable = (LearnableWord("<a>"), LearnableWord("<b>", role="concept"))

    class Plain:
        learnable = (LearnableWord("a", role="other"), LearnableWord("on", role="other"))

    assert concept_words(["on", "<a>"], Words) == ["<a>"]
    assert concept_words(["<a>", "<b>", "on"], Lego) == ["<a>", "<b>"]
    # Decided by the words of the run, not by those that a batch happens to show.
    assert concept_words(["on"], Words) == []
    assert concept_words(["on", "a"], Plain) == concept_words(["on", "a"]) == ["on", "a"]


def test_named_positions_need_no_text_for_words_that_are_known():
    rows = named_positions(make_tokens(bound=BOUND), (), ["<a>", "elsewhere"])
    assert rows[0] == {"<a>": [2], "<b>": [5], "[<a>]": [1], "[<b>]": [4]}
