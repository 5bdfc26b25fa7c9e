"""The figures of the default model: as JSON, as Markdown tables, in its card, and compared.

A figure's name is a path such as "samples/colours/2": what was measured, of what, and of scenes of
how many objects.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ldm.checkpoint import write_atomic
from ldm.evaluation.intervals import Mean
from ldm.evaluation.pages import fill, table

Figures = dict[str, Mean]

#: Columns that are no numbers, and their order.
WHEN = {"before": 0, "after": 1}


@dataclass(frozen=True)
class CardTable:
    """A table of the model card: figure ``row.format(column)`` in each cell, by their headings."""

    columns: Mapping[str, str]
    rows: Mapping[str, str]
    digits: int


_THINGS = {number: number for number in "12345"}
_RIGHT = {
    "place": "place",
    "all things": "objects",
    "colours asked for, on the right thing": "colours",
    "count of each": "count",
    "count of each, several of a kind asked for": "count, several asked",
    "relation": "relation",
    "nothing else": "nothing else",
    "states asked for": "states",
}
#: The tables of the model card, by the names of their places.
CARD = {
    **{
        kind: CardTable(
            _THINGS, {row: f"{kind}/{name}/{{}}" for row, name in _RIGHT.items()}, digits=2
        )
        for kind in ("samples", "renders")
    },
    "attention": CardTable(
        _THINGS,
        {
            "nouns, real renders": "attention/noun, maps 16+8/{}",
            "nouns, maps of 16 alone": "attention/noun, maps 16/{}",
            "nouns, maps of 8 alone": "attention/noun, maps 8/{}",
            "colours, real renders": "attention/colour, maps 16+8/{}",
            "other adjectives, real renders": "attention/adjective, maps 16+8/{}",
            "share of a thing's attention, its noun": "attention share/noun/{}",
            "the same, start, end and padding": "attention share/padding/{}",
            "nouns, samples, of things that the judge sees": "attention of samples/noun/{}",
            "share of nouns whose thing it sees": "attention of samples/noun seen/{}",
        },
        digits=3,
    ),
    "reconstruction": CardTable(
        {"PSNR, dB": "psnr"}, {"renders through the autoencoder": "reconstruction/{}"}, digits=1
    ),
    "judge": CardTable(
        {
            "objects": "objects",
            "colours": "colours",
            "states": "states",
            "states, where there is one": "states, where there is one",
            "counts": "counts",
            "counts, where there are several": "counts, where there are several",
            "relations": "relations",
            "places": "places",
            "mask IoU": "mask",
        },
        {"fresh renders": "judge/{}", "renders through the autoencoder": "judge autoencoded/{}"},
        digits=3,
    ),
    "words": CardTable(
        {
            f"{what}, {when}": f"{measure}/{when}"
            for what, measure in (
                ("object seen", "found"),
                ("IoU", "iou"),
                ("IoU behind the colour", "iou behind colour"),
            )
            for when in WHEN
        },
        {kind: f"words/{kind}: {{}}" for kind in ("seen", "unnamed", "unseen")},
        digits=2,
    ),
}

TITLES = {
    "judge": "The judge on fresh renders",
    "judge autoencoded": "The judge on renders through the autoencoder",
    "reconstruction": "Reconstruction by the autoencoder",
    "attention": "IoU of words' attention with the true masks, renders",
    "attention share": "What the pixels of a thing look at, renders, as shares of one",
    "attention by thing": "IoU of each thing's noun with its true mask, all those renders",
    "attention of samples": "IoU of words' attention with the masks that the judge sees, samples",
    "renders": "Renders through the autoencoder, read as samples are: what perfect samples reach",
    "samples": "Samples of new captions: what is right, by the number of things",
    "words": "Words by textual inversion",
}


def write_figures(path: Path, figures: Figures, notes: Mapping[str, Any]) -> None:
    """Write figures and how they were measured."""
    content = {"measured": dict(notes), "figures": {k: asdict(v) for k, v in figures.items()}}
    with write_atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_figures(path: Path) -> tuple[Figures, dict[str, Any]]:
    """Figures and how they were measured.

    Raises:
        ValueError: when the file is none of `write_figures`.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or "figures" not in content:
        raise ValueError(f"{path} holds no figures: expected a file that check_playroom.py wrote")
    figures = {name: Mean(**entry) for name, entry in content["figures"].items()}
    return figures, content.get("measured", {})


def differences(measured: Figures, card: Figures) -> list[str]:
    """Figures that both have and whose 95% intervals do not meet, in words; times may differ."""
    found = []
    for name in measured.keys() & card.keys():
        here, there = measured[name], card[name]
        if name.startswith("time/") or math.isnan(here.value) or math.isnan(there.value):
            continue
        if abs(here.value - there.value) > here.interval + there.interval + 1e-9:
            found.append(f"{name}: measured {here}, the card says {there}")
    return sorted(found)


def markdown(figures: Figures) -> str:
    """One table for each kind of figure; a last part that is a number or in `WHEN` is a column."""
    parts = []
    for kind in dict.fromkeys(name.split("/")[0] for name in figures):
        rows: dict[str, dict[str, Mean]] = {}
        for name, value in figures.items():
            start, *middle = name.split("/")
            if start == kind:
                numbered = middle[-1].isdecimal() or middle[-1] in WHEN
                row = "/".join(middle[:-1] if numbered else middle)
                rows.setdefault(row, {})[middle[-1] if numbered else ""] = value
        columns = sorted(
            {c for row in rows.values() for c in row}, key=lambda c: (WHEN.get(c, 0), c)
        )
        lines = [[row, *(_cell(cells.get(c)) for c in columns)] for row, cells in rows.items()]
        parts += [f"### {TITLES.get(kind, kind)}", "", *table(["", *columns], lines), ""]
    return "\n".join(parts)


def update_card(page: Path, figures: Figures, notes: Mapping[str, Any]) -> None:
    """Put new `figures` into a model card and into the figures.json beside it.

    Figures that were not measured stay; so do the notes on how they were.
    """
    file = page.with_name("figures.json")
    old, told = read_figures(file) if file.is_file() else ({}, {})
    write_figures(file, {**old, **figures}, {**told, **notes})
    fill(page, card_tables({**old, **figures}))


def card_tables(figures: Figures) -> dict[str, str]:
    """The tables of the model card for which there are figures, by the names of their places."""
    parts = {}
    for name, told in CARD.items():
        rows = [
            [row, *(_cell(figures.get(key.format(c)), told.digits) for c in told.columns.values())]
            for row, key in told.rows.items()
        ]
        if any(cell != "-" for row in rows for cell in row[1:]):
            parts[name] = "\n".join(table(["", *told.columns], rows))
    return parts


def _cell(mean: Mean | None, digits: int = 3) -> str:
    """A figure with its interval; one without spread (a time) alone."""
    if mean is None or math.isnan(mean.value):
        return "-"
    return f"{mean.value:.3g}" if mean.count < 2 else mean.told(digits)
