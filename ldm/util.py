"""Small helpers for every layer: objects from configs, freezing, stateless randomness."""

import importlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from inspect import isfunction
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Values of ``target`` that stand for "no module here" in the public configs.
SPECIAL_TARGETS = ("__is_first_stage__", "__is_unconditional__")


def exists(value: object) -> bool:
    """Whether `value` is given (not ``None``)."""
    return value is not None


def default(value: T | None, fallback: T | Callable[[], T]) -> T:
    """`value` if given, else `fallback` (called if it is a function)."""
    if value is not None:
        return value
    return fallback() if isfunction(fallback) else cast(T, fallback)


def count_params(module: nn.Module) -> int:
    """How many parameters `module` has."""
    return sum(parameter.numel() for parameter in module.parameters())


def progress_bar(values: Iterable[T], label: str | None, unit: str = "it") -> Iterator[T]:
    """`values`, with a line on standard error that says how far they are; none without a label.

    Into a file or a pipe a new state is written every ten seconds at most.
    """
    hidden = label is None
    return iter(tqdm(values, label, unit=unit, leave=False, mininterval=_quiet(), disable=hidden))


@contextmanager
def progress_of(label: str, total: int, unit: str = "it") -> Iterator[Callable[[int], object]]:
    """The same for work that comes in pieces: what it yields is told how much more is done."""
    with tqdm(desc=label, total=total, unit=unit, leave=False, mininterval=_quiet()) as shown:
        yield shown.update


def print_rows(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on the error stream, beside the log; a learnable word stays on one line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading == "word")
    for row in rows:
        # As plain text: a word may look like the markup of the table's library.
        table.add_row(*map(Text, row))
    Console(stderr=True).print(table)


def _quiet() -> float:
    """Seconds between two states of a progress line: fewer lines where nobody watches."""
    return 0.1 if sys.stderr.isatty() else 10.0


def get_obj_from_str(string: str, reload: bool = False) -> Any:
    """The object a dotted name stands for, such as ``ldm.models.autoencoder.AutoencoderKL``.

    Raises:
        ImportError: when the module or the name in it does not exist; the message names both.
    """
    module_name, _, name = string.rpartition(".")
    if not module_name:
        raise ImportError(f"{string!r} is not a dotted name such as 'torch.nn.Identity'")
    module = importlib.import_module(module_name)
    if reload:
        module = importlib.reload(module)
    try:
        return getattr(module, name)
    except AttributeError:
        raise ImportError(f"module {module_name!r} has no {name!r} (target {string!r})") from None


def instantiate_from_config(config: Mapping[str, Any] | str, **overrides: Any) -> Any:
    """Build the object that ``{"target": dotted name, "params": {...}}`` describes.

    `overrides` are added to the parameters. The special strings of the public configs give
    ``None``.

    Raises:
        ValueError: when there is no ``target``.
    """
    if config in SPECIAL_TARGETS:
        return None
    if not isinstance(config, Mapping) and not hasattr(config, "get"):
        raise ValueError(f"expected a mapping with 'target' and 'params', got {config!r}")
    target = config.get("target")
    if target is None:
        raise ValueError(
            f"this part of the config names no class: expected a key 'target', got {list(config)}"
        )
    return get_obj_from_str(target)(**{**(config.get("params") or {}), **overrides})


def freeze(module: nn.Module) -> nn.Module:
    """Switch `module` to inference for good: no gradients, evaluation mode."""
    return module.requires_grad_(False).eval()


def step_generator(seed: int, run: int, step: int, stream: int = 0) -> torch.Generator:
    """The source of everything random in one training step of one run.

    A function of its arguments alone: a resumed run needs only the step number, and neither the
    number of workers nor other runs in the same batch can change what is drawn. `stream` separates
    independent uses within a step.
    """
    words = np.random.SeedSequence((seed, run, step, stream)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))


def append_dims(x: Tensor, ndim: int) -> Tensor:
    """`x` with trailing axes of size one until it has `ndim` of them."""
    return x.reshape(x.shape + (1,) * (ndim - x.ndim))


def mean_flat(x: Tensor) -> Tensor:
    """The mean over all axes but the first: (b, ...) -> (b,)."""
    return x.flatten(1).mean(1)


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 itself.

    A CPU without instructions for it takes two hundred times as long as in float32.
    """
    if device.type != "cpu":
        return True
    told = getattr(torch.cpu, "get_capabilities", dict)  # not in every version
    features: Mapping[str, object] = told()
    return any(has is True for name, has in features.items() if "bf16" in name)


@cache
def tell_no_bfloat16() -> None:
    """Say, once, that this CPU computes in float32 what was to be in bfloat16."""
    logger.warning("this CPU has no instructions for bfloat16: computing in float32 instead")


def bfloat16_products(device: torch.device, wanted: bool = True) -> torch.autocast:
    """A context in which products are in bfloat16, where `wanted` and where that is fast."""
    fast = has_bfloat16(device)
    if wanted and not fast:
        tell_no_bfloat16()
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and fast)
