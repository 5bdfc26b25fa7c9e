"""How a run makes itself at home on a machine: what memory it keeps, how its weights lie in it."""

import ctypes
import sys
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ldm.errors import UserError

#: Options of the C library's ``mallopt``, and values for them: blocks below a gigabyte come from
#: the heap, and the heap is given back only when two gigabytes of it are free.
_KEEP = {"M_MMAP_THRESHOLD": (-3, 1 << 30), "M_TRIM_THRESHOLD": (-1, 2**31 - 1)}
#: What `frozen_dtype` may be.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def keep_freed_memory() -> bool:
    """Let the C library keep the memory of freed tensors for the next step; says whether it does.

    Otherwise it asks the system for the same pages in every step, which clears them each time: a
    sixth of a small step. On Linux with glibc only.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and [mallopt(*pair) for pair in _KEEP.values()] == [1, 1]


def settle(model: Any, config: DictConfig) -> None:
    """Lay the weights of `model` out in memory as the configuration says.

    ``channels_last: true`` puts the channels of a pixel side by side; ``frozen_dtype`` (see
    `narrow_frozen`) makes the frozen network smaller. ``compile: true``, or the name of a backend
    of `torch.compile`, compiles the U-Net.
    """
    dtype = config.get("frozen_dtype")
    if dtype is not None:
        if dtype not in DTYPES:
            raise UserError(f"frozen_dtype {dtype!r}: accepted are {', '.join(DTYPES)}")
        narrow_frozen(model, DTYPES[dtype])
    if config.get("channels_last"):
        model.to(memory_format=torch.channels_last)
    if compiled := config.get("compile"):
        compile_network(model, "inductor" if compiled is True else str(compiled))


def compile_network(model: Any, backend: str = "inductor") -> None:
    """Compile the U-Net of `model` where it stands; its keys and what watches it stay the same.

    Raises:
        UserError: for a backend that this torch does not have.
    """
    known = ["eager", "aot_eager", *torch.compiler.list_backends()]
    if backend not in known:
        raise UserError(f"compile {backend!r}: accepted are true, {', '.join(known)}")
    model.model.diffusion_model.compile(backend=backend)


def narrow_frozen(model: Any, dtype: torch.dtype) -> None:
    """Turn the frozen network and text encoder of `model` into `dtype`, once and for all.

    Autocast converts every weight in every step instead. The learned words, their start, the loss
    and the first stage stay in float32, for which the table of token embeddings does too.

    Raises:
        UserError: when something of it is trained.
    """
    encoder = model.cond_stage_model
    parts = [model.model] if encoder is None else [model.model, encoder]
    if next(model.model.parameters()).dtype == dtype:
        return
    if any(parameter.requires_grad for part in parts for parameter in part.parameters()):
        raise UserError(
            "frozen_dtype is for runs that learn words: this one trains the network, for which "
            "there is lightning.trainer.precision=bf16-mixed"
        )
    table: nn.Embedding | None = getattr(encoder, "token_embedding", None)
    exact = None if table is None else table.weight.data
    for part in parts:
        part.to(dtype)
    if table is not None and exact is not None:
        table.weight.data = exact

        def narrowed(_module: nn.Module, _args: tuple[Any, ...], embedded: Tensor) -> Tensor:
            return embedded.to(dtype)

        table.register_forward_hook(narrowed)
