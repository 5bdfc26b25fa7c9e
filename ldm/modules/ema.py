"""A running average of a model's weights, which samples better than the weights themselves."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class LitEma(nn.Module):
    """Exponential moving average of all parameters of `model`.

    Averages are buffers called like the parameters with all dots removed. With `use_num_updates`
    the decay starts small, min(decay, (1 + n) / (10 + n)) at the n-th update, so that early
    averages are not dominated by the initial weights.
    """

    decay: Tensor
    num_updates: Tensor

    def __init__(
        self, model: nn.Module, decay: float = 0.9999, use_num_updates: bool = True
    ) -> None:
        """Start from the weights that `model` has now.

        Raises:
            ValueError: when `decay` is not within [0, 1], or two names differ only in their dots.
        """
        super().__init__()
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay={decay} is not a share: it must lie between 0 and 1")
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32))
        first = 0 if use_num_updates else -1
        self.register_buffer("num_updates", torch.tensor(first, dtype=torch.int))
        self.m_name2s_name: dict[str, str] = {}
        for name, parameter in model.named_parameters():
            shadow = name.replace(".", "")
            if shadow in self._buffers:
                raise ValueError(
                    f"parameter {name!r}: another one is also called {shadow!r} without dots"
                )
            self.m_name2s_name[name] = shadow
            self.register_buffer(shadow, parameter.detach().clone())
        self.collected_params: list[Tensor] = []

    def _pairs(self, model: nn.Module) -> Iterator[tuple[Tensor, nn.Parameter]]:
        """Every average with the parameter that it belongs to."""
        parameters = dict(model.named_parameters())
        if parameters.keys() != self.m_name2s_name.keys():
            odd = sorted(parameters.keys() ^ self.m_name2s_name.keys())
            raise ValueError(
                f"this is not the model that is averaged: only one of them has {odd[:5]}"
            )
        for name, shadow in self.m_name2s_name.items():
            yield self.get_buffer(shadow), parameters[name]

    @torch.no_grad()
    def forward(self, model: nn.Module) -> None:
        """Move the averages towards the present weights of `model`."""
        # Without branching on values, which would wait for an accelerator.
        self.num_updates += self.num_updates >= 0
        ramp = (1 + self.num_updates) / (10 + self.num_updates)
        decay = torch.where(self.num_updates >= 0, self.decay.minimum(ramp), self.decay)
        for shadow, parameter in self._pairs(model):
            shadow.lerp_(parameter.to(shadow.dtype), (1 - decay).to(shadow.dtype))

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the weights of `model` by their averages."""
        for shadow, parameter in self._pairs(model):
            parameter.copy_(shadow)

    def store(self, parameters: Iterable[nn.Parameter]) -> None:
        """Remember `parameters` until `restore`."""
        self.collected_params = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def restore(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give `parameters` the values that they had at `store`.

        Raises:
            RuntimeError: when nothing, or another number of parameters, was stored.
        """
        parameters = list(parameters)
        if len(parameters) != len(self.collected_params):
            raise RuntimeError(
                f"{len(self.collected_params)} parameters were stored, {len(parameters)} are to be "
                "restored: call store with the same parameters first"
            )
        for stored, parameter in zip(self.collected_params, parameters, strict=True):
            parameter.copy_(stored)
        self.collected_params = []

    @contextmanager
    def scope(self, model: nn.Module) -> Iterator[None]:
        """Let `model` have the averaged weights within the block, exactly its own afterwards."""
        self.store(model.parameters())
        try:
            self.copy_to(model)
            yield
        finally:
            self.restore(model.parameters())
