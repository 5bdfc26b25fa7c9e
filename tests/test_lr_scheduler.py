"""The laws of the learning-rate factors."""

import logging
import math
import pickle
from itertools import pairwise

import pytest
import torch

from ldm.lr_scheduler import (
    LambdaLinearScheduler,
    LambdaWarmUpCosineScheduler,
    LambdaWarmUpCosineScheduler2,
)

CYCLES = {
    "warm_up_steps": [4, 2],
    "f_min": [0.1, 0.2],
    "f_max": [1.0, 0.5],
    "f_start": [0.01, 0.3],
    "cycle_lengths": [10, 20],
}


def _cosine(**changes: float) -> LambdaWarmUpCosineScheduler:
    values = {
        "warm_up_steps": 10, "lr_min": 0.1, "lr_max": 1.0, "lr_start": 0.01,
        "max_decay_steps": 50,
    }  # fmt: skip
    return LambdaWarmUpCosineScheduler(**(values | changes))


def _both(test):
    kinds = [LambdaWarmUpCosineScheduler2, LambdaLinearScheduler]
    return pytest.mark.parametrize("kind", kinds)(test)


def test_one_rise_and_half_a_cosine():
    factor = _cosine()
    assert factor.schedule(0) == pytest.approx(0.01)
    assert factor.schedule(5) == pytest.approx((0.01 + 1.0) / 2)
    assert factor.schedule(10) == pytest.approx(1.0)
    assert factor.schedule(30) == pytest.approx((1.0 + 0.1) / 2)  # halfway down
    assert factor.schedule(20) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert factor.schedule(50) == pytest.approx(0.1)
    assert factor.schedule(10**9) == pytest.approx(0.1)


def test_the_rise_is_steady_and_the_decay_falls():
    values = [_cosine().schedule(n) for n in range(60)]
    rise = [b - a for a, b in pairwise(values[:11])]
    assert max(rise) - min(rise) < 1e-12
    assert all(b <= a for a, b in pairwise(values[10:]))


def test_no_warm_up_starts_at_the_top():
    assert _cosine(warm_up_steps=0).schedule(0) == pytest.approx(1.0)


@_both
def test_each_cycle_rises_from_its_start_and_ends_at_its_bottom(kind):
    factor = kind(**CYCLES)
    assert factor.schedule(0) == pytest.approx(0.01)
    assert factor.schedule(2) == pytest.approx((0.01 + 1.0) / 2)
    assert factor.schedule(10) == pytest.approx(0.1)  # a boundary ends its cycle
    assert factor.schedule(11) == pytest.approx((0.3 + 0.5) / 2)
    assert factor.schedule(30) == pytest.approx(0.2)
    assert factor.schedule(31) == factor.schedule(10**9) == pytest.approx(0.2)


def test_the_shapes_of_the_decay():
    cosine, linear = LambdaWarmUpCosineScheduler2(**CYCLES), LambdaLinearScheduler(**CYCLES)
    assert cosine.schedule(4) == pytest.approx(1.0)
    assert cosine.schedule(7) == pytest.approx((1.0 + 0.1) / 2)
    assert linear.schedule(4) == pytest.approx(0.1 + 0.9 * 6 / 10)  # over the whole cycle
    steps = [linear.schedule(n + 1) - linear.schedule(n) for n in range(4, 10)]
    assert max(steps) - min(steps) < 1e-12


def test_the_public_stable_diffusion_schedule_warms_up_and_stays():
    factor = LambdaLinearScheduler(
        warm_up_steps=[10000], cycle_lengths=[10000000000000], f_start=[1e-6], f_max=[1.0],
        f_min=[1.0],
    )  # fmt: skip
    assert factor.schedule(0) == pytest.approx(1e-6)
    assert factor.schedule(5000) == pytest.approx(0.5, abs=1e-6)
    assert factor.schedule(10000) == factor.schedule(10**8) == 1.0


@_both
def test_calling_is_the_schedule_and_logs_at_the_interval(kind, caplog):
    factor = kind(**CYCLES, verbosity_interval=5)
    with caplog.at_level(logging.INFO, "ldm"):
        assert [factor(n) for n in range(12)] == [factor.schedule(n) for n in range(12)]
    assert [record.args[0] for record in caplog.records] == [0, 5, 10]
    assert factor.last_lr == factor.schedule(11)


@_both
def test_torch_uses_them_and_checkpoints_them(kind):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    factor = kind(**CYCLES)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for n in range(1, 15):
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2.0 * factor.schedule(n))
    pickle.dumps(scheduler.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warm_up_steps": 50}, "warm_up_steps 50 and max_decay_steps 50"),
        ({"warm_up_steps": -1}, "warm_up_steps -1"),
    ],
)
def test_impossible_lengths_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        _cosine(**changes)


@_both
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"f_min": [0.1]}, "one entry a cycle.*'f_min': 1"),
        ({"warm_up_steps": [11, 2]}, "10 steps cannot have 11 warm-up"),
        ({name: [] for name in CYCLES}, "at least one"),
        ({"warm_up_steps": [0, 0], "cycle_lengths": [0, 5]}, "0 steps"),
    ],
)
def test_impossible_cycles_are_refused(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        kind(**(CYCLES | changes))
