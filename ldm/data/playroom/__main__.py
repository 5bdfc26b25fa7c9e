"""Look at the world: `python -m ldm.data.playroom --out grid.png --n 48 --size 64`."""

import argparse
import logging
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.data.playroom.concepts import concept_scenes
from ldm.data.playroom.dataset import scene
from ldm.data.playroom.scene import Scene
from ldm.data.playroom.sets import CONCEPT_SETS
from ldm.data.playroom.splits import SPLITS
from ldm.data.playroom.vocabulary import write_vocabulary

logger = logging.getLogger(__name__)


def contact_sheet(pictures: list[np.ndarray], columns: int, enlarge: int = 1) -> Image.Image:
    """All pictures side by side in rows, each enlarged by a whole number of times."""
    size = pictures[0].shape[0] * enlarge + 2
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * size, rows * size), (255, 255, 255))
    for k, picture in enumerate(pictures):
        one = Image.fromarray(picture).resize((size - 2, size - 2), Image.Resampling.NEAREST)
        sheet.paste(one, (k % columns * size, k // columns * size))
    return sheet


def main(arguments: list[str] | None = None) -> None:
    """Draws a sheet of scenes, or writes the vocabulary file."""
    parser = argparse.ArgumentParser(prog="python -m ldm.data.playroom", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("playroom.png"), help="the PNG to write")
    parser.add_argument("--n", type=int, default=48, help="how many scenes")
    parser.add_argument("--size", type=int, default=64, help="pixels of a scene's side")
    parser.add_argument("--columns", type=int, default=12)
    parser.add_argument("--enlarge", type=int, default=1, help="times each pixel is repeated")
    parser.add_argument("--split", choices=SPLITS, default="seen")
    parser.add_argument("--objects", type=int, help="kinds of objects in each scene, 1 to 5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--concepts", choices=[*CONCEPT_SETS, "all"], help="draw a concept set")
    parser.add_argument("--vocabulary", type=Path, help="write the vocabulary file and stop")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if chosen.vocabulary:
        count = write_vocabulary(chosen.vocabulary)
        logger.info("%d word pieces in %s", count, chosen.vocabulary)
        return
    scenes = _scenes(chosen)
    contact_sheet([one.image for one in scenes], chosen.columns, chosen.enlarge).save(chosen.out)
    for k, one in enumerate(scenes):
        logger.info("%3d  %s", k, one.caption)
    logger.info("written to %s", chosen.out)


def _scenes(chosen: argparse.Namespace) -> list[Scene]:
    """The scenes that the command line asks for."""
    if chosen.concepts is None:
        return [
            scene(chosen.seed, k, chosen.size, chosen.split, n_objects=chosen.objects)
            for k in range(chosen.n)
        ]
    names = CONCEPT_SETS if chosen.concepts == "all" else [chosen.concepts]
    number = min(chosen.n, 4) if chosen.concepts == "all" else chosen.n
    return [
        one for name in names for _, one in concept_scenes(name, chosen.size, number, chosen.seed)
    ]


if __name__ == "__main__":
    main()
