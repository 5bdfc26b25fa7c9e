"""What a run leaves behind: what the words became and render, as figures, pictures and a page."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ldm.checkpoint import write_atomic
from ldm.evaluation.looking import Looker, as_started
from ldm.evaluation.looks import SHOWN, SavedLook, best_look, read_looks, write_json
from ldm.evaluation.pages import literal, table
from ldm.evaluation.pictures import Pictures, draw
from ldm.evaluation.report import overlap_summary, saved_steps, write_report
from ldm.evaluation.words import report_words
from ldm.inference import SamplingOptions
from ldm.util import print_rows, progress_bar
from ldm.visual import Cell, Heading, panel, save_png

logger = logging.getLogger(__name__)

#: Columns of the word table in ``summary.md``.
COLUMNS = ("word", "starts_from", "vectors", "bound_adjective", "norm_before", "norm_after",
           "moved", "nearest", "iou_before", "iou")  # fmt: skip
#: Samples of each prompt in the panel of transfer.
TRANSFERRED = 3


class Summary:
    """Writes down what became of the words.

    Without `pictures` the network is not run for it.
    """

    def __init__(self, model: Any, dataset: Any, pictures: Pictures | None) -> None:
        self.model, self.dataset, self.pictures = model, dataset, pictures
        count = min(SHOWN, dataset.num_images)
        self.captions = [dataset.sentence_of(i).caption for i in range(count)]

    def write(
        self, folder: Path, *, seconds: float, seed: int, finished: bool = True
    ) -> dict[str, Any]:
        """Write pictures, ``summary.json``, ``summary.md`` and ``report.html`` to a run's folder.

        Of a run that is not `finished`, what there is.
        """
        began, model = time.monotonic(), self.model.eval()
        if self.pictures is not None and finished:
            self._look_once(folder, self.pictures)
            self._draw(folder / "images", self.pictures, seed)
        drawn = time.monotonic()
        looks = read_looks(folder / "looks")
        first, last = _overlaps(looks[:1]), _overlaps(looks[-1:])
        words = report_words(model.embedding_manager, model.cond_stage_model, last, first)
        best = best_look(looks)
        summary = {
            "words": [asdict(row) for row in words],
            "seconds": round(seconds + drawn - began, 1),
            "seed": seed,
            "sentences": [str(caption) for caption in self.captions],
            "pictures": self.pictures is not None and finished,
            "finished": finished,
            "evaluation": [[look.step, look.loss] for look in looks],
            "best": best and {"step": best.step, "loss": best.loss},
            "iou": overlap_summary(looks),
            "seconds_of_looks": round(sum(look.figures["seconds"] for look in looks), 1),
        }
        write_json(folder / "summary.json", summary)
        with write_atomic(folder / "summary.md") as temporary:
            Path(temporary).write_text(markdown(summary), encoding="utf-8")
        if looks or self.pictures is not None:
            write_report(folder)
        logger.info(
            "looking at the words took %.1f s, drawing with them %.1f s, the report %.1f s",
            summary["seconds_of_looks"], drawn - began, time.monotonic() - drawn,
        )  # fmt: skip
        return summary

    def _look_once(self, folder: Path, pictures: Pictures) -> None:
        """Look at the words before and after, if nothing did so during the run."""
        if read_looks(folder / "looks"):
            return
        looker = Looker(self.model, self.dataset, replace(pictures, every=0))
        looker.shown.write(folder / "looks")
        with as_started(self.model.embedding_manager):
            looker(0).write(folder / "looks")
        looker(max(saved_steps(folder), default=1)).write(folder / "looks")

    def _draw(self, folder: Path, pictures: Pictures, seed: int) -> None:
        """What the words render: guided samples at fixed noise."""
        folder.mkdir(parents=True, exist_ok=True)
        words = self.model.embedding_manager.learnable
        options = SamplingOptions(steps=pictures.steps, scale=pictures.scale, seed=seed)
        caption = self.captions[0]
        rows = [
            self._row(prompt, SHOWN, options)
            for prompt in progress_bar(pictures.filled(caption, words), "drawing", "prompt")
        ]
        save_png(folder / "samples.png", panel(rows, title="What the words render", tile=160))
        transfers = pictures.transferred(caption, words)
        if transfers:
            self._draw_transfer(folder / "transfer.png", transfers, options)

    def _draw_transfer(
        self, path: Path, transfers: Sequence[tuple[str, str, str]], options: SamplingOptions
    ) -> None:
        """Each subject with the learned words and, at the same noise, with plain ones."""
        rows = []
        for _, learned, plain in progress_bar(transfers, "drawing", "subject"):
            rows.append([*self._row(learned, TRANSFERRED, options),
                         *self._row(plain, TRANSFERRED, options)])  # fmt: skip
        nouns = [w.name for w in self.model.embedding_manager.learnable if w.role == "noun"]
        alone = [self._row(f"a photo of a {noun}", TRANSFERRED, options) for noun in nouns]
        rows += [[cell for row in alone for cell in row]] * bool(alone)
        headings = [Heading("learned words"), *[Heading("")] * (TRANSFERRED - 1),
                    Heading("plain words")]  # fmt: skip
        save_png(path, panel(rows, headings, tile=144))

    def _row(self, prompt: str, count: int, options: SamplingOptions) -> list[Cell]:
        """Samples of one prompt, with the prompt below the first."""
        pictures = draw(self.model, [prompt] * count, options)
        return [Cell(p, prompt if i == 0 else "") for i, p in enumerate(pictures)]


def _overlaps(looks: Sequence[SavedLook]) -> dict[str, dict[str, float]]:
    return looks[0].figures["overlaps"] if looks else {}


def markdown(summary: Mapping[str, Any]) -> str:
    """The summary as a page of Markdown."""
    heads = [column.replace("_", " ") for column in COLUMNS]
    rows = [[_cell(row[column]) for column in COLUMNS] for row in summary["words"]]
    lines = ["# Learned words", "", *table(heads, rows), ""]
    lines += [f"Sentence: {literal(summary['sentences'][0])}", ""]
    if summary["best"]:
        best = summary["best"]
        lines += [f"Lowest evaluation loss: {best['loss']:.4f} at step {best['step']} "
                  "(checkpoints/embeddings_best.pt).", ""]  # fmt: skip
    lines += [f"{summary['seconds']} s in all, seed {summary['seed']}.", ""]
    if summary["pictures"]:
        lines += ["![attention](images/attention.png)", "", "![samples](images/samples.png)", ""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(value) or "-"
    return "-" if value is None else str(value)


def log_table(words: Sequence[Mapping[str, Any]]) -> None:
    """Print the word table."""
    rows = []
    for row in words:
        before = "?" if row["iou_before"] is None else f"{row['iou_before']:.2f}"
        overlap = "-" if row["iou"] is None else f"{before} -> {row['iou']:.2f}"
        norms = f"{row['norm_before']:.2f} -> {row['norm_after']:.2f}"
        near = ", ".join(row["nearest"])
        rows.append([row["word"], row["starts_from"], norms, f"{row['moved']:.2f}", near, overlap])
    heads = ("word", "starts from", "norm", "moved", "near", "IoU with the true mask")
    print_rows("Learned words", heads, rows)
