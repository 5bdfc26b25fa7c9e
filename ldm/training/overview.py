"""Several runs at one look: what became of each word in each of them, and on the whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pytorch_lightning.utilities import rank_zero_only

from ldm.checkpoint import write_atomic
from ldm.evaluation.intervals import Mean
from ldm.evaluation.pages import table
from ldm.evaluation.report import read_summary
from ldm.util import print_rows

#: In the folder that holds the runs.
OVERVIEW = "overview.md"
HEADINGS = ("run", "word", "near", "moved", "IoU before", "IoU", "lowest evaluation loss")
#: What is averaged over runs, by the column it stands in.
AVERAGED = {"moved": "moved", "iou_before": "IoU before", "iou": "IoU"}


@rank_zero_only
def write_overview(root: Path, names: Sequence[str]) -> Path | None:
    """Write ``overview.md`` about the runs ``root/<name>`` and print it; `None` without any.

    A word of several runs has a last row with its means and their 95% intervals.
    """
    summaries = {name: read_summary(root / name) for name in names}
    found = {name: summary for name, summary in summaries.items() if summary.get("words")}
    if not found:
        return None
    rows = [row for name, summary in found.items() for row in _rows(name, summary)]
    means = _means([word for summary in found.values() for word in summary["words"]])
    linked = [[_link(root, run), *rest] for run, *rest in rows]
    lines = ["# Runs", "", *table(HEADINGS, [*linked, *means]), ""]
    path = root / OVERVIEW
    with write_atomic(path) as temporary:
        Path(temporary).write_text("\n".join(lines), encoding="utf-8")
    print_rows("Runs", HEADINGS, [*rows, *means])
    return path


def _link(root: Path, run: str) -> str:
    """The name of a run, leading to its report where there is one."""
    report = root / run / "report.html"
    return f"[{run}]({quote(run)}/{report.name})" if report.is_file() else run


def _rows(name: str, summary: Mapping[str, Any]) -> list[list[str]]:
    """A row for each word of a run."""
    best = summary.get("best")
    loss = f"{best['loss']:.4f} (step {best['step']})" if best else "-"
    return [
        [name, word["word"], ", ".join(word["nearest"]) or "-", f"{word['moved']:.2f}",
         _told(word["iou_before"]), _told(word["iou"]), loss]
        for word in summary["words"]
    ]  # fmt: skip


def _means(words: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row for each word that several runs have learned."""
    rows = []
    for name in dict.fromkeys(word["word"] for word in words):
        same = [word for word in words if word["word"] == name]
        if len(same) > 1:
            cells = dict.fromkeys(HEADINGS, "")
            cells |= {"run": f"mean of {len(same)} runs", "word": name}
            for measure, heading in AVERAGED.items():
                values = [word[measure] for word in same if word[measure] is not None]
                cells[heading] = Mean.of(values).told(2) if values else "-"
            rows.append(list(cells.values()))
    return rows


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
