"""The report of a run: one page with everything it left, from the files in its folder alone.

``report.html`` holds its pictures in itself and needs nothing else, so that it can be sent and
opened anywhere. The same pictures are PNG files in ``images/``, the figures are in
``summary.json`` and ``looks/``.
"""

import base64
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from ldm.checkpoint import write_atomic
from ldm.config_files import given_weights
from ldm.evaluation.looks import SavedLook, Shown, best_look, read_looks
from ldm.evaluation.panels import (
    FILMS,
    attention_panel,
    curves_figure,
    film_panel,
    read_curves,
    samples_panel,
)
from ldm.evaluation.words import best_matching, mean_overlap
from ldm.inference import shipped_weights
from ldm.visual import save_png

TEMPLATE = "report.html"
#: Pictures of the report: file name, heading, how to read it.
PICTURES = (
    ("attention", "Where each word looks",
     "Cross-attention of each word over the training pictures, as a mean over noise levels, heads "
     "and layers; bright is much. A mask is where a word's attention is above half its maximum; "
     "where masks of several words overlap, their colours mix."),
    ("film-1", "Where each word looks as it is learned", "From the words as they start, left, to "
     "those learned, right."),
    ("film-2", "", ""),
    ("samples-over-time", "What the words render as they are learned",
     "Always from the same noise, in few sampling steps."),
    ("samples", "What the words render", "Samples of the prompts below them, with guidance."),
    ("transfer", "The concept on other subjects",
     "Subjects never seen with the concept: with the learned words, and with plain words in their "
     "place. Below, the learned subject alone: what of it returns above has leaked."),
    ("curves", "Losses", "Pale: each logged step; strong: its running mean. The evaluation loss is "
     "taken at the same timesteps, noise and captions every time."),
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """One picture of the page, with its heading and a note on how to read it."""

    heading: str
    note: str
    source: str


def write_report(folder: str | Path) -> Path | None:
    """Draw the pictures of a run and write its page; ``None`` if the folder holds nothing to tell.

    Raises:
        FileNotFoundError: when there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such run folder; give one such as logs/<time>_mcpl")
    looks, shown = read_looks(folder / "looks"), Shown.read(folder / "looks")
    _draw(folder, shown, looks)
    figures = _figures(folder / "images")
    summary = read_summary(folder)
    words = summary.get("words") or (looks[-1].figures["words"] if looks else [])
    if not (figures or words):
        return None
    page = _template().render(
        title=folder.resolve().name,
        facts=_facts(folder, summary, shown, looks),
        words=words,
        overlaps=_overlaps(looks),
        figures=figures,
        commands=_commands(folder, [row["word"] for row in words]),
        settings=_settings(folder),
    )
    path = folder / "report.html"
    with write_atomic(path) as temporary:
        Path(temporary).write_text(page, encoding="utf-8")
    return path


def _template() -> Any:
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader("ldm.evaluation", "")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = _number
    return environment.get_template(TEMPLATE)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _draw(folder: Path, shown: Shown | None, looks: list[SavedLook]) -> None:
    """The pictures that need no network."""
    images = folder / "images"
    seen = [look for look in looks if look.maps]
    if shown is not None and seen:
        save_png(images / "attention.png", attention_panel(shown, seen[-1]))
        for number in range(min(FILMS, len(shown.pictures)) if len(seen) > 1 else 0):
            save_png(images / f"film-{number + 1}.png", film_panel(shown, seen, number))
    if shown is not None and any(look.samples is not None for look in looks):
        save_png(images / "samples-over-time.png", samples_panel(shown, looks))
    curves = curves_figure(read_curves(folder), looks)
    if curves is not None:
        save_png(images / "curves.png", curves)


def _figures(folder: Path) -> list[Figure]:
    """The pictures that there are, with the files' contents in them."""
    found = []
    for name, heading, note in PICTURES:
        path = folder / f"{name}.png"
        if path.is_file():
            content = base64.b64encode(path.read_bytes()).decode("ascii")
            found.append(Figure(heading, note, f"data:image/png;base64,{content}"))
    return found


def read_summary(folder: Path) -> dict[str, Any]:
    """What a run's ``summary.json`` says; empty where there is none yet."""
    path = folder / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _facts(
    folder: Path, summary: dict[str, Any], shown: Shown | None, looks: list[SavedLook]
) -> list[tuple[str, str]]:
    """What stands at the top of the page."""
    sentences = summary.get("sentences") or (shown.sentences if shown else [])
    facts = [("sentence", sentence) for sentence in dict.fromkeys(sentences)]
    steps = [*saved_steps(folder), *(look.step for look in looks)]
    if steps:
        facts.append(("steps", str(max(steps))))
    if not summary.get("finished"):
        facts.append(("state", "interrupted, or still running, when this page was made"))
    best = best_look(looks)
    if looks and best:
        facts.append(("evaluation loss",
                      f"{looks[0].loss:.4f} at step {looks[0].step}, {looks[-1].loss:.4f} at step "
                      f"{looks[-1].step}; lowest {best.loss:.4f} at step {best.step}"))  # fmt: skip
    if "seconds" in summary:
        facts.append(("time", f"{summary['seconds']:.0f} s, seed {summary['seed']}"))
    return facts


def saved_steps(folder: Path) -> list[int]:
    """The steps of which a run has saved its words."""
    files = (folder / "checkpoints").glob("embeddings_gs-*.safetensors")
    return sorted(int(path.stem.partition("-")[2]) for path in files)


def finished_steps(folder: Path) -> int:
    """How many steps a run had that has done them all and is summed up; 0 for any other."""
    return max(saved_steps(folder), default=0) if read_summary(folder).get("finished") else 0


def overlap_summary(looks: list[SavedLook]) -> dict[str, Any]:
    """Plain and permuted mean IoU with the true masks, before and after learning, where known."""
    found: dict[str, Any] = {}
    for when, look in (("before", looks[0]), ("after", looks[-1])) if looks else ():
        table = look.figures["overlaps"]
        matched = best_matching(table)
        if table:
            found[when] = {"plain": mean_overlap(table), "permuted": matched and matched[0],
                           "matching": matched and matched[1]}  # fmt: skip
    return found


def _overlaps(looks: list[SavedLook]) -> list[tuple[str, float | None, float | None, str]]:
    """Rows of the small table: kind of IoU, before, after, note."""
    found = overlap_summary(looks)
    if "after" not in found:
        return []
    before, after = found.get("before", {}), found["after"]
    swapped = [f"{w} finds that of {o}" for w, o in (after["matching"] or {}).items() if w != o]
    return [
        ("plain", before.get("plain"), after["plain"], "each word with its own object"),
        ("permuted", before.get("permuted"), after["permuted"],
         "; ".join(swapped) or "the best matching is the true one"),
    ]  # fmt: skip


def _commands(folder: Path, words: list[str]) -> list[tuple[str, str]]:
    """What to do next with the run."""
    run = shlex.quote(str(folder))
    commands = []
    if (folder / "checkpoints" / "last.ckpt").is_file():
        steps = finished_steps(folder)
        more = f" --max_steps {2 * steps}" if steps else ""
        commands.append(("continue", f"python main.py --resume {run}{more}"))
    if words and (folder / "checkpoints" / "embeddings.pt").is_file():
        prompt = shlex.quote(f"a photo of a {words[0]} on the beach")
        sample = f"python scripts/txt2img.py --embedding_path {run}/checkpoints/embeddings.pt"
        commands.append(("sample", f"{sample}{_model_flags(folder)} --prompt {prompt}"))
    commands.append(("make this page again", f"python scripts/report.py {run}"))
    return commands


def _model_flags(folder: Path) -> str:
    """What names the model that words were learned on, where it is not the one that ships."""
    for path in _newest_config(folder):
        weights = given_weights(cast(DictConfig, OmegaConf.load(path)))
        if weights is not None and weights != shipped_weights():
            return f" --ckpt_path {shlex.quote(weights)} --config {shlex.quote(str(path))}"
    return ""


def _settings(folder: Path) -> str:
    """The configuration of the newest start, as it stands in the run's folder."""
    return "\n".join(OmegaConf.to_yaml(OmegaConf.load(path)) for path in _newest_config(folder))


def _newest_config(folder: Path) -> list[Path]:
    return sorted(folder.glob("configs/*-project.yaml"))[-1:]
