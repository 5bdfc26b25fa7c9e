"""Keys of examples, their split over processes, and batches."""

from itertools import islice

import numpy as np
import pytest
import torch

from ldm.data.steps import StepBatchSampler, StepKey, collate
from ldm.prompts import Caption


def test_steps_follow_each_other_without_end():
    batches = list(islice(StepBatchSampler(2, start_step=5), 40))
    assert batches[0] == [StepKey(5, 0), StepKey(5, 1)]
    assert [batch[0].step for batch in batches] == list(range(5, 45))
    with pytest.raises(TypeError, match="no end"):
        len(StepBatchSampler(2))


def test_a_limit_counts_from_the_first_step():
    sampler = StepBatchSampler(1, start_step=3, max_steps=4)
    assert [batch[0].step for batch in sampler] == [3, 4, 5, 6]
    assert len(sampler) == 4
    assert list(sampler) == list(sampler)


@pytest.mark.parametrize("runs", [1, 3])
def test_processes_share_the_same_global_batch(runs):
    whole = list(StepBatchSampler(4, 7, 3, runs=runs))
    parts = [list(StepBatchSampler(4, 7, 3, rank, 2, runs=runs)) for rank in range(2)]
    for batch, left, right in zip(whole, *parts, strict=True):
        assert len(left) == len(right) == 2 * runs
        assert sorted(left + right) == sorted(batch)
        assert not set(left) & set(right)


def test_the_keys_of_a_run_stand_together():
    (batch,) = StepBatchSampler(2, 0, 1, runs=2)
    assert [(key.run, key.slot) for key in batch] == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "batch_size=0"),
        ((2, -1), "start_step=-1"),
        ((2, 0, -3), "max_steps=-3"),
        ((2, 0, 1, 2, 2), "rank"),
        ((3, 0, 1, 0, 2), "multiple of 2"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        StepBatchSampler(*arguments)


def test_every_key_has_its_own_random_numbers():
    keys = [StepKey(step, slot, run) for step in range(5) for slot in range(5) for run in range(2)]
    draws = {float(torch.rand((), generator=key.generator(1))) for key in keys}
    assert len(draws) == len(keys)
    first = [torch.rand(3, generator=StepKey(4, 2).generator(1)) for _ in range(2)]
    assert torch.equal(*first)
    assert not torch.equal(first[0], torch.rand(3, generator=StepKey(4, 2).generator(2)))


def test_a_batch_keeps_captions_and_stacks_figures():
    captions = [Caption("a <b>"), Caption("the <b>")]
    images = [np.full((2, 2, 3), value, np.float32) for value in (0, 1)]
    examples = [
        {"image": image, "caption": caption, "flip": flip, "image_id": 3, "share": 0.5}
        for image, caption, flip in zip(images, captions, (True, False), strict=True)
    ]
    batch = collate(examples)
    assert batch["caption"] == captions
    assert batch["caption"][1] is captions[1]
    assert torch.equal(batch["image"], torch.from_numpy(np.stack(images)))
    assert batch["flip"].tolist() == [True, False]
    assert batch["flip"].dtype == torch.bool
    assert batch["image_id"].dtype == torch.int64
    assert batch["share"].dtype == torch.float32


def test_a_batch_of_plain_tensors_is_stacked():
    assert collate([torch.zeros(2), torch.ones(2)]).tolist() == [[0, 0], [1, 1]]


def test_examples_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match=r"'image'.*size"):
        collate([{"image": np.zeros((2, 2, 3))}, {"image": np.zeros((3, 2, 3))}])
    with pytest.raises(ValueError, match="mask"):
        collate([{"image": 1}, {"image": 1, "mask": 2}])
