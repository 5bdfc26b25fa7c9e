"""Two runs in one batch equal each of them alone, term by term."""

import pytest
import torch

from ldm.concepts.contrastive import PromptContrast
from ldm.concepts.denoising import Denoising
from ldm.concepts.masks import AttentionMask
from ldm.concepts.objective import Objective
from tests.concepts.toy import BOUND, LEARNABLE, LENGTH, make_step, queries_and_keys, recorded
from tests.concepts.toy import tokens as make_tokens

SIZES = (3, 2)
ROWS = [0, 1, 2, 1, 0]
RUN = torch.tensor([0, 0, 0, 1, 1])


def steps():
    """One step of two packed runs, and the two steps they would be alone."""
    q, k = queries_and_keys(5)
    context = torch.randn(5, LENGTH, 6, requires_grad=True)
    packed = make_step(5)
    ids = torch.tensor([0, 1, 2, 0, 1])

    def part(rows, **details):
        words = make_tokens([LEARNABLE[ROWS[i]] for i in rows], [BOUND[ROWS[i]] for i in rows])
        return type(packed)(
            prediction=packed.prediction[rows], target=packed.target[rows], t=packed.t[rows],
            schedule=packed.schedule, context=context[rows], tokens=words,
            attention=recorded(words, q[rows], k[rows]), image_id=ids[rows], **details,
        )  # fmt: skip

    alone = [part([0, 1, 2], run=RUN[:3] * 0), part([3, 4], run=RUN[3:] * 0)]
    return part([0, 1, 2, 3, 4], run=RUN, runs=2), alone, (packed.prediction, context)


@pytest.mark.parametrize("average", ["step", "running"])
def test_masks(average):
    together, *masks = (AttentionMask(average=average) for _ in range(3))
    for _ in range(3):
        packed, alone, _ = steps()
        apart = torch.cat([mask(step) for mask, step in zip(masks, alone, strict=True)])
        assert torch.equal(together(packed), apart)


@pytest.mark.parametrize(
    "terms",
    [
        lambda: [Denoising()],
        lambda: [Denoising(mask=AttentionMask("soft"))],
        lambda: [PromptContrast(weight=0.7)],
        lambda: [Denoising(mask=AttentionMask(average="running")), PromptContrast(weight=0.3)],
    ],
    ids=["denoising", "masked", "contrast", "all"],
)
def test_losses_and_gradients(terms):
    packed, alone, leaves = steps()
    together = [term(packed).loss for term in terms()]
    apart = [[term(step).loss for term in terms()] for step in alone]
    torch.testing.assert_close(together, [torch.cat(runs) for runs in zip(*apart, strict=True)])
    total, logs = Objective(terms())(packed)
    totals = [Objective(terms())(step)[0] for step in alone]
    torch.testing.assert_close(total, sum(totals))
    torch.testing.assert_close(logs["loss"], sum(totals).detach() / 2)
    gradients = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
    expected = torch.autograd.grad(sum(totals), leaves, allow_unused=True)
    torch.testing.assert_close(gradients, expected)


def test_a_run_does_not_see_the_views_of_another():
    packed, _, (_, context) = steps()
    loss = PromptContrast()(packed).loss
    (gradient,) = torch.autograd.grad(loss[0], context)
    assert gradient[:3].abs().sum() > 0
    assert gradient[3:].abs().sum() == 0
