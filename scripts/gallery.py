"""The picture of the README: words that were learned, where they look, and what they are good for.

    make gallery
    python scripts/gallery.py --run logs/RUN --out docs/images/teaser.png

Without --run the words of one drawn set are learned first. Nothing is chosen: every sample is the
first one of its seed.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm.checkpoint import write_atomic
from ldm.data.playroom import PlayroomConcepts
from ldm.data.playroom.spec import COUNTS
from ldm.editing import EditOptions, edit, replace_word
from ldm.errors import exit_code
from ldm.evaluation.localisation import compete, word_maps
from ldm.inference import (
    SamplingOptions,
    latent_shape,
    load_model,
    load_words,
    sample_latents,
)
from ldm.models.diffusion.draws import noise_of
from ldm.prompts.spans import Caption, find_words
from ldm.training.flags import count
from ldm.training.sets import data_of, learn_set, words_of
from ldm.visual import (
    GREY,
    INK,
    PAPER,
    WORD_COLOURS,
    Picture,
    overlay,
    resize,
    save_png,
    to_uint8,
    wrap,
)

logger = logging.getLogger("gallery")

TILE, GAP, MARGIN = 192, 12, 36
COLUMNS = 6
TITLE, TEXT, NOTE = 30, 19, 15
#: New sentences; {0} and {1} are the first two learned words.
SENTENCES = (
    "a photo of a {0} in the snow",
    "a photo of a {0} on the grass",
    "a photo of a {1} on the beach",
    "a photo of a {0} beside a {1} in the desert",
    "a photo of a blue {0} at night",
    "a photo of a cat on a {1} in the park",
)
#: What is changed, into what.
EDITS = (("{0}", "a cat"), ("{0}", "a duck"), ("{0}", "a white fox"), ("{1}", "a green box"))
#: A README is looked at over slow lines too.
MOST_BYTES = 500_000
#: Held-back pictures of a set are those of another seed, by so much.
HELD_BACK = 1000


@dataclass(frozen=True)
class Tile:
    """A square picture and the lines below it, which may run on below its neighbours."""

    picture: Picture
    note: str = ""
    span: int = 1

    @property
    def lines(self) -> list[str]:
        """The note in lines."""
        return wrap(self.note, self.span * TILE + (self.span - 1) * GAP, NOTE) if self.note else []


@dataclass(frozen=True)
class Row:
    """Pictures side by side under one or more headings, each over the column where it begins."""

    tiles: Sequence[Tile]
    headings: dict[int, str] = field(default_factory=dict)


# What is shown -----------------------------------------------------------------------------------


def enlarged(picture: Picture) -> Picture:
    """A picture at the size of a tile."""
    return resize(picture, (TILE, TILE))


def tinted(picture: Picture, labels: np.ndarray) -> Picture:
    """A tile with the regions of the words in their colours, and the rest faded."""
    grey = picture.mean(-1, keepdims=True)
    result = 0.3 * grey + 0.7 * np.asarray(PAPER)
    for number in range(1, int(labels.max()) + 1):
        inside = labels == number
        colour = np.asarray(WORD_COLOURS[number - 1])
        result[inside] = (0.45 * picture + 0.55 * colour)[inside]
    return np.rint(result).astype(np.uint8)


def maps_of(model: Any, data: PlayroomConcepts, chosen: Sequence[int]) -> dict[str, Tensor]:
    """What each word attends to in the `chosen` pictures."""
    arrays = {number: array for number, _, array in data.images()}
    images = torch.stack([torch.from_numpy(arrays[number].copy()) for number in chosen])
    latents = model.encode_images(images.movedim(-1, 1))
    return word_maps(model, latents, [data.sentence_of(number).caption for number in chosen])


def learned_from(model: Any, data: PlayroomConcepts) -> Row:
    """The pictures that the words were learned from, and where two of the words look in one.

    Of more pictures than fit in beside those two, the first ones.
    """
    pictures = [enlarged(one.image) for one in data.scenes[: COLUMNS - 2]]
    tiles = [Tile(picture) for picture in pictures]
    for word, maps in list(maps_of(model, data, [0]).items())[:2]:
        tiles.append(Tile(overlay(pictures[0], maps[0]), word))
    sentence = str(data.sentence_of(0).caption)
    tiles[0] = Tile(pictures[0], sentence, len(pictures))
    number, more = len(data.scenes), len(data.scenes) > len(pictures)
    told = "one picture" if number == 1 else f"{COUNTS.get(number, number)} pictures"
    told += f" (here the first {COUNTS[len(pictures)]})" if more else ""
    # One picture is narrower than the heading above it.
    return Row(tiles, {0: f"Learned from {told} and one sentence",
                       max(2, len(pictures)): "Where words look"})  # fmt: skip


def segmented(model: Any, data: PlayroomConcepts) -> Row:
    """New pictures of the same things, and the words' masks in them."""
    chosen = range(COLUMNS // 2)
    maps = maps_of(model, data, list(chosen))
    tiles = []
    for number in chosen:
        picture = enlarged(data.scenes[number].image)
        own = {word: stack[number] for word, stack in maps.items()}
        tiles += [Tile(picture), Tile(tinted(picture, compete(own, (TILE, TILE), 0.5)))]
    return Row(tiles, {0: "Masks in pictures that were not learned from, found by the words alone"})


def drawn(model: Any, words: Sequence[str], options: argparse.Namespace) -> Row:
    """The words in new sentences."""
    prompts = [text.format(*words) for text in SENTENCES]
    sampling = SamplingOptions(
        steps=options.steps, scale=options.scale, seed=options.seed, fixed_code=1
    )
    latents = sample_latents(model, prompts, sampling)
    pictures = to_uint8(model.decode_first_stage(latents).clamp(-1, 1))
    tiles = [
        Tile(enlarged(p), prompt.removeprefix("a photo of "))
        for p, prompt in zip(pictures, prompts, strict=True)
    ]
    return Row(tiles, {0: "The words in new sentences"})


def edited(model: Any, words: Sequence[str], caption: Caption, options: argparse.Namespace) -> Row:
    """One drawn picture with one word after the other replaced, the rest kept."""
    sentence = without_adjectives(caption)
    source = f"a photo of {sentence}"
    changes = [(word.format(*words), text) for word, text in EDITS]
    targets = [replace_word(source, word, text) for word, text in changes]
    chosen = EditOptions(
        options.steps, options.scale, cross=options.cross, self_attention=options.self_attention,
        blend=True,
    )  # fmt: skip
    shape = latent_shape(model, SamplingOptions())
    noise = noise_of(shape, options.seed).expand(len(targets), *shape)
    done = edit(model, [source] * len(targets), targets, chosen, x_T=noise, progress=True)
    before, after = enlarged(to_uint8(done.source)[0]), to_uint8(done.edited)
    mask = cast(Tensor, done.mask)[0, 0].cpu().numpy().astype(np.uint8)
    inside = resize(255 * mask, (TILE, TILE)) > 127
    tiles = [Tile(before, sentence), Tile(tinted(before, inside.astype(np.uint8)), changes[0][0])]
    for picture, (word, text) in zip(after, changes, strict=True):
        tiles.append(Tile(enlarged(picture), f"{word} = {text}"))
    return Row(tiles, {0: "A local edit", 1: "its mask", 2: "One word replaced, the rest kept"})


def without_adjectives(caption: Caption) -> str:
    """The sentence without the adjectives that are bound to its words."""
    text = caption.text
    for span in sorted(caption.bound, key=lambda span: -span.start):
        text = text[: span.start] + text[span.end :].lstrip()
    return text


# The sheet ---------------------------------------------------------------------------------------


def font(size: int) -> Any:
    """The font that ships with Pillow."""
    return ImageFont.load_default(size=size)


def write_line(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], line: str, size: int, words: Sequence[str]
) -> None:
    """One line of text, with the learned words in their colours."""
    left, top = at
    behind = 0
    for span in find_words(line, words):
        colour = WORD_COLOURS[list(words).index(span.word)]
        for text, ink in ((line[behind : span.start], GREY), (span.word, colour)):
            draw.text((left, top), text, ink, font(size))
            left += round(font(size).getlength(text))
        behind = span.end
    draw.text((left, top), line[behind:], GREY, font(size))


def sheet(title: str, rows: Sequence[Row], words: Sequence[str]) -> Picture:
    """All rows on one page."""
    width = 2 * MARGIN + COLUMNS * TILE + (COLUMNS - 1) * GAP
    depths = [max(len(tile.lines) for tile in row.tiles) for row in rows]
    line, head = NOTE + 5, TEXT + 14
    height = 2 * MARGIN + TITLE + 8 + sum(head + TILE + depth * line + 26 for depth in depths)
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN - 8), title, INK, font(TITLE))
    top = MARGIN + TITLE + 18
    for row, depth in zip(rows, depths, strict=True):
        for column, heading in row.headings.items():
            draw.text((MARGIN + column * (TILE + GAP), top), heading, INK, font(TEXT))
        top += head
        for column, tile in enumerate(row.tiles):
            left = MARGIN + column * (TILE + GAP)
            page.paste(Image.fromarray(tile.picture), (left, top))
            for number, text in enumerate(tile.lines):
                write_line(draw, (left, top + TILE + 6 + number * line), text, NOTE, words)
        top += TILE + depth * line + 26
    return np.asarray(page)


def save(path: Path, page: Picture) -> None:
    """Write the page: as it is where that is small enough, else with 256 colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(path, page)
    if path.stat().st_size > MOST_BYTES:
        image = Image.fromarray(page)
        few = image.quantize(palette=image.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
        with write_atomic(path) as temporary:
            few.save(temporary, "PNG", optimize=True)


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description="Make the picture of the README.")
    add = parser.add_argument
    # fmt: off
    add("--run", metavar="FOLDER", help="a finished run of a drawn set; default: learn one")
    add("--set", default="bear-skateboard", help="the drawn set to learn, of two or more words")
    add("--train_steps", type=count, default=400, help="training steps, without --run")
    add("--train_seed", type=int, default=0, help="seed of the training, without --run")
    add("--out", default="docs/images/teaser.png", help="the picture to write")
    add("--steps", type=count, default=50, help="sampling steps")
    add("--scale", type=float, default=5.0, help="guidance")
    add("--cross", type=float, default=0.8, help="edits: share of the sampling to hold attention")
    add("--self", dest="self_attention", type=float, default=0.4,
        help="edits: share of the sampling to hold the layout")
    add("--seed", type=int, default=42, help="seed of the samples")
    # fmt: on
    return parser


def make(options: argparse.Namespace, run: Path) -> None:
    """Draw the picture from a run."""
    data, model = data_of(run), load_model()
    words = load_words(model, [words_of(run)])
    if len(words) < 2:
        raise ValueError(f"the set {data.name!r} has {len(words)} words: the picture needs two")
    new = PlayroomConcepts(data.name, seed=HELD_BACK + data.seed)
    rows = [
        learned_from(model, data),
        segmented(model, new),
        drawn(model, words, options),
        edited(model, words, data.sentence_of(0).caption, options),
    ]
    save(Path(options.out), sheet("New words for a frozen text-to-image model", rows, words))
    logger.info("written to %s", options.out)


def run(options: argparse.Namespace) -> None:
    """Learn words where no run is given, and draw the picture."""
    with tempfile.TemporaryDirectory() as folder:
        learned = options.run or learn_set(
            options.set, folder, steps=options.train_steps, seed=options.train_seed
        )
        make(options, Path(learned))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; the exit code is 0 on success, 1 on an error, 130 when interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = build_parser().parse_args(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
