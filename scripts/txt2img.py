"""Draw pictures from prompts, learned words included.

    python scripts/txt2img.py --embedding_path logs/RUN/checkpoints/embeddings.pt --prompt "a photo
    of a blue <bear>"

Without --ckpt_path the small model that ships with the project is used; with it, the configuration
is found from the checkpoint (but for Stable Diffusion v2: --config configs/backbones/sd-v2.yaml).
"""

import argparse
import itertools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.data.images import load_image
from ldm.editing.attend_excite import ExciteOptions
from ldm.editing.inversion import fit_image, picture_size
from ldm.errors import exit_code
from ldm.inference import SamplingOptions, sample_images
from ldm.prompts.sentence import as_words
from ldm.training.cli import Parser
from ldm.training.flags import add_model_flags, count, numbers, open_model, origin
from ldm.training.host import compile_network
from ldm.util import bfloat16_products
from ldm.visual import image_grid, save_png, to_uint8

logger = logging.getLogger("txt2img")


def build_parser(**defaults: Any) -> argparse.ArgumentParser:
    """The options of the original script; `defaults` of a preset."""
    parser = Parser(description="Draw pictures from prompts.", allow_abbrev=False)
    add = parser.add_argument
    add("--prompt", action="append", help="what to draw; repeat for several")
    add("--from-file", help="a text file with one prompt a line")
    add_model_flags(parser)
    add("--outdir", default="outputs/txt2img-samples", help="where pictures are written")
    add("--n_samples", type=count, default=4, help="pictures in a batch")
    add("--n_iter", type=count, default=1, help="batches for each prompt")
    add("--ddim_steps", type=count, default=50, help="sampling steps")
    add("--ddim_eta", type=float, default=0.0, help="0 is deterministic, 1 is ancestral noise")
    add("--scale", type=float, default=5.0, help="guidance; 1 is none")
    add("--plms", action="store_true", help="sample with PLMS")
    add("--sampler", choices=("ddim", "plms", "dpm", "ancestral"), default="ddim",
        help="how latents are drawn")  # fmt: skip
    add("--H", type=int, default=None, help="height in pixels")
    add("--W", type=int, default=None, help="width in pixels")
    add("--seed", type=int, default=42, help="seed of the first picture; the next ones count up")
    add("--init-img", "--init_img", default=None, metavar="FILE",
        help="begin with this picture; --H or --W then says how long its longer side is",
    )  # fmt: skip
    add("--strength", type=float, default=0.75,
        help="how far to go back from the picture: near 0 keeps it, 1 is a new one")  # fmt: skip
    add("--attend_excite", "--attend-excite", type=as_words, default=(), metavar="A,B",
        help="words that must be seen in the picture (Attend-and-Excite)")  # fmt: skip
    add("--resolution", type=numbers, default=None, metavar="N,M",
        help="sizes of the attention maps for that; default: the model's")  # fmt: skip
    add("--fixed_code", action="store_true", help="every batch starts from the noise of the first")
    add("--n_rows", type=int, default=0, help="columns of the grid")
    add("--skip_grid", action="store_true", help="write single pictures only")
    add("--skip_save", action="store_true", help="write the grid only")
    add(
        "--compile",
        action="store_true",
        help="compile the network first: minutes, for many pictures on a GPU",
    )
    add("--precision", choices=("full", "autocast"), default="full",
        help="full is float32, autocast bfloat16 where the device has it")  # fmt: skip
    parser.set_defaults(**defaults)
    return parser


def read_prompts(options: argparse.Namespace) -> list[str]:
    """The prompts of a command line.

    Raises:
        ValueError: when there is none.
    """
    prompts = list(options.prompt or [])
    if options.from_file:
        path = Path(options.from_file)
        if not path.is_file():
            raise ValueError(f"--from-file {path}: no such file")
        prompts += [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    if not prompts:
        raise ValueError('nothing to draw: give --prompt "a photo of ..." or --from-file FILE')
    return prompts


def make_sampling(options: argparse.Namespace) -> SamplingOptions:
    """How pictures are drawn, as the command line says.

    Raises:
        ValueError: for a number out of range.
    """
    return SamplingOptions(
        sampler="plms" if options.plms else options.sampler,
        steps=options.ddim_steps,
        scale=options.scale,
        eta=options.ddim_eta,
        height=options.H,
        width=options.W,
        seed=options.seed,
        fixed_code=options.n_samples if options.fixed_code else 0,
        strength=options.strength,
    )


def read_start(model: Any, options: argparse.Namespace) -> Tensor | None:
    """The latents (1, c, h, w) of the picture to begin with, if there is one.

    Raises:
        ValueError: when the file is no picture.
    """
    if options.init_img is None:
        return None
    longest = max(options.H or 0, options.W or 0) or None
    image = fit_image(load_image(options.init_img), *picture_size(model, longest))
    return model.encode_images(image)


def draw(
    model: Any, prompts: Sequence[str], sampling: SamplingOptions, options: argparse.Namespace
) -> list[Path]:
    """Draw every prompt and write single pictures and a grid; returns the files."""
    start = read_start(model, options)
    excite = None
    if options.attend_excite:
        excite = ExciteOptions(options.attend_excite, resolutions=options.resolution)
    out = Path(options.outdir)
    (out / "samples").mkdir(parents=True, exist_ok=True)
    taken = [int(path.stem) for path in (out / "samples").glob("*.png") if path.stem.isdecimal()]
    first, written = max(taken, default=-1) + 1, []
    for prompt in prompts:
        pictures: list[Tensor] = []
        for images in sample_images(
            model, prompt, sampling, count=options.n_samples, batches=options.n_iter, start=start,
            excite=excite,
        ):  # fmt: skip
            for picture in images.cpu():
                number = len(pictures)
                pictures.append(picture)
                if not options.skip_save:
                    path = out / "samples" / f"{first + number:04d}.png"
                    save_png(path, to_uint8(picture), metadata(prompt, sampling, options, number))
                    written.append(path)
        first += len(pictures)
        if not options.skip_grid:
            path = free_name(out, prompt)
            grid = image_grid(torch.stack(pictures), options.n_rows or options.n_samples)
            save_png(path, grid, metadata(prompt, sampling, options, 0))
            written.append(path)
    return written


def free_name(folder: Path, prompt: str) -> Path:
    """A file called after the prompt that does not exist yet."""
    stem = "".join(c if c.isalnum() else "-" for c in prompt)[:80].strip("-") or "prompt"
    names = itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
    return next(path for name in names if not (path := folder / f"{name}.png").exists())


def metadata(
    prompt: str, sampling: SamplingOptions, options: argparse.Namespace, number: int
) -> dict[str, str]:
    """What a picture was made with, kept in the file: with its own seed it can be drawn alone."""
    note = {
        "prompt": prompt,
        "seed": str(sampling.seed_of(number)),
        "sampler": sampling.sampler,
        "steps": str(sampling.steps),
        "scale": str(sampling.scale),
        "eta": str(sampling.eta),
        **origin(options),
    }
    if options.init_img:
        note |= {"init_img": Path(options.init_img).name, "strength": str(sampling.strength)}
    if options.attend_excite:
        note["attend_excite"] = ", ".join(options.attend_excite)
    return note


def run(arguments: Sequence[str] | None, **defaults: Any) -> None:
    """Draw what the command line says."""
    options = build_parser(**defaults).parse_args(arguments)
    prompts = read_prompts(options)
    sampling = make_sampling(options)
    model = open_model(options, prompts)
    if options.compile:
        compile_network(model)
    low = options.precision == "autocast"
    with bfloat16_products(torch.device(options.device), low):
        written = draw(model, prompts, sampling, options)
    logger.info("%d pictures in %s", len(written), options.outdir)


def main(arguments: Sequence[str] | None = None, **defaults: Any) -> int:
    """Run the script; the exit code is 0 on success, 1 on an error, 130 when interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return exit_code(lambda: run(arguments, **defaults))


if __name__ == "__main__":
    sys.exit(main())
