"""The figures of the default model: as JSON, as Markdown tables, and checked against each other.

A figure's name is a path such as "samples/colours/2": what was measured, of what, and of scenes of
how many objects.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ldm.checkpoint import write_atomic
from ldm.evaluation.playroom import Mean

Figures = dict[str, Mean]

#: Columns that are no numbers, and their order.
WHEN = {"before": 0, "after": 1}
TITLES = {
    "judge": "The judge on fresh renders",
    "judge autoencoded": "The judge on renders through the autoencoder",
    "reconstruction": "Reconstruction by the autoencoder",
    "attention": "IoU of words' attention with the true masks, renders",
    "attention of samples": "IoU of words' attention with the masks that the judge sees, samples",
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
        parts += [
            f"### {TITLES.get(kind, kind)}",
            "",
            _line(["", *columns]),
            "|---" * (len(columns) + 1) + "|",
        ]
        parts += [
            _line([row, *(_cell(cells.get(c)) for c in columns)]) for row, cells in rows.items()
        ]
        parts.append("")
    return "\n".join(parts)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(mean: Mean | None) -> str:
    """A figure with its interval; one without spread (a time) alone."""
    if mean is None or math.isnan(mean.value):
        return "-"
    return f"{mean.value:.3f} ± {mean.interval:.3f}" if mean.count > 1 else f"{mean.value:.3g}"
