"""What a run leaves behind: what each word looks at, what it renders, a short summary."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.checkpoint import write_atomic
from ldm.evaluation.localisation import binary_mask, word_ious, word_maps
from ldm.inference import SamplingOptions, sample_latents
from ldm.prompts.sentence import CONCEPT, LearnableWord
from ldm.visual import Cell, panel, save_png, to_uint8, word_panel

logger = logging.getLogger(__name__)

#: How many pictures, and samples of each prompt, are shown.
SHOWN = 4


@dataclass(frozen=True)
class WordReport:
    """One row of the word table, after training."""

    word: str
    starts_from: str
    vectors: int
    bound_adjective: str | None
    norm_before: float
    norm_after: float
    moved: float
    iou: float | None = None
    iou_before: float | None = None


def report_words(manager: Any, ious: Mapping[str, float], before: Mapping[str, float]) -> list[Any]:
    """The word table: start, norms, distance moved, and overlap with true masks where known."""
    rows = []
    for word in manager.learnable:
        now = manager.string_to_param_dict[word.name].detach()
        start = manager.initial_embeddings[word.name].detach()
        rows.append(
            WordReport(
                word=word.name,
                starts_from=word.start,
                vectors=len(now),
                bound_adjective=word.adjective,
                norm_before=round(start.norm(dim=-1).mean().item(), 4),
                norm_after=round(now.norm(dim=-1).mean().item(), 4),
                moved=round((now - start).norm(dim=-1).mean().item(), 4),
                iou=_rounded(ious.get(word.name)),
                iou_before=_rounded(before.get(word.name)),
            )
        )
    return rows


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


@dataclass(frozen=True)
class Pictures:
    """Which pictures a run is summed up with.

    `prompts` are drawn with the learned words at fixed noise: ``{sentence}`` stands for the run's
    sentence, ``{word}`` for each learned noun in turn, ``{concept}`` for Lego's concept words.
    """

    prompts: Sequence[str] = ("{sentence}", "a photo of a {word}")
    steps: int = 25
    scale: float = 5.0

    def filled(self, sentence: str, words: Sequence[LearnableWord]) -> list[str]:
        """The prompts of a run."""
        nouns = [word.name for word in words if word.role == "noun"]
        concept = " ".join(word.name for word in words if word.role == CONCEPT)
        once = [text for text in self.prompts if "{word}" not in text]
        return [
            text.format(sentence=sentence, concept=concept)
            for text in once
            if concept or "{concept}" not in text
        ] + [text.format(word=noun) for noun in nouns for text in self.prompts if text not in once]


class Summary:
    """Looks at the words before training, again after it, and writes what changed.

    Without `pictures` the network is not run for it: only the table of words is written.
    """

    def __init__(self, model: Any, dataset: Any, pictures: Pictures | None) -> None:
        self.model, self.pictures = model, pictures
        count = min(SHOWN, dataset.num_images)
        self.captions = [dataset.sentence_of(i).caption for i in range(count)]
        # Pictures as they are where the dataset shows them so, else flipped: what comes first.
        shown: dict[int, tuple[bool, Any]] = {}
        if pictures is not None:
            for image_id, flipped, array in takewhile(lambda e: e[0] < count, dataset.images()):
                shown.setdefault(image_id, (flipped, array))
            arrays = [torch.from_numpy(array.copy()) for _, array in shown.values()]
            self.images = torch.stack(arrays).movedim(-1, 1).contiguous()
        flip = any(flipped for flipped, _ in shown.values())
        truths = getattr(dataset, "masks", None) if pictures is not None and not flip else None
        self.truths = [truths(i) for i in range(count)] if truths else []
        self.latents: Tensor | None = None
        self.before = self._ious()

    @torch.no_grad()
    def maps(self) -> dict[str, Tensor]:
        """Attention maps of the shown pictures."""
        model = self.model
        if self.latents is None:
            self.latents = torch.cat(
                [
                    model.get_first_stage_encoding(_mode(model.encode_first_stage(image[None])))
                    for image in self.images.to(model.device)
                ]
            )
        return word_maps(model, self.latents, self.captions)

    def _ious(self) -> dict[str, float]:
        return word_ious(self.maps(), self.truths) if self.truths else {}

    def write(self, folder: Path, *, seconds: float, seed: int) -> dict[str, Any]:
        """Write pictures, ``summary.json`` and ``summary.md`` to a run's folder."""
        model = self.model.eval()
        ious = self._draw(folder / "images", seed) if self.pictures is not None else {}
        words = [asdict(row) for row in report_words(model.embedding_manager, ious, self.before)]
        summary = {"words": words, "seconds": round(seconds, 1), "seed": seed,
                   "sentences": [str(c) for c in self.captions],
                   "pictures": self.pictures is not None}  # fmt: skip
        with write_atomic(folder / "summary.json") as temporary:
            Path(temporary).write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        with write_atomic(folder / "summary.md") as temporary:
            Path(temporary).write_text(markdown(summary), encoding="utf-8")
        return summary

    def _draw(self, folder: Path, seed: int) -> dict[str, float]:
        """Draw what the words look at and what they render; the overlaps with true masks."""
        folder.mkdir(parents=True, exist_ok=True)
        maps = self.maps()
        masks = {word: binary_mask(stack, 0.5).float() for word, stack in maps.items()}
        captions = [str(caption) for caption in self.captions]
        save_png(
            folder / "attention.png",
            word_panel(self.images, maps, masks, captions, "What each word looks at"),
        )
        save_png(folder / "samples.png", self._samples(seed))
        return word_ious(maps, self.truths) if self.truths else {}

    def _samples(self, seed: int) -> Any:
        """Guided samples at fixed noise, a row for each prompt."""
        model = self.model
        words = model.embedding_manager.learnable
        prompts = self.pictures.filled(str(self.captions[0]), words)
        options = SamplingOptions(steps=self.pictures.steps, scale=self.pictures.scale, seed=seed)
        rows = []
        for prompt in tqdm(prompts, desc="drawing", unit="prompt", disable=None):
            latents = sample_latents(model, [prompt] * SHOWN, options, progress=False)
            pictures = to_uint8(model.decode_first_stage(latents).clamp(-1, 1).cpu())
            rows.append([Cell(p, prompt if i == 0 else "") for i, p in enumerate(pictures)])
        return panel(rows, title="What the words render", tile=160)


def _mode(posterior: Any) -> Tensor:
    return posterior.mode() if hasattr(posterior, "mode") else posterior


def markdown(summary: Mapping[str, Any]) -> str:
    """The summary as a page of Markdown."""
    columns = list(WordReport.__dataclass_fields__)
    lines = [
        "# Learned words",
        "",
        "| " + " | ".join(column.replace("_", " ") for column in columns) + " |",
        "|" + " --- |" * len(columns),
    ]
    for row in summary["words"]:
        cells = ["-" if row[column] is None else str(row[column]) for column in columns]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Sentence: {summary['sentences'][0]}", ""]
    lines += [f"{summary['seconds']} s in all, seed {summary['seed']}.", ""]
    if summary["pictures"]:
        lines += ["![attention](images/attention.png)", "", "![samples](images/samples.png)", ""]
    return "\n".join(lines)


def log_table(words: Sequence[Mapping[str, Any]]) -> None:
    """Print the word table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Learned words", title_justify="left")
    for heading in ("word", "starts from", "norm", "moved", "IoU with the true mask"):
        table.add_column(heading)
    for row in words:
        overlap = "-" if row["iou"] is None else f"{row['iou_before']:.2f} -> {row['iou']:.2f}"
        norms = f"{row['norm_before']:.2f} -> {row['norm_after']:.2f}"
        table.add_row(row["word"], row["starts_from"], norms, f"{row['moved']:.2f}", overlap)
    Console(stderr=True).print(table)
