"""PromptCL against a plain double loop, and its laws."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from ldm.concepts.contrastive import PromptContrast, Views, info_nce
from ldm.concepts.denoising import Denoising
from ldm.concepts.objective import Objective
from ldm.prompts.sentence import LearnableWord
from tests.concepts.toy import BOUND, LEARNABLE, LENGTH, make_step
from tests.concepts.toy import tokens as make_tokens


def contrast_step(learnable=LEARNABLE, bound=BOUND, context=None, **details):
    """A step whose text outputs are random."""
    size = len(learnable)
    context = torch.randn(size, LENGTH, 6) if context is None else context
    return make_step(
        size, tokens=make_tokens(learnable, bound), context=context.requires_grad_(), **details
    )


def by_hand(views, temperature):
    """Eqs. 3-5 for [(concept, vector), ...], as they are printed."""
    views = [(concept, v.detach()) for concept, v in views]
    total, anchors = 0.0, 0
    for i, (concept, v) in enumerate(views):
        others = [(c, F.cosine_similarity(v, u, dim=0) / temperature)
                  for j, (c, u) in enumerate(views) if j != i]  # fmt: skip
        denominator = sum(math.exp(s) for _, s in others)
        terms = [-math.log(math.exp(s) / denominator) for c, s in others if c == concept]
        if terms:
            total, anchors = total + sum(terms) / len(terms), anchors + 1
    return total / anchors if anchors else 0.0


def views_of(step, bind=True):
    found, rows = [], zip(step.tokens.learnable, step.tokens.bound, strict=True)
    for i, (words, adjectives) in enumerate(rows):
        for group in (words, adjectives) if bind else (words,):
            found += [(word, step.context[i, at].mean(0)) for word, at in group.items()]
    return found


@pytest.mark.parametrize("bind", [True, False])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_loss_is_the_printed_one(temperature, bind):
    step = contrast_step()
    loss = PromptContrast(temperature, bind_adjectives=bind)(step).loss
    assert loss.shape == (1,)
    expected = by_hand(views_of(step, bind), temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_concept_with_one_view_is_a_negative_only():
    step = contrast_step([{"<a>": [2], "<b>": [5]}, {"<a>": [3]}], [{}, {}])
    loss = PromptContrast()(step).loss
    assert loss.item() == pytest.approx(by_hand(views_of(step), 0.2), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss.sum(), step.context)
    touched = gradient.abs().sum(-1) > 0
    assert touched.nonzero().tolist() == [[0, 2], [0, 5], [1, 3]]


@pytest.mark.parametrize(
    "learnable",
    [[{"<a>": [2], "<b>": [5]}], [{"<a>": [2]}, {"<b>": [5]}], [{}, {}], [{"<a>": [1]}, {}]],
)
def test_nothing_to_contrast_is_zero_and_still_part_of_the_graph(learnable):
    step = contrast_step(learnable, [{}] * len(learnable))
    loss = PromptContrast()(step).loss
    assert loss.tolist() == [0.0]
    (gradient,) = torch.autograd.grad(loss.sum(), step.context)
    assert torch.equal(gradient, torch.zeros_like(step.context))


def test_every_view_receives_a_gradient_and_nothing_else_does():
    step = contrast_step()
    (gradient,) = torch.autograd.grad(PromptContrast()(step).loss.sum(), step.context)
    expected = torch.zeros(3, LENGTH, dtype=torch.bool)
    for group in (LEARNABLE, BOUND):
        for i, row in enumerate(group):
            for positions in row.values():
                expected[i, positions] = True
    assert torch.equal(gradient.abs().sum(-1) > 0, expected)


def test_the_order_of_the_batch_does_not_matter():
    step = contrast_step()
    order = [2, 0, 1]
    moved = contrast_step(
        [LEARNABLE[i] for i in order], [BOUND[i] for i in order], step.context.detach()[order]
    )
    torch.testing.assert_close(PromptContrast()(moved).loss, PromptContrast()(step).loss)


def test_the_farther_apart_two_concepts_are_the_lower_the_loss():
    losses = []
    for angle in (0.0, 0.5, 1.0, 2.0, math.pi):
        vectors = torch.tensor([[1.0, 0.0]] * 2 + [[math.cos(angle), math.sin(angle)]] * 2)
        views = Views(vectors, torch.tensor([0, 0, 1, 1]), torch.zeros(4).long())
        losses.append(info_nce(views, 0.2).item())
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(math.log(3))
    assert losses[-1] < 1e-3


def test_gradient_steps_pull_views_together_and_push_concepts_apart():
    step = contrast_step()

    def separation(context):
        vectors = F.normalize(torch.stack([v for _, v in views_of(replace(step, context=context))]))
        names = [word for word, _ in views_of(step)]
        same = torch.tensor([[a == b for b in names] for a in names])
        cosines = vectors @ vectors.T
        return (cosines[same].mean() - cosines[~same].mean()).item()

    context = step.context.detach().clone()
    for _ in range(20):
        context.requires_grad_()
        loss = PromptContrast()(replace(step, context=context)).loss.sum()
        context = (context - 0.5 * torch.autograd.grad(loss, context)[0]).detach()
    assert separation(context) > separation(step.context.detach()) + 0.3


def test_words_say_which_concepts_are_contrasted():
    step = contrast_step()
    only = PromptContrast(words="<b>")(step).loss
    views = [view for view in views_of(step) if view[0] == "<b>"]
    assert only.item() == pytest.approx(by_hand(views, 0.2), rel=1e-5)

    class Words:
        learnable = (LearnableWord("<a>", role="other"), LearnableWord("<b>"))

    assert torch.equal(PromptContrast()(replace(step, embeddings=Words)).loss, only)


def test_low_precision_around_it_changes_nothing():
    step = contrast_step()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = PromptContrast()(step).loss
    assert torch.equal(narrow, PromptContrast()(step).loss)


def test_a_weight_of_zero_is_the_absence_of_the_term():
    step = contrast_step()
    total, logs = Objective([Denoising(), PromptContrast(weight=0)])(step)
    alone, _ = Objective([Denoising()])(step)
    assert torch.equal(total, alone)
    assert "loss_contrast" not in logs
    weighted, logs = Objective([Denoising(), PromptContrast(weight=0.5)])(step)
    torch.testing.assert_close(weighted, alone + 0.5 * PromptContrast()(step).loss.sum())
    assert logs["loss_contrast"] == PromptContrast()(step).loss


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="temperature 0"):
        PromptContrast(temperature=0)
    with pytest.raises(ValueError, match="learnable words"):
        PromptContrast()(make_step(2))
