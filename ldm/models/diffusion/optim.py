"""Which parameters a run trains, and with what optimizer."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from ldm.util import count_params, has_bfloat16, instantiate_from_config

logger = logging.getLogger(__name__)

#: What trains a network: AdamW, or Muon for its matrices and AdamW for everything else.
OPTIMIZERS = ("adamw", "muon")
#: Muon's quintic a x + b x^3 + c x^5, which takes singular values in (0, 1] towards one.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def adamw(
    parameters: list[nn.Parameter],
    learning_rate: float,
    *,
    scheduler_config: Mapping[str, Any] | None = None,
    extra_groups: list[dict[str, Any]] | None = None,
    weight_decay: float = 1e-2,
    orthogonal: Iterable[nn.Parameter] = (),
) -> Any:
    """AdamW as Lightning wants it, with a per-step schedule when a scheduler is configured.

    Those of `parameters` that are among `orthogonal` take the steps of `Muon`.

    Raises:
        ValueError: when nothing is trainable.
    """
    turned = {id(parameter) for parameter in orthogonal}
    groups = [
        {"params": [p for p in parameters if id(p) not in turned], "lr": learning_rate},
        {"params": [p for p in parameters if id(p) in turned], "lr": learning_rate,
         "orthogonal": True},
        *(extra_groups or []),
    ]  # fmt: skip
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError(
            "there is nothing to train: every parameter is frozen. Give the model words to learn "
            "(--sentence or a personalization_config), or set unfreeze_model: true."
        )
    count = sum(parameter.numel() for group in groups for parameter in group["params"])
    logger.info("training %s parameters", f"{count:,}")
    kind = Muon if turned else AdamW
    optimizer = kind(groups, lr=learning_rate, weight_decay=weight_decay)
    if scheduler_config is None:
        return optimizer
    scheduler = instantiate_from_config(scheduler_config)
    return [optimizer], [
        {"scheduler": LambdaLR(optimizer, scheduler.schedule), "interval": "step", "frequency": 1}
    ]


def matrices(module: nn.Module) -> list[nn.Parameter]:
    """The weights of all linear layers and convolutions of `module` that are trained.

    Not those of embeddings: their rows are vectors of their own, not a map.
    """
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d)
    return [
        part.get_parameter("weight")
        for part in module.modules()
        if isinstance(part, layers) and part.weight.requires_grad
    ]


class Muon(AdamW):
    """AdamW that takes a step of equal length in every direction in groups marked ``orthogonal``.

    There the gradient's running sum, a matrix (filters flattened), is brought close to the nearest
    orthogonal one (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks")
    and scaled so that its root mean square is that of AdamW's usual step, 0.2 of the learning rate
    (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2). `torch.optim.Muon` does the
    same for one matrix at a time, and takes neither filters nor other parameters beside them.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(groups, lr=lr, weight_decay=weight_decay)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure`, if given, computes the gradients and the loss to return."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        everything = self.param_groups
        for group in everything:
            if group.get("orthogonal"):
                self._turn(group)
        self.param_groups = [group for group in everything if not group.get("orthogonal")]
        try:
            super().step()
        finally:
            self.param_groups = everything
        return loss

    def _turn(self, group: dict[str, Any]) -> None:
        """Muon's step for one group; matrices of one shape are taken together."""
        alike: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                direction = self._direction(parameter, parameter.grad)
                alike.setdefault(tuple(direction.shape), []).append((parameter, direction))
        for shape, members in alike.items():
            length = -0.2 * group["lr"] * max(shape) ** 0.5
            steps = orthogonalized(torch.stack([direction for _, direction in members]))
            for (parameter, _), step in zip(members, steps, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(step.reshape(parameter.shape), alpha=length)

    def _direction(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        """Its gradient with Nesterov's momentum, as a matrix of one row for each output."""
        state = self.state[parameter]
        if not state:
            # AdamW looks for a count of steps in every state that it loads.
            state["step"] = torch.zeros(())
            state["momentum"] = torch.zeros_like(gradient)
        momentum = state["momentum"].mul_(self.momentum).add_(gradient)
        return gradient.add(momentum, alpha=self.momentum).flatten(1)


def orthogonalized(matrices: Tensor, rounds: int = 5) -> Tensor:
    """`matrices` (k, m, n) with singular values brought to about one (0.7 to 1.2), float32.

    A matrix of zeros stays one.
    """
    a, b, c = _QUINTIC
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    x = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    x = x.bfloat16() if has_bfloat16(x.device) else x
    for _ in range(rounds):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    x = x.to(matrices.dtype)
    return x.mT if wide is not matrices else x


def describe(module: nn.Module) -> str:
    """The size of a module in words, for the log."""
    return f"{type(module).__name__} with {count_params(module) / 1e6:.2f} M parameters"
