"""What several processes that share one batch must know of each other.

A term that looks at one image at a time needs none of this. One that compares images, or remembers
them, sees here those of all processes, so that it says what one process would say of the whole
batch.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


def processes() -> int:
    """How many processes learn together."""
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def everyones_rows(rows: Tensor) -> tuple[Tensor, slice]:
    """The rows (n, ...) of all processes in the order of their ranks, and which are our own.

    A gradient reaches our own rows, times the number of processes: averaged over the processes, as
    gradients of parameters are, it is that of a loss of all rows.
    """
    count = processes()
    if count == 1:
        return rows, slice(0, len(rows))
    sizes = everyones([len(rows)])
    longest = max(sizes)
    padded = rows.detach().new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    gathered = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(gathered, padded.contiguous())
    rank = distributed.get_rank()
    parts = [part[:size] for part, size in zip(gathered, sizes, strict=True)]
    parts[rank] = rows.view_as(rows)
    if rows.requires_grad:
        parts[rank].register_hook(lambda gradient: gradient * count)
    first = sum(sizes[:rank])
    return torch.cat(parts), slice(first, first + len(rows))


def everyones(entries: list[T]) -> list[T]:
    """The lists of all processes, one after the other in the order of their ranks."""
    count = processes()
    if count == 1:
        return entries
    gathered: list[Any] = [None] * count
    distributed.all_gather_object(gathered, entries)
    return [entry for part in gathered for entry in part]
