"""What the figures of an experiment say: means with intervals, and questions answered yes or no.

Runs on the same set with the same seed see the same pictures, so arms are compared pair by pair.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldm.evaluation.tables.grid import Experiment, Row

#: What makes two runs of different arms a pair.
Pair = tuple[str, int]


@dataclass(frozen=True)
class Interval:
    """A mean over runs with the half-width of its 95% interval (Student's t); NaN for none."""

    mean: float
    half: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """The mean of some values; of a single one the interval is not known."""
        from scipy.stats import t

        found = np.asarray([value for value in values if np.isfinite(value)], float)
        if len(found) < 2:
            return cls(
                float(found.mean()) if len(found) else float("nan"), float("nan"), len(found)
            )
        spread = found.std(ddof=1) / np.sqrt(len(found))
        return cls(float(found.mean()), float(t.ppf(0.975, len(found) - 1) * spread), len(found))

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies on one side of 0, else 0."""
        return int(np.sign(self.mean)) if abs(self.mean) > self.half else 0

    def __str__(self) -> str:
        if not self.count:
            return "-"
        half = f" ± {self.half:.2f}" if np.isfinite(self.half) else ""
        return f"{self.mean:.2f}{half}"


def values_of(rows: Sequence[Row], arm: str, measure: str, group: str | None = None) -> list[float]:
    """A measure of an arm for each set and seed, in one group of sets or in all.

    Where words are learned one by one, the runs on the same pictures count as one: their mean.
    """
    own = [row for row in rows if row["arm"] == arm and group in (None, row["group"])]
    return list(paired(own, [arm], measure).values())


def paired(rows: Sequence[Row], arms: Sequence[str], measure: str) -> dict[Pair, float]:
    """The mean of `measure` over `arms` for each set and seed that all of them have."""
    found: dict[Pair, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        value = row["values"].get(measure)
        if row["arm"] in arms and value is not None:
            found[row["set"], row["seed"]][row["arm"]].append(value)
    return {
        pair: float(np.mean([np.mean(values) for values in by_arm.values()]))
        for pair, by_arm in found.items()
        if set(by_arm) == set(arms)
    }


def difference(
    rows: Sequence[Row], better: Sequence[str], than: Sequence[str], measure: str
) -> Interval:
    """How much more `better` has than `than`, over pairs of runs."""
    ours, theirs = paired(rows, better, measure), paired(rows, than, measure)
    return Interval.of([ours[pair] - theirs[pair] for pair in sorted(ours.keys() & theirs.keys())])


@dataclass(frozen=True)
class Answer:
    """A question, the measure it was asked of, and what the figures say."""

    question: str
    measure: str
    verdict: str
    difference: Interval
    against: str


VERDICTS = {1: "yes", 0: "not shown", -1: "no"}


def answers(experiment: Experiment, rows: Sequence[Row]) -> list[Answer]:
    """Every question of an experiment, asked of every measure it names.

    ``{question, better, than, measures}`` asks whether the arms `better` have more, on average,
    than the arms `than`; ``{question, best, measures}`` whether the arm `best` has more than the
    best of all other arms that are learned (references apart). "Yes" and "no" need the whole
    interval of the paired difference on one side of 0.
    """
    return [
        _answer(experiment, rows, check, measure)
        for check in experiment.checks
        for measure in check.get("measures", experiment.columns)
    ]


def _answer(
    experiment: Experiment, rows: Sequence[Row], check: Mapping[str, Any], measure: str
) -> Answer:
    labels = {arm.name: arm.label or arm.name for arm in experiment.arms}
    if "best" in check:
        better = [check["best"]]
        others = [
            arm.name
            for arm in experiment.arms
            if arm.learned and arm.shown and not arm.reference and arm.name not in better
        ]
        means = {name: Interval.of(values_of(rows, name, measure)).mean for name in others}
        known = [name for name in others if np.isfinite(means[name])]
        than = [max(known, key=means.__getitem__)] if known else others[:1]
    else:
        better, than = list(check["better"]), list(check["than"])
    gap = difference(rows, better, than, measure)
    verdict = VERDICTS[gap.sign] if gap.count > 1 else "too few runs"
    against = ", ".join(labels.get(name, name) for name in than)
    return Answer(check["question"], measure, verdict, gap, against)
