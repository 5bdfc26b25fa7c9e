"""The pictures of a report, from what the looks of a run left (`ldm.evaluation.looks`)."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.evaluation.localisation import binary_mask
from ldm.evaluation.looks import SavedLook, Shown, best_look
from ldm.evaluation.words import best_matching, mean_overlap
from ldm.visual import WORD_COLOURS, Cell, Heading, Picture, outline, overlay, panel, word_panel

#: Columns of a film strip, and pictures that get one.
FRAMES, FILMS = 7, 2
#: Figures of the log that repeat others.
REPEATED = ("loss_vlb",)
Curve = list[tuple[int, float]]


def attention_panel(shown: Shown, look: SavedLook) -> Picture:
    """What each word looks at: its attention over every picture, all masks, the true ones."""
    maps = {word: torch.from_numpy(np.asarray(stack)) for word, stack in look.maps.items()}
    masks = {word: binary_mask(maps[word], 0.5).float() for word in maps if word in shown.concepts}
    truths = {word: torch.from_numpy(shown.truths[word]) for word in maps if word in shown.truths}
    return word_panel(
        _as_images(shown.pictures), maps, masks, shown.sentences, f"After {_steps(look.step)}",
        tile=160 if len(maps) <= 4 else 112, truths=truths,
    )  # fmt: skip


def _as_images(pictures: Picture) -> Tensor:
    return torch.from_numpy(np.asarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _steps(step: int) -> str:
    return "1 step" if step == 1 else f"{step} steps"


def film_panel(shown: Shown, looks: Sequence[SavedLook], image: int) -> Picture:
    """Where each word looks in one picture as it is learned: a row per word, a column per look."""
    frames = _spread(looks)
    picture, words = shown.pictures[image], list(looks[0].maps)
    rows = []
    for number, word in enumerate(words):
        colour = WORD_COLOURS[number % len(WORD_COLOURS)]
        known = shown.truths.get(word)
        first = picture
        if known is not None and known[image].any():
            first = outline(_enlarged(picture), known[image], colour)
        strip = [Cell(overlay(picture, look.maps[word][image])) for look in frames]
        rows.append([Cell(first, word), *strip])
    headings = [Heading("truth" if shown.truths else "picture")]
    headings += [Heading(f"step {look.step}") for look in frames]
    return panel(rows, headings, shown.sentences[image], tile=112)


def _enlarged(picture: Picture, least: int = 224) -> Picture:
    """Small pictures repeated, so that a line drawn on them is fine."""
    times = max(1, least // max(picture.shape[:2]))
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def samples_panel(shown: Shown, looks: Sequence[SavedLook]) -> Picture:
    """What each prompt renders from the same noise as the words are learned."""
    frames = _spread([look for look in looks if look.samples is not None])
    strips = [np.asarray(look.samples) for look in frames]
    rows = [
        [Cell(strip[row], "" if column else prompt) for column, strip in enumerate(strips)]
        for row, prompt in enumerate(shown.prompts)
    ]
    return panel(rows, [Heading(f"step {look.step}") for look in frames], tile=128)


def _spread(looks: Sequence[SavedLook]) -> list[SavedLook]:
    """At most `FRAMES` of the looks, evenly, the first and the last among them."""
    picked = np.linspace(0, len(looks) - 1, min(FRAMES, len(looks))).round().astype(int)
    return [looks[i] for i in picked]


def read_curves(folder: Path) -> dict[str, Curve]:
    """The losses of a run, by name, from the tables of all its starts.

    A later start goes on from one of the steps of the one before: what that had after it is
    dropped.
    """
    curves: dict[str, Curve] = {}
    tables = sorted(folder.glob("csv*/metrics.csv"), key=lambda path: _start_number(path.parent))
    for table in tables:
        with table.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("step")]
        first = min((int(row["step"]) for row in rows), default=0)
        curves = {name: [p for p in curve if p[0] < first] for name, curve in curves.items()}
        for row in rows:
            for name, value in row.items():
                if name.startswith("train/loss") and value:
                    key = name.removeprefix("train/")
                    curves.setdefault(key, []).append((int(row["step"]), float(value)))
    if curves and set(curves) - {"loss"} == {"loss_simple", *REPEATED} & set(curves):
        curves.pop("loss", None)  # the diffusion loss is all there is
    order = sorted(curves, key=lambda name: (name != "loss", name != "loss_simple", name))
    return {name: curves[name] for name in order if name not in REPEATED and curves[name]}


def _start_number(folder: Path) -> int:
    return int(folder.name.partition("-")[2] or 1)


def curves_figure(curves: Mapping[str, Curve], looks: Sequence[SavedLook]) -> Picture | None:
    """Loss of every term, the evaluation loss with its best step, and IoU, over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    overlaps = [(look.step, look.figures["overlaps"]) for look in looks if look.figures["overlaps"]]
    count = len(curves) + bool(looks) + bool(overlaps)
    if not count:
        return None
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(3.5 * columns, 2.5 * rows), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.set_facecolor("#faf9f6")
    places = iter(figure.subplots(rows, columns, squeeze=False).flat)
    if looks:
        _draw_evaluation(next(places), looks)
    if overlaps:
        _draw_overlaps(next(places), overlaps)
    for name, curve in curves.items():
        _draw_curve(next(places), name, curve)
    for unused in places:
        unused.set_axis_off()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _style(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    axes.set_xlabel("step", fontsize=7)
    axes.grid(alpha=0.25)
    axes.set_facecolor("#ffffff")
    axes.margins(x=0.02)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _colour(number: int) -> tuple[float, ...]:
    return tuple(channel / 255 for channel in WORD_COLOURS[number % len(WORD_COLOURS)])


def _draw_evaluation(axes: Any, looks: Sequence[SavedLook]) -> None:
    axes.plot([look.step for look in looks], [look.loss for look in looks], "o-", ms=3,
              color=_colour(1))  # fmt: skip
    if best := best_look(looks):
        axes.plot(best.step, best.loss, "o", ms=8, mfc="none", color=_colour(0),
                  label=f"best: step {best.step}")  # fmt: skip
        axes.legend(fontsize=7, frameon=False)
    _style(axes, "evaluation loss (fixed noise)")


def _draw_overlaps(axes: Any, overlaps: Sequence[tuple[int, Any]]) -> None:
    """IoU of each word with its own object; the mean, plain and with the best matching."""
    for number, word in enumerate(overlaps[0][1]):
        points = [(step, table[word].get(word)) for step, table in overlaps if word in table]
        axes.plot(*zip(*points, strict=True), "-", lw=1.2, color=_colour(number),
                  label=plain_text(word))  # fmt: skip
    steps = [step for step, _ in overlaps]
    axes.plot(steps, [mean_overlap(table) for _, table in overlaps], "k-", lw=1.5, label="mean")
    matched = [best_matching(table) for _, table in overlaps]
    if all(matched):
        axes.plot(steps, [m[0] for m in matched if m], "k:", lw=1.5, label="mean, permuted")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=6, frameon=False, ncols=2)
    _style(axes, "IoU with the true masks")


def plain_text(word: str) -> str:
    """`word` for matplotlib, which reads dollar signs as mathematics and hides a leading _."""
    return word.replace("$", r"\$").lstrip("_") or "word"


def _draw_curve(axes: Any, name: str, curve: Curve) -> None:
    steps, values = (np.asarray(column) for column in zip(*curve, strict=True))
    smooth = max(1, len(values) // 10)
    axes.plot(steps, values, lw=0.8, alpha=0.35 if smooth > 1 else 1.0, color=_colour(1))
    if smooth > 1:
        means = np.convolve(values, np.ones(smooth) / smooth, "valid")
        axes.plot(steps[smooth - 1 :], means, lw=1.5, color=_colour(1))
    terms = {"loss": "total", "loss_simple": "diffusion loss"}
    _style(axes, "training: " + terms.get(name, name.removeprefix("loss_").replace("_", " ")))
