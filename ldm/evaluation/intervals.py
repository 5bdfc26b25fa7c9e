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


def _quantile(free: int) -> float:
    """Student's t of a two-sided interval of 95%, with so many degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf(0.975, free))


#: Values of runs: set -> one for each seed.
Runs = Mapping[str, Sequence[float]]


def over_seeds(runs: Runs) -> Mean:
    """The mean over sets, with the interval that it has on these sets, from seed to seed.

    Sets count equally; the spread of seeds around the mean of their set is taken to be the same on
    all sets. With one seed a set, the interval is not known.
    """
    found = _finite(runs)
    count = sum(map(len, found))
    if not found:
        return Mean(math.nan, math.nan, 0)
    mean, free = float(np.mean([np.mean(row) for row in found])), count - len(found)
    if not free:
        return Mean(mean, math.nan, count)
    squares = sum(float(np.square(np.subtract(row, np.mean(row))).sum()) for row in found)
    error = math.sqrt(squares / free * sum(1 / len(row) for row in found)) / len(found)
    return Mean(mean, _quantile(free) * error, count)


def over_sets(runs: Runs) -> Mean:
    """The mean over sets, with the interval that it has for other sets of the same kind."""
    return Mean.of(float(np.mean(row)) for row in _finite(runs))


def _finite(runs: Runs) -> list[list[float]]:
    """The values that are numbers, of sets that have some."""
    rows = [[value for value in row if math.isfinite(value)] for row in runs.values()]
    return [row for row in rows if row]
