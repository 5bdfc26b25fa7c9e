"""Means and shares, and how far they can be from what many more examples would give."""

import math

import numpy as np
import pytest

from ldm.evaluation.intervals import Mean, over_seeds, over_sets


def test_the_interval_of_a_mean_is_students():
    found = Mean.of([1.0, 2.0, 3.0, math.nan])
    assert (found.value, found.count) == (2.0, 3)
    assert found.interval == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)


def test_of_one_value_the_interval_is_not_known_and_of_none_the_mean():
    assert Mean.of([1.0]).told(2) == "1.00"
    assert Mean.of([]).told(2) == "-"
    assert Mean.of([]).sign == Mean.of([1.0]).sign == 0


def test_a_share_reaches_to_the_farther_end_of_wilsons_interval():
    """Wilson's for 8 of 10 is (0.4902, 0.9433), for 200 of 200 (0.9812, 1)."""
    assert Mean.share([True] * 8 + [False] * 2).interval == pytest.approx(0.8 - 0.4902, abs=1e-4)
    assert Mean.share([False] * 8 + [True] * 2).interval == pytest.approx(0.8 - 0.4902, abs=1e-4)
    assert Mean.share([True] * 200).interval == pytest.approx(1 - 0.9812, abs=1e-4)


def test_shares_leave_out_what_was_not_asked():
    assert Mean.share([True, None, False]).count == 2
    assert math.isnan(Mean.share([None]).value)


class TestRuns:
    SPLIT = {"a": [0.9, 1.0, 1.1], "b": [-0.1, 0.0, 0.1]}

    def test_the_spread_between_sets_is_not_that_between_seeds(self):
        here, elsewhere = over_seeds(self.SPLIT), over_sets(self.SPLIT)
        assert here.value == elsewhere.value == pytest.approx(0.5)
        # Two sets, four degrees of freedom, a deviation of 0.1.
        assert here.interval == pytest.approx(2.776445 * 0.1 * math.sqrt(2 / 3) / 2, rel=1e-5)
        assert elsewhere.interval == pytest.approx(12.706205 * 0.5, rel=1e-5)
        assert (here.sign, elsewhere.sign) == (1, 0)

    def test_of_one_set_it_is_the_plain_mean(self):
        one = {"a": self.SPLIT["a"]}
        assert over_seeds(one).interval == pytest.approx(Mean.of(one["a"]).interval)
        assert math.isnan(over_sets(one).interval)

    def test_with_one_seed_a_set_only_the_spread_between_sets_is_known(self):
        found = {"a": [1.0], "b": [2.0], "c": [math.nan]}
        assert math.isnan(over_seeds(found).interval)
        assert over_sets(found).count == 2

    def test_a_set_that_never_varies_lends_no_certainty_to_one_that_does(self):
        """Nor does it cost any: two values that vary have one degree of freedom."""
        found = over_seeds({"a": [0.0, 0.2], "b": [1.0, 1.0], "c": [1.0, 1.0]})
        assert found.interval == pytest.approx(12.706205 * 0.1 / 3, rel=1e-5)

    def test_where_nothing_differs_the_interval_holds_in_95_of_100_cases(self):
        draw = np.random.default_rng(0)
        found = [
            over_seeds({"a": draw.normal(size=3), "b": draw.normal(size=3) / 9, "c": [0.0, 0.0]})
            for _ in range(1000)
        ]
        assert np.mean([mean.sign != 0 for mean in found]) == pytest.approx(0.05, abs=0.02)

    def test_several_tests_have_wider_intervals(self):
        one, four = over_seeds(self.SPLIT), over_seeds(self.SPLIT, tests=4)
        # Student's t at 1 - 0.025 / 4 with four degrees of freedom, over that at 1 - 0.025.
        assert four.interval / one.interval == pytest.approx(4.3147 / 2.776445, rel=1e-3)
