"""Show where words look: in your own picture, or in one that is drawn.

    python scripts/attend.py --embedding_path FILE --image photo.jpg \\
        --sentence "a <teddy> on a <board>" --outdir out
    python scripts/attend.py --prompt "a photo of a cat on a skateboard" --words cat,skateboard

For each picture there are, at its own size, a mask for every word, a map of labels where words
compete, and overlays; the numbers behind them as NPZ and JSON (boxes, areas, overlap with masks).
"""

import argparse
import itertools
import json
import logging
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ldm.checkpoint import write_atomic
from ldm.concepts.recorder import Positions, WordAttention, named_positions
from ldm.data.images import load_image
from ldm.editing.inversion import fit_image, picture_size, sampling_plan
from ldm.errors import exit_code
from ldm.evaluation.localisation import SHARES, binary_mask, compete, iou, record_noised
from ldm.inference import SamplingOptions, sample_latents
from ldm.modules.attention import AttentionSite, Grid
from ldm.modules.attention_control import controlling
from ldm.prompts.sentence import as_words, parse_sentence
from ldm.training.flags import add_model_flags, numbers, open_model, origin, shares
from ldm.visual import (
    WORD_COLOURS,
    Cell,
    Heading,
    Picture,
    free_suffix,
    label_map,
    overlay,
    panel,
    resize,
    save_png,
    to_uint8,
)

logger = logging.getLogger("attend")

PLACES = ("down", "mid", "up")
#: The longer side of overlays in pixels.
SHOWN = 512


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description="Show where the words of a sentence look.")
    add = parser.add_argument
    # fmt: off
    add("--image", action="append", default=[], metavar="FILE", help="a picture; repeat for more")
    add("--sentence", help="what the pictures show, with the learned words: 'a <teddy> on grass'")
    add("--prompt", help="look at pictures while they are drawn, instead of given ones")
    add("--words", type=as_words, default=(), metavar="A,B",
        help="words to look at, learned or plain ones; default: the learned ones")
    add_model_flags(parser)
    add("--outdir", default="outputs/attend", help="where results are written")
    add("--masks", metavar="FOLDER", help="true masks <picture>-<word>.png, white on black")
    add("--threshold", type=float, default=0.5, metavar="K",
        help="share of the highest attention from which a place belongs to a word")
    add("--resolution", type=numbers, metavar="N,M",
        help="sizes of the layers' maps to average; default: the model's")
    add("--places", type=as_words, default=PLACES, metavar="down,mid,up",
        help="parts of the network to average over")
    add("--heads", type=numbers, metavar="0,1", help="heads to average over; default: all")
    add("--shares", type=shares, default=list(SHARES), metavar="0.1,0.5",
        help="of a picture: noise levels to average over")
    add("--window", type=shares, default=[0.0, 1.0], metavar="FROM,TO",
        help="of a drawing: which part of the sampling to average over")
    add("--size", type=int, help="longer side at which the model sees a picture")
    add("--n_samples", type=int, default=1, help="pictures to draw")
    add("--ddim_steps", type=int, default=50, help="sampling steps")
    add("--scale", type=float, default=5.0, help="guidance; 1 is none")
    add("--seed", type=int, default=42)
    # fmt: on
    return parser


def check(options: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
        ValueError: saying what to give.
    """
    if bool(options.image) == bool(options.prompt):
        raise ValueError(
            "give either pictures (--image FILE --sentence TEXT) or a --prompt to draw"
        )
    if options.image and not options.sentence:
        raise ValueError('--image needs a --sentence that says what it shows: "a <teddy> on grass"')
    if not 0 <= options.threshold < 1:
        raise ValueError(f"--threshold {options.threshold}: give 0 or more and less than 1")
    if unknown := sorted(set(options.places) - set(PLACES)):
        raise ValueError(f"--places {','.join(unknown)}: accepted are {', '.join(PLACES)}")
    if len(options.window) != 2 or options.window[0] >= options.window[1]:
        raise ValueError(f"--window {options.window}: give two rising shares such as 0.2,0.8")
    if options.n_samples < 1:
        raise ValueError(f"--n_samples {options.n_samples}: at least 1 is needed")


class ChosenAttention(WordAttention):
    """Attention of words over chosen parts of the network, heads and steps only."""

    def __init__(
        self,
        positions: Positions,
        resolutions: Collection[int],
        words: Sequence[str],
        *,
        places: Collection[str] = PLACES,
        heads: Sequence[int] | None = None,
        steps: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(positions, resolutions, words)
        self.places, self.heads, self.steps = frozenset(places), heads, steps
        self.asleep = False

    def begin_step(self, index: int, conditional: slice) -> None:
        """Listen in the chosen steps, to the conditional rows.

        Raises:
            ValueError: when the step before had no maps of the chosen sizes.
        """
        super().begin_step(index, conditional)
        if self.passed:
            self.check()  # Now rather than when all is drawn.
        self.asleep = self.steps is not None and not self.steps[0] <= index < self.steps[1]

    def wants(self, site: AttentionSite | None, pixels: int | None = None) -> bool:
        """Only chosen places, in chosen steps."""
        if site is None or self.asleep:
            return False
        return super().wants(site, pixels) and site.place in self.places

    def observe(
        self, q: Tensor, k: Tensor, scale: float, site: AttentionSite | None, grid: Grid | None
    ) -> None:
        """Add the chosen heads of one layer.

        Raises:
            ValueError: when a layer of the chosen sizes does not have them.
        """
        if self.heads is not None and grid is not None and max(grid) in self.resolutions:
            if max(self.heads) >= q.shape[1] or min(self.heads) < 0:
                raise ValueError(
                    f"--heads {self.heads}: the layers of {grid} pixels have {q.shape[1]} heads, "
                    "numbered from 0; choose others, or other layers with --resolution"
                )
            q, k = q[:, self.heads], k[:, self.heads]
        super().observe(q, k, scale, site, grid)


def make_recorder(model: Any, captions: Sequence[str], options: argparse.Namespace) -> Any:
    """What listens to the chosen words of `captions`.

    Raises:
        ValueError: when a word is not in the sentence, or there is no word to look at.
    """
    manager = model.embedding_manager
    tokens = model.cond_stage_model.tokenize(list(captions), manager.words if manager else {})
    words = list(options.words) or list(tokens.learnable[0])
    if not words:
        raise ValueError(
            f"the sentence {captions[0]!r} has no learned word: load some with --embedding_path, "
            "or name plain words of it with --words"
        )
    positions = named_positions(tokens, captions, words)
    if absent := [word for word in words if word not in positions[0]]:
        raise ValueError(f"--words {','.join(absent)}: not in the sentence {captions[0]!r}")
    steps = len(sampling_plan(model, options.ddim_steps)) if options.prompt else 0
    return ChosenAttention(
        positions,
        options.resolution or model.mask_resolution,
        words,
        places=options.places,
        heads=options.heads,
        steps=chosen_steps(options.window, steps) if steps else None,
    )


def chosen_steps(window: Sequence[float], steps: int) -> tuple[int, int]:
    """The steps from and before which a window is open: at least one of `steps`."""
    first = min(round(window[0] * steps), steps - 1)
    return first, max(round(window[1] * steps), first + 1)


def plain_text(sentence: str) -> str:
    """A sentence without its markup: ``a [brown] <teddy:bear>`` is ``a brown <teddy>``."""
    return str(parse_sentence(sentence).caption) if re.search(r"[<\[]", sentence) else sentence


# Looking -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Looked:
    """A picture, of what seed, and what each word attends to in it: word -> (m, n)."""

    name: str
    picture: Picture
    maps: dict[str, Tensor]
    seed: int


def look_at_images(model: Any, sentence: str, options: argparse.Namespace) -> list[Looked]:
    """The maps of given pictures, noised at several levels."""
    looked = []
    longest, multiple = picture_size(model, options.size)
    context = model.get_learned_conditioning([sentence])
    paths = [Path(path) for path in options.image]
    for path, name in zip(paths, picture_names(paths), strict=True):
        image = load_image(path)
        recorder = make_recorder(model, [sentence], options)
        latents = model.encode_images(fit_image(image, longest, multiple))
        record_noised(model, latents, context, recorder, shares=options.shares, seed=options.seed)
        maps = dict(zip(recorder.words, recorder.maps()[0].cpu(), strict=True))
        looked.append(Looked(name, np.asarray(image), maps, options.seed))
    return looked


def look_at_drawing(model: Any, prompt: str, options: argparse.Namespace) -> list[Looked]:
    """Drawn pictures and the maps of their words, over the steps of their drawing."""
    sampling = SamplingOptions(
        steps=options.ddim_steps,
        scale=options.scale,
        height=options.size,
        width=options.size,
        seed=options.seed,
    )
    prompts = [prompt] * options.n_samples
    recorder = make_recorder(model, prompts, options)
    with controlling(model.model.diffusion_model, recorder):
        latents = sample_latents(model, prompts, sampling, on_step=recorder.begin_step)
    pictures = to_uint8(model.decode_first_stage(latents).clamp(-1, 1))
    drawn = zip(pictures, recorder.maps().cpu(), strict=True)
    return [
        Looked(f"{seed:04d}", picture, dict(zip(recorder.words, maps, strict=True)), seed)
        for seed, (picture, maps) in enumerate(drawn, options.seed)
    ]


# Results -----------------------------------------------------------------------------------------


def describe(mask: np.ndarray, truth: np.ndarray | None) -> dict[str, Any]:
    """Box (left, top, right, bottom; the last two behind it), area and overlap of a bool mask."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else None
    return {
        "box": None if box is None else [int(side) for side in box],
        "area": int(mask.sum()),
        "share": round(float(mask.mean()), 6),
        **({} if truth is None else {"iou": round(iou(mask, truth), 6)}),
    }


def picture_names(paths: Sequence[Path]) -> list[str]:
    """What the files of each picture are called: as the picture, and none twice."""
    names: list[str] = []
    for path in paths:
        stems = itertools.chain([path.stem], (f"{path.stem}-{i}" for i in itertools.count(2)))
        names.append(next(stem for stem in stems if stem not in names))
    return names


def file_names(words: Sequence[str]) -> dict[str, str]:
    """A part of a file name for each word, none twice."""
    names: dict[str, str] = {}
    for number, word in enumerate(words):
        name = re.sub(r"\W+", "-", word).strip("-") or f"word{number}"
        names[word] = f"{name}-{number}" if name in names.values() else name
    return names


def read_truths(
    folder: str | None, looked: Looked, names: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """The true masks of a picture that are in `folder`, bool.

    Raises:
        ValueError: when there is none, or one is not as large as the picture.
    """
    if folder is None:
        return {}
    paths = {word: Path(folder) / f"{looked.name}-{name}.png" for word, name in names.items()}
    truths = {
        word: np.asarray(load_image(path).convert("L")) > 127
        for word, path in paths.items()
        if path.is_file()
    }
    if not truths:
        raise ValueError(
            f"--masks {folder}: none of {', '.join(path.name for path in paths.values())} is there"
        )
    for word, truth in truths.items():
        if truth.shape != looked.picture.shape[:2]:
            raise ValueError(
                f"{paths[word]} is {truth.shape[1]}x{truth.shape[0]} pixels, its picture "
                f"{looked.picture.shape[1]}x{looked.picture.shape[0]}: they must be equal"
            )
    return truths


def write(looked: Looked, sentence: str, options: argparse.Namespace) -> dict[str, Any]:
    """Write everything about one picture; returns what the JSON file says.

    Files of an earlier call stay: those of the same name get a number.
    """
    out, size = Path(options.outdir), looked.picture.shape[:2]
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{looked.name}{free_suffix(out, [looked.name])}"
    names = file_names(list(looked.maps))
    truths = read_truths(options.masks, looked, names)
    masks = {
        word: binary_mask(maps[None], options.threshold, size)[0].numpy()
        for word, maps in looked.maps.items()
    }
    labels = compete(looked.maps, size, options.threshold)
    note = metadata(looked, sentence, options)
    for word, name in names.items():
        save_png(out / f"{stem}-{name}.png", shown(looked.picture, looked.maps[word]), note)
        white = masks[word][..., None].repeat(3, -1).astype(np.uint8) * 255
        save_png(out / f"{stem}-{name}-mask.png", white, note)
    exclusive = [labels == number for number in range(1, len(names) + 1)]
    save_png(out / f"{stem}-labels.png", label_map(exclusive, size), note)
    save_png(out / f"{stem}-panel.png", sheet(looked, exclusive, sentence), note)
    arrays: dict[str, Any] = {"labels": labels}
    arrays |= {f"map/{word}": maps.numpy() for word, maps in looked.maps.items()}
    arrays |= {f"mask/{word}": mask for word, mask in masks.items()}
    with write_atomic(out / f"{stem}.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    summary = {
        "picture": looked.name,
        "size": {"width": size[1], "height": size[0]},
        "sentence": sentence,
        "threshold": options.threshold,
        "labels": {word: number for number, word in enumerate(names, 1)},
        "words": {word: describe(mask, truths.get(word)) for word, mask in masks.items()},
    }
    with write_atomic(out / f"{stem}.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return summary


def metadata(looked: Looked, sentence: str, options: argparse.Namespace) -> dict[str, str]:
    """What a picture of maps was made with, kept in the file."""
    note = {
        "sentence": sentence,
        "threshold": str(options.threshold),
        "seed": str(looked.seed),
        **origin(options),
    }
    if options.prompt:
        note |= {"steps": str(options.ddim_steps), "scale": str(options.scale)}
    return note


def shown(picture: Picture, maps: Tensor) -> Picture:
    """A picture of overlay size under the heat of a map."""
    scale = SHOWN / max(picture.shape[:2])
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    return overlay(resize(picture, (height, width)), maps)


def sheet(looked: Looked, masks: Sequence[np.ndarray], sentence: str) -> Picture:
    """The picture, an overlay for each word, and who wins where."""
    colours = [WORD_COLOURS[k % len(WORD_COLOURS)] for k in range(len(masks))]
    cells = [Cell(looked.picture)]
    cells += [Cell(shown(looked.picture, maps)) for maps in looked.maps.values()]
    cells.append(Cell(label_map(masks, looked.picture.shape[:2])))
    words = [Heading(word, colour) for word, colour in zip(looked.maps, colours, strict=True)]
    return panel([cells], [Heading("picture"), *words, Heading("labels")], sentence)


def look(options: argparse.Namespace) -> None:
    """Look, and write down what was found."""
    check(options)
    sentence = plain_text(options.prompt or options.sentence)
    model = open_model(options, [sentence])
    find = look_at_drawing if options.prompt else look_at_images
    for looked in find(model, sentence, options):
        for word, found in write(looked, sentence, options)["words"].items():
            overlap = f", IoU {found['iou']:.2f}" if "iou" in found else ""
            share, box = 100 * found["share"], found["box"]
            logger.info("%s %s: %.1f %%, box %s%s", looked.name, word, share, box, overlap)
    logger.info("results in %s", options.outdir)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; the exit code is 0 on success, 1 on an error, 130 when interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = build_parser().parse_args(arguments)
    return exit_code(lambda: look(options))


if __name__ == "__main__":
    sys.exit(main())
