"""The flags that every script with a model has, and how such flags are read."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ldm.inference import check_prompts, load_model, put_words
from ldm.modules.word_files import read_renames, read_words
from ldm.prompts.spans import find_words

logger = logging.getLogger(__name__)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Which model with which learned words, and where it runs."""
    add = parser.add_argument
    # fmt: off
    add("--embedding_path", "--embedding-path", action="append", default=[], metavar="FILE",
        help="learned words; repeat for several files")
    add("--rename", action="append", default=[], metavar="[FILE:]WORD=NEW",
        help="call a learned word NEW, as where two files have the same one: 'B.pt:*=<cat>'")
    add("--ckpt_path", "--ckpt", default=None, metavar="FILE", help="weights of the model")
    add("--config", default=None, metavar="YAML", help="the model's configuration")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to draw")
    # fmt: on


def open_model(options: argparse.Namespace, prompts: Sequence[str] = ()) -> Any:
    """The model of a command line with its words, once `prompts` are known to have no others.

    Raises:
        ValueError: for files that do not fit, words that clash, or unknown words in a prompt.
        FileNotFoundError: when a file is not there.
    """
    check_device(options.device)
    files = options.embedding_path
    renames = read_renames(options.rename, files)
    if renames and not files:
        raise ValueError("--rename needs learned words to rename: give --embedding_path FILE")
    # The model, which takes much longer to read, comes last.
    found = read_words(files, renames)
    check_prompts(prompts, list(found))
    model = load_model(options.ckpt_path, options.config, device=options.device)
    words = put_words(model, found) if found else []
    if words and prompts and not any(find_words(prompt, words) for prompt in prompts):
        logger.warning(
            "%r has none of the learned words %s: they change nothing", prompts[0], ", ".join(words)
        )
    return model


def check_device(name: str) -> None:
    """Find out that a device is not there before a checkpoint is read.

    Raises:
        ValueError: naming those that are.
    """
    try:
        torch.empty(0, device=torch.device(name))
    except (RuntimeError, AssertionError) as error:
        gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        raise ValueError(
            f"--device {name}: not on this machine; there is {', '.join(['cpu', *gpus])}"
        ) from error


def origin(options: argparse.Namespace) -> dict[str, str]:
    """What a picture made with these flags says of its model and its words."""
    return {
        "words": ", ".join([*(Path(p).name for p in options.embedding_path), *options.rename]),
        "model": Path(options.ckpt_path).name if options.ckpt_path else "playroom",
    }


def count(text: str) -> int:
    """A number that is at least one."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: at least 1 is needed")
    return number


def numbers(text: str) -> list[int]:
    """A list such as ``16,8``."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers such as 16,8") from None


def shares(text: str) -> list[float]:
    """A list of numbers from 0 to 1, such as ``0.1,0.5``."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [-1.0]
    if not all(0 <= value <= 1 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}: expected shares from 0 to 1 such as 0.1,0.5")
    return values
