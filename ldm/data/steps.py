"""Which examples belong to which training step, as a function of the step number alone.

A :class:`StepKey` names one example of one step of one run. A dataset that can be asked for such
keys (it says so by an attribute ``keyed = True``) draws everything random from the key, so a
resumed run needs only the step number, and neither the number of workers nor of processes changes
what is learned from.
"""

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler, default_collate

from ldm.util import step_generator


class StepKey(NamedTuple):
    """One example: the training step, its place in the batch of that step, and its run."""

    step: int
    slot: int
    run: int = 0

    def generator(self, seed: int) -> torch.Generator:
        """The source of everything random in this example."""
        return step_generator(seed, self.run, self.step, stream=self.slot)


class StepBatchSampler(Sampler[list[StepKey]]):
    """The keys of each step in turn, from `start_step` on: endlessly, or for `max_steps` steps.

    `batch_size` is that of the whole step over all processes, for each packed run; the process
    `rank` of `world_size` gets its own part of the slots. `runs` are the numbers of the packed
    runs, or how many there are; a list is read anew for each step, so that a run can leave. The
    keys of a run stand together: a batch is (runs, slots) flattened.

    Raises:
        ValueError: for a size or step out of range, or a batch that cannot be split evenly.
    """

    def __init__(
        self,
        batch_size: int,
        start_step: int = 0,
        max_steps: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        *,
        runs: int | Sequence[int] = 1,
    ) -> None:
        self.runs: Sequence[int] = range(runs) if isinstance(runs, int) else runs
        if min(batch_size, len(self.runs)) < 1 or min(start_step, max_steps or 0) < 0:
            raise ValueError(
                f"batch_size={batch_size}, runs={runs}, start_step={start_step}, max_steps="
                f"{max_steps}: sizes must be at least 1, steps at least 0"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..{world_size - 1}, got {rank}")
        if batch_size % world_size:
            raise ValueError(
                f"a batch of {batch_size} cannot be split evenly over {world_size} processes; "
                f"choose a multiple of {world_size}"
            )
        share = batch_size // world_size
        self.slots = range(rank * share, (rank + 1) * share)
        self.start_step, self.max_steps = start_step, max_steps

    def __iter__(self) -> Iterator[list[StepKey]]:
        """Yield one list of keys a step."""
        step = self.start_step
        while self.max_steps is None or step < self.start_step + self.max_steps:
            yield [StepKey(step, slot, run) for run in self.runs for slot in self.slots]
            step += 1

    def __len__(self) -> int:
        """How many steps there are."""
        if self.max_steps is None:
            raise TypeError("this sampler has no end, so it has no length")
        return self.max_steps


def collate(examples: Sequence[Any]) -> Any:
    """One batch from several examples: figures become tensors, everything else a list.

    Arrays are stacked, truth values, whole and real numbers become bool, int64 and float32 tensors
    (b,); captions and other objects stay as they are, in a list. Examples that are not mappings
    are left to :mod:`torch`.

    Raises:
        ValueError: when examples have different keys or shapes; the message names them.
    """
    if not isinstance(examples[0], Mapping):
        return default_collate(list(examples))
    keys = examples[0].keys()
    for example in examples:
        if example.keys() != keys:
            raise ValueError(
                f"the examples of a batch must have the same entries: {sorted(keys)} in one, "
                f"{sorted(example.keys())} in another"
            )
    return {key: _gather(key, [example[key] for example in examples]) for key in keys}


def _gather(name: str, values: list[Any]) -> Tensor | list[Any]:
    """Stack `values` if they are figures."""
    first = values[0]
    if isinstance(first, (np.ndarray, Tensor)):
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            raise ValueError(
                f"{name!r} has different shapes in one batch, {sorted(shapes)}: give the dataset a "
                "`size`, or use batch_size 1"
            )
        return torch.stack([torch.as_tensor(value) for value in values])
    if isinstance(first, (bool, np.bool_)):
        return torch.tensor([bool(value) for value in values])
    if isinstance(first, Integral):
        return torch.tensor([int(value) for value in values])
    if isinstance(first, Real):
        return torch.tensor([float(value) for value in values], dtype=torch.float32)
    return values
