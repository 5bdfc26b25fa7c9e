"""Change a picture by changing its prompt: drawn ones, and your own.

    python scripts/edit.py --prompt "a cat on a chair" --target "a dog on a chair"
    python scripts/edit.py --embedding_path FILE --prompt "a <teddy> on a <board>" \\
        --replace "<teddy>=a cat"
    python scripts/edit.py --image photo.jpg --prompt "a cat on a chair" --replace "cat=a dog"

A replaced word needs no mask: what it looks at says where the picture may change.
"""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ldm.data.images import load_image
from ldm.editing import EditOptions, Inversion, ddim_inversion, edit, null_text_inversion
from ldm.editing import replace_word as replaced
from ldm.editing.edit import METHODS, Edited, check_edit
from ldm.editing.inversion import fit_image, picture_size
from ldm.errors import exit_code
from ldm.inference import SamplingOptions, latent_shape
from ldm.models.diffusion.draws import noise_of
from ldm.prompts.sentence import as_words
from ldm.training.flags import add_model_flags, numbers, open_model, origin
from ldm.visual import Cell, free_suffix, outline, panel, save_png, to_uint8

logger = logging.getLogger("edit")


def window(text: str) -> float | tuple[float, ...]:
    """A share of the sampling such as ``0.8``, or from when until when such as ``0.2,0.8``."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 0.8, or 0.2,0.8") from None
    return values[0] if len(values) == 1 else values


def assignment(text: str) -> tuple[str, str]:
    """``word=value``; a word in angle brackets may have an equals sign inside."""
    match = re.fullmatch(r"\s*(<[^<>]+>|[^=]+?)\s*=\s*(.+?)\s*", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected word=value, such as '<teddy>=a cat'")
    return match[1], match[2]


def weight(text: str) -> tuple[str, float]:
    """``word=factor``."""
    word, value = assignment(text)
    try:
        return word, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: {value!r} is not a number") from None


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description="Change a picture by changing its prompt.")
    add = parser.add_argument
    # fmt: off
    add("--prompt", required=True, help="what the source shows")
    add("--target", help="what the changed picture shows")
    add("--replace", action="append", type=assignment, default=[], metavar="WORD=TEXT",
        help="instead of a target: put a text in the place of a word; repeat for several")
    add("--reweight", action="append", type=weight, default=[], metavar="WORD=FACTOR",
        help="attend more (above 1) or less to a word of the target; repeat for several")
    add("--image", metavar="FILE", help="change this picture instead of a drawn one")
    add("--inversion", choices=("null", "ddim"), default="null",
        help="how the noise of a given picture is found: fitted to guidance, or without")
    add_model_flags(parser)
    add("--outdir", default="outputs/edit", help="where pictures are written")
    add("--steps", type=int, default=50, help="sampling steps")
    add("--scale", type=float, default=5.0, help="guidance; 1 is none")
    add("--seed", type=int, default=42)
    add("--n_samples", type=int, default=1, help="pictures to draw and change")
    add("--method", choices=METHODS, default="auto",
        help="how words take over attention: one by one, or as far as the prompts agree")
    add("--cross", type=window, default=0.8, help="share of the sampling to hold where words look")
    add("--self", dest="self_attention", type=window, default=0.4,
        help="share of the sampling to hold the layout")
    add("--blend", action=argparse.BooleanOptionalAction, default=None,
        help="keep the source where the changed words do not look; default: with --replace")
    add("--blend_words", type=as_words, default=(), metavar="A,B",
        help="take the masks of these words")
    add("--threshold", type=float, default=0.3, help="of the highest attention, for the mask")
    add("--resolution", type=numbers, metavar="N,M", help="sizes of the maps for the mask")
    add("--size", type=int, help="longer side of the picture in pixels; default: the model's")
    # fmt: on
    return parser


def make_target(options: argparse.Namespace) -> str:
    """The target prompt of a command line.

    Raises:
        ValueError: when nothing is to be changed, or in two ways at once.
    """
    if options.target is not None and options.replace:
        raise ValueError("give either --target or --replace: both say what the result shows")
    if options.target is None and not options.replace and not options.reweight:
        raise ValueError(
            'nothing to change: give --target "a photo of ...", --replace "word=text" or '
            "--reweight word=2"
        )
    target = options.prompt if options.target is None else options.target
    for word, text in options.replace:
        target = replaced(target, word, text)
    return target


def invert(model: Any, options: argparse.Namespace) -> Inversion:
    """The noise of the given picture."""
    image = fit_image(load_image(options.image), *picture_size(model, options.size))
    latents = model.encode_images(image)
    if options.inversion == "ddim" or options.scale == 1.0:
        return ddim_inversion(model, latents, [options.prompt], options.steps, progress=True)
    return null_text_inversion(
        model, latents, [options.prompt], options.steps, options.scale, progress=True
    )


def change(model: Any, target: str, options: argparse.Namespace) -> Edited:
    """Draw, or invert, and edit."""
    chosen = EditOptions(
        steps=options.steps,
        scale=options.scale,
        method=options.method,
        cross=options.cross,
        self_attention=options.self_attention,
        reweight=dict(options.reweight),
        blend=blends(options),
        blend_words=options.blend_words,
        threshold=options.threshold,
        resolutions=options.resolution,
    )
    if options.image:
        check_edit(model, options.prompt, target, chosen)
        inversion = invert(model, options)
        return edit(model, options.prompt, target, chosen, inversion=inversion, progress=True)
    size = {"height": options.size, "width": options.size}
    shape = latent_shape(model, SamplingOptions(steps=options.steps, **size))
    seeds = range(options.seed, options.seed + options.n_samples)
    # The noise of a seed is that of txt2img.py, so the source is the picture known from there.
    noise = [noise_of(shape, seed) for seed in seeds]
    prompts = [options.prompt] * len(noise), [target] * len(noise)
    return edit(model, *prompts, chosen, x_T=torch.stack(noise), progress=True)


def write(done: Edited, target: str, options: argparse.Namespace) -> list[Path]:
    """Write sources, results, masks and a panel of all; returns the files."""
    out = Path(options.outdir)
    out.mkdir(parents=True, exist_ok=True)
    rows, written = [], []
    name = Path(options.image).stem if options.image else ""
    stems = [name or f"{options.seed + i:04d}" for i in range(len(done.edited))]
    again = free_suffix(out, [*stems, name or "edit"])
    for i, (before, after) in enumerate(
        zip(to_uint8(done.source), to_uint8(done.edited), strict=True)
    ):
        stem = f"{stems[i]}{again}"
        pictures = {"source": before, "edited": after}
        if done.mask is not None:
            inside = done.mask[i, 0].float().cpu().numpy()
            pictures["mask"] = outline(before, inside, width=1)
        for kind, picture in pictures.items():
            written.append(out / f"{stem}-{kind}.png")
            save_png(written[-1], picture, metadata(target, options, i))
        rows.append([Cell(picture) for picture in pictures.values()])
        headings = list(pictures)
    written.append(out / f"{name or 'edit'}{again}-panel.png")
    sheet = panel(rows, headings, f"{options.prompt}  ->  {target}")
    save_png(written[-1], sheet, metadata(target, options, 0))
    return written


def metadata(target: str, options: argparse.Namespace, number: int) -> dict[str, str]:
    """What a changed picture was made with, kept in the file; with its own seed it can be made
    alone."""
    note = {
        "prompt": options.prompt,
        "target": target,
        "seed": str(options.seed + number),
        "steps": str(options.steps),
        "scale": str(options.scale),
        "method": options.method,
        "cross": str(options.cross),
        "self": str(options.self_attention),
        **origin(options),
    }
    if options.reweight:
        note["reweight"] = ", ".join(f"{word}={factor}" for word, factor in options.reweight)
    if blends(options):
        note |= {"blend": ", ".join(options.blend_words) or "changed words",
                 "threshold": str(options.threshold)}  # fmt: skip
    if options.image:
        note |= {"image": Path(options.image).name, "inversion": options.inversion}
    return note


def blends(options: argparse.Namespace) -> bool:
    """Whether the source is kept where the changed words do not look."""
    return bool(options.replace) if options.blend is None else bool(options.blend)


def run(options: argparse.Namespace) -> None:
    """Change what the command line says, and write the pictures."""
    if options.n_samples < 1:
        raise ValueError(f"--n_samples {options.n_samples}: at least 1 is needed")
    target = make_target(options)
    model = open_model(options, [options.prompt, target])
    written = write(change(model, target, options), target, options)
    logger.info("%d files in %s", len(written), options.outdir)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; the exit code is 0 on success, 1 on an error, 130 when interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = build_parser().parse_args(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
