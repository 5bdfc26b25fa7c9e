"""Measure the default model and its judge on drawn scenes that training has not seen.

    python scripts/check_playroom.py
    python scripts/check_playroom.py --stages judge attention --scenes 48
    python scripts/check_playroom.py --stages samples --captions 1000 --steps 50
    python scripts/check_playroom.py --inversion
    python scripts/check_playroom.py --against models/ldm/playroom/figures.json
    python scripts/check_playroom.py --card models/ldm/playroom/README.md

Writes figures.json, figures.md and samples.png to --out. With --card, the tables of a model card
are filled in, and figures.json beside it takes the new figures. With --against, the figures are
compared with those of a file; the exit code is 1 when the 95% intervals of one do not meet.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from ldm.checkpoint import read_embeddings
from ldm.data.playroom.labels import LabelledScenes
from ldm.data.playroom.spec import SceneSpec
from ldm.evaluation.fidelity import ASPECTS, Fidelity, score
from ldm.evaluation.intervals import Mean
from ldm.evaluation.judge import Judge, load_judge
from ldm.evaluation.judge_accuracy import accuracy
from ldm.evaluation.playroom import (
    Sample,
    asked,
    autoencoded,
    by_kind,
    by_thing,
    fresh_scenes,
    localisation,
    pictures,
    reconstruction,
    sampled,
    shares_by_kind,
)
from ldm.evaluation.playroom_card import (
    Figures,
    differences,
    markdown,
    read_figures,
    update_card,
    write_figures,
)
from ldm.evaluation.playroom_words import measure, pooled, trials, write_pictures
from ldm.evaluation.tables.bank import WordBank, first_vectors
from ldm.inference import SAMPLERS, SamplingOptions, load_model, rooted, sample_latents
from ldm.prompts.sentence import parse_sentence
from ldm.training.cli import parse
from ldm.training.config import load_config
from ldm.training.packed import Job, learn_many
from ldm.training.run import limit_threads
from ldm.util import bfloat16_products, progress_of
from ldm.visual import Cell, panel, save_png, to_uint8

STAGES = ("judge", "reconstruction", "attention", "renders", "samples", "grid", "words")
#: One sentence for each row of the grid.
PROMPTS = (
    "a photo of a brown teddy bear on a rolling skateboard at times square",
    "a photo of a red ball and a green basket in the desert",
    "a photo of a blue mug beside yellow bananas on a table",
    "a photo of an orange taxi and a purple dog at night",
    "a photo of a red chair on the grass",
    "a photo of a pink cat on the beach",
    "a photo of watermelon on the beach",
    "a photo of a white fox in the snow",
)
#: What is written beside the figures of a stage: how they were measured.
NOTED = (
    "scenes",
    "judged",
    "captions",
    "steps",
    "scale",
    "sampler",
    "precision",
    "word_steps",
    "word_samples",
)
#: Judged scenes are this far from those that the judge was trained on.
JUDGE_SEED = 4000


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description="Measure the default model and its judge.")
    add = parser.add_argument
    # fmt: off
    add("--stages", nargs="+", choices=STAGES, default=None, metavar="STAGE",
        help=f"what to measure, of {', '.join(STAGES)} (default: all but words)")
    add("--inversion", action="store_true", help="learn single words too (the stage words)")
    add("--out", type=Path, default=Path("outputs/playroom"), metavar="FOLDER")
    add("--against", type=Path, metavar="FILE", help="figures to compare with")
    add("--card", type=present, metavar="PAGE", help="a model card to put the figures into")
    add("--ckpt_path", default=None, help="weights (default: those that ship with the project)")
    add("--config", default="configs/backbones/playroom.yaml")
    add("--judge", type=Path, default=None, help="weights of another judge")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--things", nargs="+", type=int, default=[1, 2, 3, 4, 5], metavar="N",
        help="of scenes of how many things (default: 1 to 5)")
    add("--scenes", type=positive, default=96, help="renders for each figure")
    add("--judged", type=positive, default=2000, help="renders for the judge to read")
    add("--captions", type=positive, default=1000, help="captions to sample, in all")
    add("--steps", type=positive, default=50)
    add("--scale", type=float, default=4.0)
    add("--sampler", choices=tuple(SAMPLERS), default="ddim")
    add("--maps", nargs="+", type=positive, metavar="SIZE",
        help="sizes of attention maps to average (default: the model's)")
    add("--samples", type=positive, default=6, help="pictures of each prompt of the grid")
    add("--batch", type=positive, default=20)
    add("--precision", choices=("32", "bf16"), default="32", help="of sampling")
    add("--word_steps", type=positive, default=300, help="training steps of a word")
    add("--word_samples", type=positive, default=16, help="pictures of each word")
    # fmt: on
    return parser


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return int(text)


def present(text: str) -> Path:
    """A file that is there."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return Path(text)


def resolutions_of(model: Any, options: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    """The map sizes to average: all that are asked for, and each alone, by name."""
    every = tuple(options.maps or model.mask_resolution)
    return {"+".join(map(str, sizes)): sizes for sizes in (every, *((each,) for each in every))}


# The stages --------------------------------------------------------------------------------------


def check_judge(model: Any, judge: Judge, options: argparse.Namespace) -> Figures:
    """How often the judge is right, on renders and on what the autoencoder makes of them."""
    world = LabelledScenes(seed=JUDGE_SEED, length=options.judged)
    found: dict[str, list[float]] = {}
    with progress_of("judge", options.judged) as done:
        for first in range(0, options.judged, 100):
            scenes = [world.scene(k) for k in range(first, min(first + 100, options.judged))]
            images = pictures(scenes)
            for kind, shown in (
                ("judge", images),
                ("judge autoencoded", autoencoded(model, images)),
            ):
                for name, values in accuracy(judge, scenes, shown).items():
                    found.setdefault(f"{kind}/{name}", []).extend(values)
            done(len(scenes))
    of = {True: Mean.of, False: Mean.share}
    return {name: of[name.endswith("/mask")](values) for name, values in sorted(found.items())}


def check_reconstruction(model: Any, judge: Judge, options: argparse.Namespace) -> Figures:
    """What the autoencoder keeps of a picture."""
    images = pictures(fresh_scenes(options.scenes, 2))
    return {"reconstruction/psnr": reconstruction(images, autoencoded(model, images))}


def check_attention(model: Any, judge: Judge, options: argparse.Namespace) -> Figures:
    """Where words look in renders."""
    figures: Figures = {}
    sizes, every = resolutions_of(model, options), []
    with progress_of("attention", len(options.things) * len(sizes) * options.scenes) as done:
        for things in options.things:
            scenes = fresh_scenes(options.scenes, things)
            for name, resolutions in sizes.items():
                found = localisation(model, scenes, resolutions, done=done)
                for kind, mean in by_kind(found).items():
                    figures[f"attention/{kind}, maps {name}/{things}"] = mean
                if resolutions == next(iter(sizes.values())):
                    every += found
                    for kind, mean in shares_by_kind(found).items():
                        figures[f"attention share/{kind}/{things}"] = mean
    figures |= {f"attention by thing/{name}": mean for name, mean in by_thing(every).items()}
    return dict(sorted(figures.items()))


def sampler(model: Any, options: argparse.Namespace) -> Sample:
    """How captions are sampled."""
    chosen = SamplingOptions(sampler=options.sampler, steps=options.steps, scale=options.scale)
    low = options.precision == "bf16"

    def sample(
        captions: Sequence[str], first: int, on_step: Callable[[int, slice], None]
    ) -> Tensor:
        with bfloat16_products(model.device, low):
            return sample_latents(
                model, captions, chosen, first=first, progress=False, on_step=on_step
            ).float()

    return sample


def check_samples(model: Any, judge: Judge, options: argparse.Namespace) -> Figures:
    """What is right about pictures sampled from new captions, by the number of things."""
    figures: Figures = {}
    started = time.monotonic()
    resolutions = next(iter(resolutions_of(model, options).values()))
    each = -(-options.captions // len(options.things))
    with progress_of("samples", each * len(options.things)) as done:
        for things in options.things:
            scenes = fresh_scenes(each, things, masks=False)
            found = sampled(
                model, judge, scenes, sampler(model, options), resolutions,
                batch=options.batch, done=done,
            )  # fmt: skip
            figures |= shares("samples", things, found.specs, found.fidelity)
            for kind, mean in by_kind(found.overlaps).items():
                figures[f"attention of samples/{kind}/{things}"] = mean
            figures[f"attention of samples/noun seen/{things}"] = Mean.share(found.seen)
    seconds = (time.monotonic() - started) / (each * len(options.things))
    return {**dict(sorted(figures.items())), "time/seconds a sample": Mean(seconds, 0.0, 1)}


def check_renders(model: Any, judge: Judge, options: argparse.Namespace) -> Figures:
    """The same of the scenes' own pictures, through the autoencoder: what perfect samples reach."""
    figures: Figures = {}
    each = -(-options.captions // len(options.things))
    with progress_of("renders", each * len(options.things)) as done:
        for things in options.things:
            scenes = fresh_scenes(each, things, masks=False)
            specs = [asked(one) for one in scenes]
            images = autoencoded(model, pictures(scenes))
            found = score(judge, specs, judge.read(images), images)
            figures |= shares("renders", things, specs, found)
            done(each)
    return dict(sorted(figures.items()))


def shares(
    kind: str, things: int, specs: Sequence[SceneSpec], found: Sequence[Fidelity]
) -> Figures:
    """How often each thing asked for is right, in pictures of scenes of so many `things`."""
    figures = {
        f"{kind}/{aspect.replace('_', ' ')}/{things}": Mean.share(
            getattr(one, aspect) for one in found
        )
        for aspect in (*ASPECTS, "nothing_else")
    }
    several = [
        one.count
        for one, spec in zip(found, specs, strict=True)
        if any(thing.count > 1 for thing in spec.objects)
    ]
    return {**figures, f"{kind}/count, several asked/{things}": Mean.share(several)}


def draw_grid(model: Any, judge: Judge, options: argparse.Namespace) -> Figures:
    """Pictures to look at: samples.png."""
    rows = []
    with progress_of("grid", len(PROMPTS)) as done:
        for prompt in PROMPTS:
            latents = sampler(model, options)([prompt] * options.samples, 0, lambda *_: None)
            drawn = to_uint8(model.decode_first_stage(latents).clamp(-1, 1))
            rows.append([Cell(p, prompt if k == 0 else "") for k, p in enumerate(drawn)])
            done(1)
    save_png(options.out / "samples.png", panel(rows, tile=128))
    return {}


def words_config(options: argparse.Namespace) -> DictConfig:
    """Textual inversion on the model that is measured."""
    bases = [str(rooted(path)) for path in ("configs/textual-inversion.yaml", options.config)]
    given = ["--base", *bases, "--max_steps", str(options.word_steps)]
    return load_config(
        parse([*given, *([f"weights={options.ckpt_path}"] * bool(options.ckpt_path))])
    )


def check_words(model: Any, judge: Judge, options: argparse.Namespace) -> Figures:
    """Single words learned by textual inversion, before and after."""
    tried, started = trials(), time.monotonic()
    jobs = [
        Job(each.name, str(write_pictures(each, options.out / "words" / "pictures" / each.name)),
            each.sentence, seed)
        for seed, each in enumerate(tried)
    ]  # fmt: skip
    config = words_config(options)
    folders = learn_many(config, jobs, options.out / "words" / "runs")
    seconds = (time.monotonic() - started) / len(jobs)
    learned = [
        read_embeddings(f / "checkpoints" / "embeddings.safetensors").vectors for f in folders
    ]
    initial = [first_vectors(model, parse_sentence(each.sentence)) for each in tried]
    figures: Figures = {}
    with progress_of("words", 2 * len(tried)) as done:
        for when, vectors in (("before", initial), ("after", learned)):
            bank, rows = WordBank(model, vectors), []
            for run, each in enumerate(tried):
                rows.append(
                    measure(bank, run, each, judge, samples=options.word_samples,
                            steps=options.steps, scale=options.scale)
                )  # fmt: skip
                figures |= {f"words/{each.name}: {n}/{when}": m for n, m in rows[-1].items()}
                done(1)
            for kind, means in pooled([each.known for each in tried], rows).items():
                figures |= {f"words/{kind}: {n}/{when}": m for n, m in means.items()}
    model.embedding_manager = None
    return {**dict(sorted(figures.items())), "time/seconds a word": Mean(seconds, 0.0, 1)}


RUN = {
    "judge": check_judge,
    "reconstruction": check_reconstruction,
    "attention": check_attention,
    "renders": check_renders,
    "samples": check_samples,
    "grid": draw_grid,
    "words": check_words,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 0 when done, 1 when a figure differs from those to compare with."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    limit_threads()
    stages = list(options.stages or STAGES[:-1])
    if options.inversion and "words" not in stages:
        stages.append("words")
    model = load_model(options.ckpt_path, options.config, device=options.device)
    judge = load_judge(options.judge, options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    figures: Figures = {}
    notes = {name: getattr(options, name) for name in NOTED}
    for stage in stages:
        figures |= RUN[stage](model, judge, options)
        write_figures(options.out / "figures.json", figures, dict.fromkeys(stages, notes))
    (options.out / "figures.md").write_text(markdown(figures), encoding="utf-8")
    print(markdown(figures))
    if options.card:
        update_card(options.card, figures, dict.fromkeys(stages, notes))
    if options.against is None:
        return 0
    found = differences(figures, read_figures(options.against)[0])
    print("\n".join(found) or f"no figure differs from {options.against}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
