"""What the figures of an experiment say: means with intervals, and questions answered yes or no.

Runs on the same set with the same seed see the same pictures, so arms are compared pair by pair. A
difference may hold on the sets at hand and not be shown for others: both are said.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldm.evaluation.intervals import Mean, over_seeds, over_sets
from ldm.evaluation.tables.grid import Experiment, Row

#: What makes two runs of different arms a pair.
Pair = tuple[str, int]


def values_of(
    rows: Sequence[Row], arm: str, measure: str, group: str | None = None
) -> dict[str, list[float]]:
    """A measure of an arm for the seeds of each set, in one group of sets or in all.

    Where words are learned one by one, the runs on the same pictures count as one: their mean.
    """
    own = [row for row in rows if row["arm"] == arm and group in (None, row["group"])]
    return by_set(paired(own, [arm], measure))


def by_set(pairs: Mapping[Pair, float]) -> dict[str, list[float]]:
    """The values of the seeds of each set."""
    found: dict[str, list[float]] = defaultdict(list)
    for (name, _), value in sorted(pairs.items()):
        found[name].append(value)
    return dict(found)


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
) -> dict[str, list[float]]:
    """How much more `better` has than `than` in each pair of runs, by set."""
    ours, theirs = paired(rows, better, measure), paired(rows, than, measure)
    # Rounded, lest the order in which equal values were averaged passes for a difference.
    gaps = {pair: round(ours[pair] - theirs[pair], 9) for pair in ours.keys() & theirs.keys()}
    return by_set(gaps)


@dataclass(frozen=True)
class Answer:
    """A question, the measure it was asked of, and what the figures say.

    `difference` has the interval of these sets, `elsewhere` that of other sets of their kind.
    """

    question: str
    measure: str
    verdict: str
    difference: Mean
    elsewhere: Mean
    against: str


VERDICTS = {1: "yes", 0: "not shown", -1: "no"}
HERE = ", on these sets"
#: The smallest difference that counts: tables have two digits.
SMALLEST = 0.005


def answers(experiment: Experiment, rows: Sequence[Row]) -> list[Answer]:
    """Every question of an experiment, asked of every measure it names.

    ``{question, better, than, measures}`` asks whether the arms `better` have more, on average,
    than the arms `than`; ``{question, best, measures}`` whether the arm `best` has more than the
    best of all other arms that are learned (references apart), with intervals wide enough for a
    rival that was chosen by the same figures. "Yes" and "no" need the whole interval of the paired
    difference on one side of 0, both from seed to seed and from set to set; where it is so from
    seed to seed alone, the answer is given for these sets.
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
        means = {name: over_sets(values_of(rows, name, measure)).value for name in others}
        known = [name for name in others if np.isfinite(means[name])]
        than = [max(known, key=means.__getitem__)] if known else others[:1]
        tests = max(len(known), 1)
    else:
        better, than, tests = list(check["better"]), list(check["than"]), 1
    gaps = difference(rows, better, than, measure)
    here, elsewhere = over_seeds(gaps, tests), over_sets(gaps, tests)
    against = ", ".join(labels.get(name, name) for name in than)
    return Answer(check["question"], measure, verdict(here, elsewhere), here, elsewhere, against)


def verdict(here: Mean, elsewhere: Mean) -> str:
    """What a difference says, by its intervals on these sets and for others.

    One that tables print as 0.00 says nothing. Where no seed differs from another, how far seeds
    can differ is not known, and what is said comes from the spread between sets, if there are any.
    """
    if math.isnan(here.interval) and math.isnan(elsewhere.interval):
        return "too few runs"
    if not abs(here.value) >= SMALLEST:
        return VERDICTS[0]
    if math.isnan(here.interval) or (here.interval == 0 and not math.isnan(elsewhere.interval)):
        return VERDICTS[elsewhere.sign]
    return VERDICTS[here.sign] + (HERE if here.sign and not elsewhere.sign else "")
