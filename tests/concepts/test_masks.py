"""AttnMask: what the paper says of it, and that no image sees another's."""

from dataclasses import replace

import pytest
import torch

from ldm.checkpoint import read_checkpoint, save_torch
from ldm.concepts.denoising import Denoising
from ldm.concepts.masks import AttentionMask
from ldm.concepts.objective import Objective
from ldm.prompts.sentence import LearnableWord
from tests.concepts.toy import BOUND, LEARNABLE, make_step, queries_and_keys, recorded
from tests.concepts.toy import tokens as make_tokens


def attended(size=3, learnable=LEARNABLE, latent=(8, 8), grid=(4, 4), bound=None, **details):
    """A step with random attention to the words of the captions."""
    attention = recorded(make_tokens(learnable, bound), *queries_and_keys(size, grid), grid)
    return make_step(size, latent, attention=attention, **details)


def by_hand(maps, present, threshold=0.5):
    """Eq. 2's mask, pixel by pixel: the union of the words' own maps above k."""
    mask = torch.zeros(len(maps), 1, *maps.shape[-2:])
    for i in range(len(maps)):
        for j in range(maps.shape[1]):
            if present[i, j]:
                mask[i, 0][maps[i, j] / maps[i, j].max() > threshold] = 1
    return mask


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_hard_masks_are_the_union_of_the_words_above_the_threshold(threshold):
    step = attended(latent=(4, 4))
    mask = AttentionMask(threshold=threshold)(step)
    assert torch.equal(mask, by_hand(step.attention.maps(), step.attention.present, threshold))
    assert 0 < mask.mean() < 1
    # The image that has one word only is masked by that word only.
    alone = step.attention.maps()[2, 1]
    assert torch.equal(mask[2, 0], (alone / alone.max() > threshold).float())


def test_soft_masks_are_the_largest_map():
    step = attended(latent=(4, 4))
    maps = step.attention.maps()
    relative = maps / maps.amax((-2, -1), keepdim=True).clamp(min=1e-12)
    mask = AttentionMask("soft")(step)
    torch.testing.assert_close(mask, relative.amax(1, keepdim=True))
    assert mask.amax((1, 2, 3)).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("latent", "grid"), [((64, 64), (16, 16)), ((8, 12), (4, 6))])
def test_masks_have_the_latents_size_by_nearest_neighbours(latent, grid):
    step = attended(latent=latent, grid=grid)
    mask = AttentionMask()(step)
    assert mask.shape == (3, 1, *latent)
    small = by_hand(step.attention.maps(), step.attention.present)
    scale = latent[0] // grid[0]
    assert torch.equal(mask, small.repeat_interleave(scale, 2).repeat_interleave(scale, 3))


def test_skip_is_no_mask_and_records_nothing():
    mask = AttentionMask("skip")
    step = attended()
    assert mask(step) is None
    assert not mask.reads_attention
    assert not Objective([Denoising(mask=mask)]).attention_words
    assert torch.equal(Denoising(mask=mask)(step).loss, Denoising()(step).loss)


def test_no_gradient_flows_through_the_mask():
    q, k = queries_and_keys(3)
    k.requires_grad_()
    for kind in ("hard", "soft"):
        mask = AttentionMask(kind)(make_step(3, attention=recorded(make_tokens(), q, k)))
        assert not mask.requires_grad


def test_the_masked_loss_is_eq_2():
    step = attended()
    mask = AttentionMask()(step)
    product = (step.target * mask - step.prediction * mask).square()
    loss = Denoising(mask=AttentionMask())(step).loss
    torch.testing.assert_close(loss, product.mean().reshape(1))
    (gradient,) = torch.autograd.grad(loss.sum(), step.prediction)
    assert torch.equal(gradient.abs().amax(1, keepdim=True) > 0, mask > 0)


@pytest.mark.parametrize("average", ["step", "running"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_an_image_never_changes_another_ones_mask(kind, average):
    """Bit for bit, whatever the other images of the batch are, and wherever it stands."""
    q, k = queries_and_keys(3)
    ids = torch.tensor([7, 8, 9])

    def masks(learnable, q, k, ids):
        step = make_step(3, attention=recorded(make_tokens(learnable), q, k), image_id=ids)
        mask = AttentionMask(kind, average=average)
        return [mask(step), mask(step)][1]

    reference = masks(LEARNABLE, q, k, ids)
    order = [2, 0, 1]
    moved = masks([LEARNABLE[i] for i in order], q[order], k[order], ids[order])
    assert torch.equal(moved, reference[order])
    for mine in range(3):
        other_q, other_k = queries_and_keys(3)
        other_q[mine], other_k[mine] = q[mine], k[mine]
        company = [{"<x>": [1, 2, 3, 4, 6]}, {"<a>": [4], "<z>": [1]}, {}]
        company[mine] = LEARNABLE[mine]
        changed = masks(company, other_q, other_k, ids)
        assert torch.equal(changed[mine], reference[mine])
        assert not torch.equal(changed, reference)


def test_the_running_mask_is_made_of_the_mean_over_the_steps_so_far():
    mask = AttentionMask("soft", average="running")
    ids, flip = torch.tensor([4, 5]), torch.tensor([False, True])
    steps = [
        attended(2, LEARNABLE[:2], (4, 4), image_id=ids, flip=flip, run=torch.zeros(2).long())
        for _ in range(3)
    ]
    for count, step in enumerate(steps, start=1):
        maps = torch.stack([s.attention.maps() for s in steps[:count]]).mean(0)
        relative = maps / maps.amax((-2, -1), keepdim=True)
        torch.testing.assert_close(mask(step), relative.amax(1, keepdim=True))


def test_running_means_are_kept_by_run_image_flip_and_word():
    mask = AttentionMask("soft", average="running")
    first = attended(3, latent=(4, 4), image_id=torch.tensor([0, 1, 2]))
    mask(first)
    keys = set(mask.kept.rows[4, 4])
    assert keys == {(0, 0, False, "<a>"), (0, 0, False, "<b>"), (0, 1, False, "<a>"),
                    (0, 1, False, "<b>"), (0, 2, False, "<b>")}  # fmt: skip
    fresh = AttentionMask("soft")
    for change in (
        {"flip": torch.tensor([True] * 3)},
        {"run": torch.tensor([1] * 3), "runs": 2},
        {"image_id": torch.tensor([5, 6, 7])},
    ):
        step = replace(attended(latent=(4, 4), image_id=torch.tensor([0, 1, 2])), **change)
        assert torch.equal(mask(step), fresh(step))
    assert len(mask.kept.rows[4, 4]) == 20


def test_an_image_that_is_twice_in_a_batch_counts_twice():
    mask = AttentionMask("soft", average="running")
    step = attended(2, LEARNABLE[:2], (4, 4), image_id=torch.tensor([3, 3]))
    maps = step.attention.maps().mean(0, keepdim=True).expand(2, -1, -1, -1)
    relative = maps / maps.amax((-2, -1), keepdim=True)
    torch.testing.assert_close(mask(step), relative.amax(1, keepdim=True))
    assert mask.kept.counts[4, 4] == [2, 2]


def test_steps_that_do_not_learn_are_not_remembered():
    mask = AttentionMask(average="running")
    step = attended(image_id=torch.arange(3))
    with torch.no_grad():
        assert torch.equal(mask(step), AttentionMask()(step))
    assert not mask.kept.rows


def test_images_of_different_shape_have_tables_of_their_own():
    mask = AttentionMask(average="running")
    for _ in range(2):
        for grid in ((4, 4), (4, 6)):
            latent = (grid[0] * 2, grid[1] * 2)
            step = attended(latent=latent, grid=grid, image_id=torch.arange(3))
            assert mask(step).shape == (3, 1, *latent)
    assert {size: set(counts) for size, counts in mask.kept.counts.items()} == {
        (4, 4): {2},
        (4, 6): {2},
    }


def test_running_means_continue_from_a_file_bit_for_bit(tmp_path):
    steps = [attended(image_id=torch.tensor([i, i + 1, 9])) for i in range(5)]
    through, before, after = (AttentionMask("soft", average="running") for _ in range(3))
    expected = [through(step) for step in steps]
    for step in steps[:3]:
        before(step)
        before.commit()
    save_torch({"attention_mask": before.state_dict()}, tmp_path / "last.ckpt")
    after.load_state_dict(read_checkpoint(tmp_path / "last.ckpt")["attention_mask"])
    for step, mask in zip(steps[3:], expected[3:], strict=True):
        assert torch.equal(after(step), mask)
    assert not torch.equal(AttentionMask("soft")(steps[4]), expected[4])


def test_maps_of_a_step_that_was_not_taken_count_in_the_mean_and_in_no_file():
    sizes = ((4, 4), (4, 4), (4, 6))
    steps = [
        attended(grid=g, latent=g, image_id=torch.tensor([i, 7, 7])) for i, g in enumerate(sizes)
    ]
    taken, cut_short, through = (AttentionMask("soft", average="running") for _ in range(3))
    for mask in (taken, cut_short):
        mask(steps[0])
        mask.commit()
    seen = [cut_short(step) for step in steps[1:]]
    kept = cut_short.state_dict()
    assert len(kept["tables"]) == 1, "nothing of a size that only the step has"
    assert kept["tables"][0]["keys"] == taken.state_dict()["tables"][0]["keys"]
    assert kept["tables"][0]["counts"] == taken.state_dict()["tables"][0]["counts"]
    assert torch.equal(kept["tables"][0]["sums"], taken.state_dict()["tables"][0]["sums"])
    through(steps[0])
    assert torch.equal(through(steps[1]), seen[0])
    taken.load_state_dict(kept)
    assert torch.equal(taken(steps[1]), seen[0]), "the step again is the same step"
    cut_short.commit()
    assert len(cut_short.state_dict()["tables"]) == 2


class Words:
    """The words of MCPL-all: a concept, and ordinary words that are learned as well."""

    learnable = (LearnableWord("<a>"), LearnableWord("<b>", role="other"))


def test_by_default_concepts_and_their_adjectives_make_the_mask():
    q, k = queries_and_keys(3)
    step = make_step(3, (4, 4), attention=recorded(make_tokens(bound=BOUND), q, k))
    maps, words = step.attention.maps(), step.attention.words

    def expected(*names):
        chosen = [words.index(name) for name in names]
        return by_hand(maps[:, chosen], step.attention.present[:, chosen])

    assert torch.equal(AttentionMask()(step), expected("<a>", "<b>", "[<a>]", "[<b>]"))
    assert torch.equal(AttentionMask(adjectives=False)(step), expected("<a>", "<b>"))
    with_roles = replace(step, embeddings=Words)
    assert torch.equal(AttentionMask()(with_roles)[:2], expected("<a>", "[<a>]")[:2])
    assert torch.equal(AttentionMask(words="<b>,[<a>]")(step), expected("<b>", "[<a>]"))


def test_an_image_without_any_of_the_words_is_not_masked():
    step = attended(latent=(4, 4))
    mask = AttentionMask(words=["<a>"])(step)
    assert mask[2].eq(1).all()
    assert mask[:2].mean() < 1


def test_words_that_no_caption_has_are_said_once(caplog):
    mask = AttentionMask(words=["<q>"])
    assert mask(attended()) is None
    assert mask(attended()) is None
    assert caplog.text.count("<q>") == 1
    assert "<a>" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "firm"}, "'firm'.*hard, soft, given, skip"),
        ({"average": "mean"}, "'mean'.*step, running"),
        ({"threshold": 1.0}, "threshold 1.0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AttentionMask(**arguments)


def test_what_a_mask_needs_is_said():
    with pytest.raises(ValueError, match="attention"):
        AttentionMask()(make_step(2))
    with pytest.raises(ValueError, match="image_id"):
        AttentionMask(average="running")(attended())
