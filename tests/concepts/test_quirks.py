"""The released AttnMask and PromptCL, against figures recorded with the released code."""

from dataclasses import replace

import pytest
import torch

from ldm.concepts.denoising import Denoising
from ldm.concepts.quirks import ReleasedAttention, ReleasedContrast, ReleasedMask, rolled_nce
from ldm.modules.attention import AttentionSite, attention_probs
from tests.concepts.toy import make_step
from tests.concepts.toy import tokens as make_tokens
from tests.golden import golden, weight

MASKS, CONTRASTS = golden("mcpl_attnmask"), golden("mcpl_promptcl")
NAMES = ["brown", "@", "rolling", "*"]


def stored(key: str, index: int) -> torch.Tensor:
    """One map of the recorded store; the recipe's values are scaled by sqrt(3 / fan_in)."""
    shape = (8, 256, 77)
    scale = (3 / (256 * 77)) ** 0.5
    values = weight(f"attn.{key}.{index}", shape, 1).double() / scale
    return (6 * values).float().softmax(-1)


@pytest.fixture(scope="module")
def store() -> ReleasedAttention:
    """The recorded attention with the words of each prompt, which follow each other in order."""
    rows = [row.nonzero().tolist() for row in MASKS["word_mask"]]
    attention = ReleasedAttention([dict(zip(NAMES, row, strict=True)) for row in rows])
    attention.stored["down"] = [stored("down_cross", i) for i in range(2)]
    attention.stored["up"] = [torch.zeros(0)] * 3 + [stored("up_cross", i) for i in (3, 4, 5)]
    return attention


@pytest.mark.parametrize("case", MASKS.config["cases"])
def test_attention_mask_golden(store, case):
    options = MASKS.config["cases"][case]
    softmax_words = [word for word in options["presudo_words_softmax"] if word]
    mask = ReleasedMask(
        kind=options["attn_mask_type"],
        threshold=options["threshold"],
        words=MASKS.config["attn_words"],
        softmax_words=softmax_words,
    )
    result = mask(make_step(4, (32, 32), attention=store))
    result = torch.ones(4, 1, 32, 32) if result is None else result
    MASKS.check(f"{case}.mask", result)
    if case == "hard":
        assert ReleasedMask(words=NAMES).threshold == 0.3
        step = replace(make_step(4, (16, 24)), prediction=MASKS["x"], attention=store)
        MASKS.check("x_masked", MASKS["x"] * mask(step))


def test_the_second_half_of_the_rows_is_kept_and_handed_out_as_released():
    q, k = torch.randn(4, 4, 256, 3), torch.randn(4, 4, 7, 3)
    attention = ReleasedAttention([{}] * 4)
    for place in ("down", "down", "up", "up", "up", "up"):
        attention.observe(q, k, 0.5, AttentionSite(place, 0, True, ""), (16, 16))
    attention.observe(q.repeat(1, 1, 4, 1), k, 0.5, AttentionSite("down", 0, True, ""), (32, 32))
    rows = attention_probs(q, k, 0.5).flatten(0, 1)
    assert torch.equal(attention.stored["down"][1], rows[MASKS["stored_rows"]])
    handed = attention.maps()
    assert handed.shape == (4, 6, 256, 7)
    assert torch.equal(handed[:, :2], rows[MASKS["rows_used_per_sample"]])


def contrast_case(case: str):
    """The golden's case: positions from its token masks, outputs cut to its batch."""
    options = CONTRASTS.config["cases"][case]
    name = "n2_adj" if case == "n2_adj_scaled" else case
    chosen = CONTRASTS[f"{name}.word_mask"]
    bind = any(options["adj_aug_infonce"])
    adjectives = CONTRASTS[f"{name}.adj_mask"] if bind else torch.zeros_like(chosen)
    groups = [
        [{f"w{i}": [at] for i, at in enumerate(row.nonzero().flatten().tolist())} for row in mask]
        for mask in (chosen, adjectives)
    ]
    context = CONTRASTS["n2_adj.cond"][: len(options["prompts"])].clone().requires_grad_()
    step = make_step(len(context), context=context, tokens=make_tokens(*groups))
    term = ReleasedContrast(
        relate=options["relate"],
        temperature=options["temperature"],
        weight=options["scale"],
        bind_adjectives=bind,
    )
    return term, step, options["loss_has_gradient"]


@pytest.mark.parametrize("case", CONTRASTS.config["cases"])
def test_contrast_golden(case):
    term, step, has_gradient = contrast_case(case)
    loss = term.weight * term(step).loss.sum()
    CONTRASTS.check(f"{case}.loss", loss)
    assert loss.requires_grad == has_gradient
    gradient = torch.zeros_like(step.context)
    if has_gradient:
        (gradient,) = torch.autograd.grad(loss, step.context)
    CONTRASTS.check(f"{case}.grad", gradient)


def test_the_roll_finds_the_same_word_only_if_their_number_divides_the_rows():
    for batch, words, views, verdict in CONTRASTS["roll_table"].tolist():
        rows, count = batch * views, batch * views * words
        place = torch.arange(count)
        positive = place.roll(rows)
        if verdict == 2:
            assert torch.equal(positive, place)
        else:
            assert torch.equal(positive % words, place % words) == (verdict == 1)
    # The same in the function itself: two words, two rows, every word its own direction.
    features = torch.eye(2).expand(2, 2, 2)
    assert rolled_nce(features, 0.1) < 0.1
    assert rolled_nce(features[:1].repeat(3, 1, 1), 0.1) > 5


def test_what_the_released_code_cannot_do_is_refused():
    term, step, _ = contrast_case("n2_adj")
    with pytest.raises(ValueError, match="2 runs"):
        term(replace(step, runs=2))
    uneven = [{"w0": [1]}, *step.tokens.learnable[1:]]
    with pytest.raises(ValueError, match="equally many"):
        term(replace(step, tokens=make_tokens(uneven, step.tokens.bound)))
    lone = [{"w0": [1]}] * 4
    with pytest.raises(ValueError, match="as many adjectives"):
        term(replace(step, tokens=make_tokens(step.tokens.learnable, lone)))
    attention = ReleasedAttention([{"w0": [1]}] * 4)
    q = torch.randn(4, 4, 64, 3)
    attention.observe(q, q[:, :, :7], 1.0, AttentionSite("down", 0, True, ""), (8, 8))
    with pytest.raises(ValueError, match="32 x 32"):
        Denoising(mask=ReleasedMask())(make_step(4, attention=attention))
