"""The figures of an experiment as a page of Markdown, as JSON and as a picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ldm.checkpoint import write_atomic
from ldm.evaluation.intervals import Mean, over_seeds
from ldm.evaluation.pages import fill, literal, table
from ldm.evaluation.tables.grid import Arm, Experiment, Row
from ldm.evaluation.tables.questions import Answer, answers, values_of
from ldm.visual import GREY, INK, WORD_COLOURS

#: Panels of bars in a row of the figure.
ACROSS = 4


def figures(experiment: Experiment, rows: Sequence[Row]) -> dict[tuple[str, str, str], Mean]:
    """The mean of every measure of every shown arm in every group."""
    return {
        (group, arm.name, measure): over_seeds(values_of(rows, arm.name, measure, group))
        for group in experiment.groups
        for arm in shown(experiment)
        for measure in experiment.columns
    }


def shown(experiment: Experiment) -> list[Arm]:
    """The arms that have a row in the tables."""
    return [arm for arm in experiment.arms if arm.shown]


def markdown(experiment: Experiment, rows: Sequence[Row], facts: Mapping[str, Any]) -> str:
    """A page: what was done, a table for each group of sets, the questions and their answers."""
    found = figures(experiment, rows)
    lines = [f"# {experiment.title}", "", literal(" ".join(experiment.about.split())), ""]
    sets = "; ".join(f"{group}: {', '.join(names)}" for group, names in experiment.groups.items())
    steps = sorted({experiment.steps_of(arm) for arm in experiment.arms if arm.learned})
    lines += [
        f"{len(rows)} rows of raw values, {' or '.join(map(str, steps))} steps a run, "
        f"{experiment.seeds} seeds a set ({sets}). Means, with 95% intervals on these sets, from "
        "seed to seed (Student's t).",
        "",
    ]
    lines += [f"* {name}: {fact}" for name, fact in facts.items()] + [""] * bool(facts)
    paper = list(dict.fromkeys(key for told in experiment.paper.values() for key in told))
    for group in experiment.groups:
        lines += [f"## Sets: {group}", ""]
        body = []
        for arm in shown(experiment):
            cells = [found[group, arm.name, measure] for measure in experiment.columns]
            count = max((cell.count for cell in cells), default=0)
            told = [str(experiment.paper.get(arm.name, {}).get(key, "-")) for key in paper]
            body.append(
                [arm.label or arm.name, str(count), *(cell.told(2) for cell in cells), *told]
            )
        lines += [*table(["arm", "runs", *experiment.columns.values(), *paper], body), ""]
    lines += _questions(experiment, answers(experiment, rows))
    return "\n".join(lines) + f"![{experiment.title}]({experiment.name}.png)\n"


def _questions(experiment: Experiment, found: Sequence[Answer]) -> list[str]:
    """The questions and what the figures say, or nothing where none is asked."""
    if not found:
        return []
    body = [
        [one.question, experiment.columns.get(one.measure, one.measure), f"**{one.verdict}**",
         one.difference.told(2), one.elsewhere.told(2), str(one.difference.count), one.against]
        for one in found
    ]  # fmt: skip
    heads = [
        "question",
        "measure",
        "answer",
        "difference",
        "... from set to set",
        "pairs",
        "against",
    ]
    note = (
        "Differences are taken between runs on the same pictures, with 95% intervals on these sets "
        "(from seed to seed) and for other sets of their kind (from set to set). *Yes* and *no* "
        "need both wholly on one side of 0; *on these sets*, the first. Who comes first is asked "
        "with wider ones, since the rival is chosen by the same figures."
    )
    return ["## Questions", "", *table(heads, body), "", note, ""]


def document(
    experiment: Experiment, rows: Sequence[Row], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything as plain data: settings, raw values of each run, means, answers."""
    return {
        "name": experiment.name,
        "title": experiment.title,
        "settings": {**_plain(asdict(experiment)), **facts},
        "runs": list(rows),
        "means": [
            {"group": group, "arm": arm, "measure": measure, **_finite(asdict(interval))}
            for (group, arm, measure), interval in figures(experiment, rows).items()
        ],
        "answers": [
            {
                **asdict(one),
                "difference": _finite(asdict(one.difference)),
                "elsewhere": _finite(asdict(one.elsewhere)),
            }
            for one in answers(experiment, rows)
        ],
    }


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: settings[key] for key in ("base", "arms", "groups", "seeds", "steps", "overrides",
                                           "options", "columns")}  # fmt: skip


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value
        for key, value in values.items()
    }


def _rgb(colour: Sequence[int]) -> tuple[float, ...]:
    return tuple(part / 255 for part in colour)


def _span(means: Sequence[float]) -> tuple[float, float]:
    """The part of an axis that holds these bars; intervals may stick out of it."""
    known = [mean for mean in means if np.isfinite(mean)]
    return 1.3 * min(0.0, *known, 0.0), 1.3 * max(0.0, *known, 0.0) or 1.0


def chart(experiment: Experiment, rows: Sequence[Row], path: Path) -> None:
    """A panel of bars for each measure: an arm each, groups of sets side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found, arms = figures(experiment, rows), shown(experiment)
    columns, groups = list(experiment.columns.items()), list(experiment.groups)
    across = min(ACROSS, len(columns))
    down = -(-len(columns) // across)
    height = 0.28 * len(arms) * max(1.0, 0.6 * len(groups)) + 0.9
    figure = Figure(figsize=(3.4 * across + 1.6, height * down + 0.6), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True)
    places, thick = np.arange(len(arms)), 0.8 / len(groups)
    for number, panel in enumerate(panels.flat):
        if number >= len(columns):
            panel.set_axis_off()
            continue
        measure, heading = columns[number]
        for k, group in enumerate(groups):
            cells = [found[group, arm.name, measure] for arm in arms]
            panel.barh(
                places + (k - (len(groups) - 1) / 2) * thick, [cell.value for cell in cells], thick,
                xerr=[np.nan_to_num(cell.interval) for cell in cells], color=_rgb(WORD_COLOURS[k]),
                ecolor=_rgb(INK), error_kw={"linewidth": 0.8}, label=group,
            )  # fmt: skip
        panel.set_title(heading, fontsize=9, color=_rgb(INK))
        panel.set_yticks(places, [arm.label or arm.name for arm in arms], fontsize=8)
        panel.axvline(0, color=_rgb(GREY), linewidth=0.6)
        panel.set_xlim(*_span([found[g, arm.name, measure].value for g in groups for arm in arms]))
        panel.tick_params(axis="x", labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    panels.flat[0].invert_yaxis()
    figure.suptitle(experiment.title, fontsize=11)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    if len(groups) > 1:
        figure.legend(handles, labels, loc="outside lower right", fontsize=8, ncols=len(labels))
    FigureCanvasAgg(figure)
    with write_atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def write_report(
    experiment: Experiment, rows: Sequence[Row], folder: Path, facts: Mapping[str, Any]
) -> list[Path]:
    """Write ``<name>.md``, ``.json`` and ``.png`` to `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, data, picture = (folder / f"{experiment.name}{end}" for end in (".md", ".json", ".png"))
    with write_atomic(data) as temporary:
        told = json.dumps(document(experiment, rows, facts), indent=1, ensure_ascii=False)
        Path(temporary).write_text(told + "\n", encoding="utf-8")
    chart(experiment, rows, picture)
    with write_atomic(page) as temporary:
        Path(temporary).write_text(markdown(experiment, rows, facts), encoding="utf-8")
    return [page, data, picture]


def fill_page(page: Path, experiment: Experiment, text: str) -> None:
    """Put an experiment's tables into their place in a page of Markdown (see `pages`)."""
    lines = [f"##{line}" if line.startswith("#") else line for line in text.splitlines()]
    body = "\n".join(lines).replace(f"({experiment.name}.png)", f"(figures/{experiment.name}.png)")
    fill(page, {experiment.name: body})
