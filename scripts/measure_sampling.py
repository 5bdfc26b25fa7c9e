"""Measure what is done with words: sampling, Attend-and-Excite, editing, inversion, attention.

    python scripts/measure_sampling.py --outdir outputs/measures
    python scripts/measure_sampling.py samplers --scenes 32 --steps 10,20
    python scripts/measure_sampling.py edits attention --run logs/RUN --run logs/OTHER
    python scripts/measure_sampling.py inversion --images FOLDER

Figures are written as JSON and as tables of Markdown, with --page also into the places that a page
has for them; what is already there of other measurements stays. Without --run the words of one set
for each number of words are learned first.
"""

import argparse
import json
import logging
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from ldm.checkpoint import write_atomic
from ldm.data.images import find_images, load_image
from ldm.data.playroom import PlayroomConcepts, get_concept_set
from ldm.editing import EditOptions
from ldm.editing.attend_excite import ExciteOptions
from ldm.editing.inversion import fit_image, picture_size
from ldm.errors import exit_code
from ldm.evaluation.editing import edit_cases, measure_edits
from ldm.evaluation.intervals import Mean
from ldm.evaluation.judge import WEIGHTS, load_judge
from ldm.evaluation.localisation import word_ious, word_maps
from ldm.evaluation.pages import fill, table
from ldm.evaluation.playroom import asked, fresh_scenes
from ldm.evaluation.samplers import (
    Setting,
    compare_samplers,
    decoded,
    draw,
    measure_inversion,
)
from ldm.evaluation.tables.grid import file_digest
from ldm.inference import (
    SAMPLERS,
    SamplingOptions,
    load_model,
    load_words,
    rooted,
    sample_images,
    shipped_weights,
)
from ldm.training.flags import count, numbers
from ldm.training.sets import learn_set, set_of, words_of
from ldm.util import bfloat16_products, progress_of

logger = logging.getLogger("measure_sampling")

#: A set for each number of words.
SETS = (
    "bear-skateboard",
    "bear-skateboard-taxi",
    "bear-skateboard-jacket-taxi",
    "bear-skateboard-jacket-taxi-road",
)
#: Held-back pictures of a set are those of another seed.
HELD_BACK = 1000
Lines = list[list[str]]
#: The figures of a measurement, and its table: headings first.
Measured = tuple[Any, Lines]


def runs_of(options: argparse.Namespace, names: Sequence[str]) -> list[Path]:
    """The runs that were given, or new ones of the sets `names`."""
    if options.run:
        return [Path(run) for run in options.run]
    logs = Path(options.outdir) / "runs"
    kept = {set_of(run): run for run in sorted(logs.glob("*")) if (run / "configs").is_dir()}
    return [
        kept.get(name) or learn_set(name, logs, steps=options.train_steps, seed=options.seed)
        for name in names
    ]


def samplers(model: Any, options: argparse.Namespace) -> Measured:
    """Fast samplers against many steps of DDIM, from the same noise."""
    scenes = [
        scene
        for objects in (1, 2)
        for scene in fresh_scenes(options.scenes // 2, objects, 64, seed=options.seed)
    ]
    rows = compare_samplers(
        model,
        load_judge(options.judge, options.device),
        [(scene.caption, asked(scene)) for scene in scenes],
        SAMPLERS,
        options.steps,
        Setting(options.scale, options.seed, options.batch),
        reference=options.reference,
        progress=True,
    )
    lines = [["sampler", "steps", "distance", "objects right", "colours right", "s per image"]]
    lines += [
        [row.sampler, str(row.steps), row.distance.told(3), row.objects.told(3),
         row.colours.told(3), f"{row.seconds:.2f}"]
        for row in rows
    ]  # fmt: skip
    return [asdict(row) for row in rows], lines


def excited(model: Any, options: argparse.Namespace) -> Measured:
    """Captions of several things with Attend-and-Excite for all their nouns, and without.

    Pictures of a caption are from the same noise; the last row is what they differ by.
    """
    judge = load_judge(options.judge, options.device)
    scenes = fresh_scenes(options.scenes, options.things, 64, seed=options.seed)
    lines = [["Attend-and-Excite", "all things right", "things right", "s per image"]]
    figures: dict[str, Any] = {}
    shares: list[list[float]] = []
    for name, excites in (("no", False), ("all nouns", True)):
        began = time.monotonic()
        with progress_of(f"Attend-and-Excite: {name}", len(scenes)) as done:
            found = []
            for number, scene in enumerate(scenes):
                found.append(drawn_things(model, judge, scene, number, options, excites))
                done(1)
        shares.append(found)
        seconds = (time.monotonic() - began) / len(scenes)
        means = Mean.share(share == 1 for share in found), Mean.of(found)
        figures[name] = [*map(asdict, means), {"seconds": seconds}]
        lines.append([name, *(mean.told(3) for mean in means), f"{seconds:.2f}"])
    pairs = list(zip(*shares, strict=True))
    gains = (
        Mean.of(float(after == 1) - float(before == 1) for before, after in pairs),
        Mean.of(after - before for before, after in pairs),
    )
    lines.append(["difference", *(gain.told(3) for gain in gains), ""])
    return {**figures, "difference": [asdict(gain) for gain in gains]}, lines


def drawn_things(
    model: Any, judge: Any, scene: Any, number: int, options: argparse.Namespace, excites: bool
) -> float:
    """The share of a scene's things in picture `number`, which its caption draws."""
    nouns = tuple(dict.fromkeys(thing.word for thing in scene.objects))
    sampling = SamplingOptions(
        steps=options.excite_steps, scale=options.scale, seed=options.seed + number
    )
    excite = ExciteOptions(nouns) if excites else None
    (image,) = sample_images(model, scene.caption, sampling, count=1, excite=excite, progress=False)
    reading = judge.read(image.float().cpu())[0]
    return fmean(reading.find(thing.name) is not None for thing in scene.objects)


def edit_settings(options: argparse.Namespace) -> dict[str, EditOptions]:
    """How edits are carried out: with the local blend at each threshold, and without it ("no")."""
    plain = EditOptions(
        options.edit_steps, options.scale, cross=options.cross,
        self_attention=options.self_attention,
    )  # fmt: skip
    blends = {
        str(share): replace(plain, blend=True, threshold=share) for share in options.thresholds
    }
    return {**blends, "no": plain}


def edits(model: Any, options: argparse.Namespace) -> Measured:
    """Local edits with learned and with plain words, with and without local blend.

    The blend is named by the share of the highest attention above which a place may change.
    """
    settings = edit_settings(options)
    (run, *_) = runs_of(options, SETS[:1])
    judge, shows = load_judge(options.judge, options.device), get_concept_set(set_of(run)).shows
    load_words(model, [words_of(run)])
    learned = edit_cases(shows, options.edits, options.seed)
    lines = [["words", "local blend", "new object appears", "old one gone", "change outside",
              "change inside", "source shows it"]]  # fmt: skip
    figures = []
    for kind, cases in (("learned", learned), ("plain", [one.plain(shows) for one in learned])):
        for blend, setting in settings.items():
            label = f"{kind} words, local blend {blend}"
            found = measure_edits(model, judge, cases, setting, batch=options.batch, label=label)
            figures.append({"words": kind, "blend": blend, **asdict(found)})
            cells = [found.appears.told(3), found.gone.told(3), found.outside.told(1),
                     found.inside.told(1), found.had.told(3)]  # fmt: skip
            lines.append([kind, blend, *cells])
    return {"run": run.name, "settings": figures}, lines


def inversion(model: Any, options: argparse.Namespace) -> Measured:
    """What comes back of real pictures, and of the model's own."""
    pictures = {}
    captions = [scene.caption for scene in fresh_scenes(options.pictures, 1, 64, seed=options.seed)]
    setting = Setting(options.scale, options.seed, options.batch)
    sampler = SAMPLERS["ddim"](model)
    own = draw(model, sampler, captions, options.inversion_steps, setting, label="own pictures")
    pictures["own samples"] = (decoded(model, own.latents), captions)
    if options.images:
        pictures["given pictures"] = read_pictures(model, Path(options.images), options.pictures)
    figures, lines = {}, [["pictures", "way", "PSNR in dB", "error of the latents"]]
    for name, (images, prompts) in pictures.items():
        found = measure_inversion(
            model, images, prompts, steps=options.inversion_steps, scale=options.scale,
            batch=options.batch, progress=True,
        )  # fmt: skip
        figures[name] = {
            way: {measure: asdict(mean) for measure, mean in row.items()}
            for way, row in found.items()
        }
        lines += [
            [f"{name} ({len(images)})", way, row["psnr"].told(1), row["latent error"].told(3)]
            for way, row in found.items()
        ]
    return figures, lines


def read_pictures(model: Any, folder: Path, most: int) -> tuple[torch.Tensor, list[str]]:
    """The middle squares of at most `most` pictures of a folder and those in it, with prompts.

    A folder called ``cat_dog`` holds photos of a cat and dog; pictures are taken from all of them.
    """
    longest, multiple = picture_size(model)
    paths = find_images(folder, recursive=True)
    if not paths:
        raise ValueError(f"--images {folder}: there is no picture in it")
    images, prompts = [], []
    for path in paths[:: max(1, len(paths) // most)][:most]:
        image = load_image(path)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        images.append(fit_image(square, longest, multiple))
        names = next((part for part in path.relative_to(folder).parts if "_" in part), folder.name)
        prompts.append(f"a photo of {names.replace('_', ' and ')}")
    return torch.cat(images), prompts


def attention(model: Any, options: argparse.Namespace) -> Measured:
    """Overlap of the words' masks with the truth in pictures that were not learned from.

    Of one run a set: intervals are over pictures, of which the words of one count as one value.
    """
    by_number: dict[int, list[float]] = defaultdict(list)
    figures, lines = [], [["set", "words", "word", "IoU"]]
    for run in runs_of(options, SETS):
        name = set_of(run)
        load_words(model, [words_of(run)])
        data = PlayroomConcepts(name, n_images=options.pictures, seed=HELD_BACK + options.seed)
        images = torch.stack([torch.from_numpy(array.copy()) for _, _, array in data.images()])
        found: dict[str, list[float]] = defaultdict(list)
        pictures = []
        for number, image in enumerate(images.movedim(-1, 1)):
            latents = model.encode_images(image[None])
            maps = word_maps(model, latents, [data.sentence_of(number).caption], seed=options.seed)
            overlaps = word_ious(maps, [data.masks(number)])
            pictures.append(fmean(overlaps.values()))
            for word, value in overlaps.items():
                found[word].append(value)
        by_number[len(found)] += pictures
        for word, values in found.items():
            mean = Mean.of(values)
            figures.append({"set": name, "words": len(found), "word": word, "iou": asdict(mean)})
            lines.append([name, str(len(found)), word, mean.told(3)])
    for number, values in sorted(by_number.items()):
        lines.append(["all", str(number), "all", Mean.of(values).told(3)])
    return figures, lines


MEASURES: dict[str, Callable[[Any, argparse.Namespace], Measured]] = {
    "samplers": samplers,
    "excited": excited,
    "edits": edits,
    "inversion": inversion,
    "attention": attention,
}


def markdown(kept: dict[str, Any]) -> str:
    """All measurements as a page of tables."""
    page = ["# Sampling, editing and attention", ""]
    for name, entry in kept.items():
        heads, *body = entry["table"]
        title = (MEASURES[name].__doc__ or name).splitlines()[0].rstrip(".")
        page += [f"## {title}", "", *table(heads, body), ""]
        page += [" ".join(f"{key} {value}" for key, value in entry["settings"].items()), ""]
    return "\n".join(page)


def section(measured: Measured, options: argparse.Namespace) -> str:
    """A measurement's table, and what was measured by what."""
    heads, *rows = measured[1]
    facts = [
        f"* model: {shipped_weights()} ({file_digest(rooted(shipped_weights()))})",
        f"* judge: {file_digest(options.judge or WEIGHTS)}",
    ]
    return "\n".join([*facts, "", *table(heads, rows)])


def keep(folder: Path, name: str, measured: Measured, settings: dict[str, Any]) -> None:
    """Add one measurement to the figures in `folder`."""
    path = folder / "sampling.json"
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    kept[name] = {"settings": settings, "figures": measured[0], "table": measured[1]}
    kept = {key: kept[key] for key in MEASURES if key in kept}
    for target, text in ((path, json.dumps(kept, indent=1)), (folder / "sampling.md", None)):
        with write_atomic(target) as temporary:
            temporary.write_text((text or markdown(kept)) + "\n", encoding="utf-8")


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description="Measure what is done with learned words.")
    add = parser.add_argument
    # fmt: off
    add("what", nargs="*", metavar="WHAT", help=f"any of {', '.join(MEASURES)}; default: all")
    add("--outdir", default="outputs/measures", help="where figures are written")
    add("--page", type=Path, metavar="FILE", help="a page of Markdown to put the tables into")
    add("--run", action="append", default=[], metavar="FOLDER", help="a finished run; repeat")
    add("--train_steps", type=count, default=400, help="training steps, without --run")
    add("--judge", metavar="FILE", help="weights of the judge; default: those that ship")
    add("--scenes", type=count, default=96, help="samplers, excited: pictures for each figure")
    add("--things", type=count, default=5, help="excited: how many things captions name")
    add("--excite_steps", type=count, default=25, help="excited: sampling steps")
    add("--steps", type=numbers, default=[10, 20, 50], metavar="N,M", help="samplers: steps")
    add("--reference", type=count, default=1000, help="samplers: steps of the reference")
    add("--edits", type=count, default=200, help="edits: how many")
    add("--edit_steps", type=count, default=50, help="edits: sampling steps")
    add("--images", metavar="FOLDER", help="inversion: real pictures")
    add("--inversion_steps", type=count, default=50, help="inversion: sampling steps")
    add("--pictures", type=count, default=24, help="inversion, attention: pictures for each figure")
    add("--scale", type=float, default=5.0, help="guidance")
    add("--cross", type=float, default=0.8, help="edits: share of the sampling to hold attention")
    add("--self", dest="self_attention", type=float, default=0.4,
        help="edits: share of the sampling to hold the layout")
    add("--thresholds", type=float, nargs="+", default=[0.3], metavar="SHARE",
        help="edits: of the highest attention, for the masks of the local blend")
    add("--batch", type=count, default=16, help="pictures at once")
    add("--precision", choices=("full", "autocast"), default="full",
        help="autocast: bfloat16, about twice as fast on a device that has it")
    add("--seed", type=int, default=0, help="seed of everything random")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to draw")
    # fmt: on
    return parser


def measure(options: argparse.Namespace) -> None:
    """Measure everything that was asked for, and keep it."""
    if unknown := set(options.what) - set(MEASURES):
        raise ValueError(f"{sorted(unknown)} cannot be measured; accepted are {list(MEASURES)}")
    folder = Path(options.outdir)
    folder.mkdir(parents=True, exist_ok=True)
    given = {key: value for key, value in vars(options).items() if value not in ([], None)}
    given.pop("page", None)
    settings = given | {"outdir": folder.name, "threads": torch.get_num_threads()}
    settings |= {"run": [Path(run).name for run in options.run], "machine": platform.machine()}
    for name in options.what or MEASURES:
        model, low = load_model(device=options.device), options.precision == "autocast"
        with bfloat16_products(model.device, low):
            measured = MEASURES[name](model, options)
        keep(folder, name, measured, {**settings, "what": name})
        if options.page:
            fill(options.page, {f"measure-{name}": section(measured, options)})
        for row in measured[1]:
            print("  ".join(row))
    logger.info("figures in %s", folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; the exit code is 0 on success, 1 on an error, 130 when interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = build_parser().parse_args(arguments)
    return exit_code(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
