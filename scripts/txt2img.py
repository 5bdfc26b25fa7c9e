"""Draw pictures from prompts, learned words included.

    python scripts/txt2img.py --embedding_path logs/RUN/checkpoints/embeddings.pt --prompt "a photo
    of a blue <bear>"

Without --ckpt_path the small model that ships with the project is used; with it, the configuration
is found from the checkpoint.
"""

import argparse
import itertools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ldm.inference import (
    SamplingOptions,
    check_prompts,
    load_model,
    load_words,
    sample_images,
)
from ldm.training.cli import Parser
from ldm.visual import image_grid, save_png, to_uint8

logger = logging.getLogger("txt2img")


def count(text: str) -> int:
    """A number that is at least one."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: at least 1 is needed")
    return number


def build_parser(**defaults: Any) -> argparse.ArgumentParser:
    """The options of the original script; `defaults` of a preset."""
    parser = Parser(description="Draw pictures from prompts.", allow_abbrev=False)
    add = parser.add_argument
    add("--prompt", action="append", help="what to draw; repeat for several")
    add("--from-file", help="a text file with one prompt a line")
    add("--embedding_path", "--embedding-path", action="append", default=[], metavar="FILE",
        help="learned words; repeat for several files")  # fmt: skip
    add("--ckpt_path", "--ckpt", default=None, metavar="FILE", help="weights of the model")
    add("--config", default=None, metavar="YAML", help="the model's configuration")
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
    add("--fixed_code", action="store_true", help="every picture starts from the same noise")
    add("--n_rows", type=int, default=0, help="columns of the grid")
    add("--skip_grid", action="store_true", help="write single pictures only")
    add("--skip_save", action="store_true", help="write the grid only")
    add("--precision", choices=("full", "autocast"), default="full",
        help="full is float32, autocast bfloat16")  # fmt: skip
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to draw")
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


def draw(model: Any, prompts: Sequence[str], options: argparse.Namespace) -> list[Path]:
    """Draw every prompt and write single pictures and a grid; returns the files."""
    sampling = SamplingOptions(
        sampler="plms" if options.plms else options.sampler,
        steps=options.ddim_steps,
        scale=options.scale,
        eta=options.ddim_eta,
        height=options.H,
        width=options.W,
        seed=options.seed,
        fixed_code=options.fixed_code,
    )
    out = Path(options.outdir)
    (out / "samples").mkdir(parents=True, exist_ok=True)
    taken = [int(path.stem) for path in (out / "samples").glob("*.png") if path.stem.isdecimal()]
    first, written = max(taken, default=-1) + 1, []
    for prompt in prompts:
        pictures: list[torch.Tensor] = []
        for images in sample_images(
            model, prompt, sampling, count=options.n_samples, batches=options.n_iter
        ):
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
            save_png(path, grid, metadata(prompt, sampling, options, None))
            written.append(path)
    return written


def free_name(folder: Path, prompt: str) -> Path:
    """A file called after the prompt that does not exist yet."""
    stem = "".join(c if c.isalnum() else "-" for c in prompt)[:80].strip("-") or "prompt"
    names = itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
    return next(path for name in names if not (path := folder / f"{name}.png").exists())


def metadata(
    prompt: str, sampling: SamplingOptions, options: argparse.Namespace, number: int | None
) -> dict[str, str]:
    """What a picture was made with, kept in the file; its noise is that of seed + number."""
    return {
        "prompt": prompt,
        "seed": str(sampling.seed),
        "number": "" if number is None else str(number),
        "sampler": sampling.sampler,
        "steps": str(sampling.steps),
        "scale": str(sampling.scale),
        "eta": str(sampling.eta),
        "words": ", ".join(Path(path).name for path in options.embedding_path),
        "model": Path(options.ckpt_path).name if options.ckpt_path else "playroom",
    }


def main(arguments: Sequence[str] | None = None, **defaults: Any) -> int:
    """Run the script; the exit code is 0 on success and 1 on an error."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        options = build_parser(**defaults).parse_args(arguments)
        prompts = read_prompts(options)
        model = load_model(options.ckpt_path, options.config, device=options.device)
        known = load_words(model, options.embedding_path) if options.embedding_path else []
        check_prompts(prompts, known)
        kind = torch.device(options.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=options.precision == "autocast"):
            written = draw(model, prompts, options)
    except (ValueError, OSError) as error:
        logger.error("error: %s", error)
        return 1
    logger.info("%d pictures in %s", len(written), options.outdir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
