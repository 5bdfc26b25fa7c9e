"""Means and shares with their 95% intervals: of single examples, and of runs on several sets.

Runs on one set with different seeds are more alike than runs on different sets. What is said of the
sets at hand comes from the spread between seeds (`over_seeds`); what is said of sets in general
comes from the spread between sets, of which there are few (`over_sets`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

#: How many standard errors a normal variable stays within in 95 of 100 cases.
Z = 1.959964


@dataclass(frozen=True)
class Mean:
    """A mean of `count` values with the half-width of its 95% interval; NaN where not known."""

    value: float
    interval: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Mean":
        """The mean of independent values that are finite (Student's t)."""
        return over_seeds({"": list(values)})

    @classmethod
    def share(cls, values: Iterable[bool | float | None]) -> "Mean":
        """The share of true values; None is left out.

        The interval reaches as far as the farther end of Wilson's, which lies round another centre
        than the share.
        """
        found = [float(value) for value in values if value is not None]
        if not found:
            return cls(math.nan, math.nan, 0)
        n, share = len(found), float(np.mean(found))
        wide = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
        centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
        return cls(share, wide + abs(centre - share), n)

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies on one side of 0, else 0."""
        return int(np.sign(self.value)) if abs(self.value) > self.interval else 0

    def told(self, digits: int) -> str:
        """``0.91 ± 0.04``; ``-`` for no value, and no interval where it is not known."""
        if math.isnan(self.value):
            return "-"
        half = "" if math.isnan(self.interval) else f" ± {self.interval:.{digits}f}"
        return f"{self.value:.{digits}f}{half}"

    def __str__(self) -> str:
        return f"{self.told(3)} (n={self.count})"


def _quantile(free: float, tests: int = 1) -> float:
    """Student's t of a two-sided interval with `free` degrees of freedom.

    Of 95%, or so much wider that all of several `tests` hold together in 95 of 100 cases
    (Bonferroni).
    """
    from scipy.stats import t

    return float(t.ppf(1 - 0.025 / tests, free))


#: Values of runs: set -> one for each seed.
Runs = Mapping[str, Sequence[float]]


def over_seeds(runs: Runs, tests: int = 1) -> Mean:
    """The mean over sets, with the interval that it has on these sets, from seed to seed.

    Sets count equally. Seeds may matter more on one set than on another, as where one is learned by
    every run: degrees of freedom are those of Welch and Satterthwaite. With one seed in any set,
    the interval is not known. `tests` widens it for several comparisons.
    """
    found = _finite(runs)
    count = sum(map(len, found))
    if not found:
        return Mean(math.nan, math.nan, 0)
    mean = float(np.mean([np.mean(row) for row in found]))
    if any(len(row) < 2 for row in found):
        return Mean(mean, math.nan, count)
    errors = np.array([np.var(row, ddof=1) / len(row) for row in found])
    total = float(errors.sum())
    if total == 0:
        return Mean(mean, 0.0, count)
    free = total**2 / sum(
        error**2 / (len(row) - 1) for row, error in zip(found, errors, strict=True)
    )
    return Mean(mean, _quantile(free, tests) * math.sqrt(total) / len(found), count)


def over_sets(runs: Runs, tests: int = 1) -> Mean:
    """The mean over sets, with the interval that it has for other sets of the same kind."""
    return over_seeds({"": [float(np.mean(row)) for row in _finite(runs)]}, tests)


def _finite(runs: Runs) -> list[list[float]]:
    """The values that are numbers, of sets that have some."""
    rows = [[value for value in row if math.isfinite(value)] for row in runs.values()]
    return [row for row in rows if row]
