"""Which parameters a run trains, and with what optimizer."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ldm.util import count_params, instantiate_from_config

logger = logging.getLogger(__name__)


def adamw(
    parameters: list[nn.Parameter],
    learning_rate: float,
    *,
    scheduler_config: Mapping[str, Any] | None = None,
    extra_groups: list[dict[str, Any]] | None = None,
    weight_decay: float = 1e-2,
) -> Any:
    """AdamW as Lightning wants it, with a per-step schedule when a scheduler is configured.

    Raises:
        ValueError: when nothing is trainable.
    """
    groups = [{"params": parameters, "lr": learning_rate}, *(extra_groups or [])]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError(
            "there is nothing to train: every parameter is frozen. Give the model words to learn "
            "(--sentence or a personalization_config), or set unfreeze_model: true."
        )
    count = sum(parameter.numel() for group in groups for parameter in group["params"])
    logger.info("training %s parameters", f"{count:,}")
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay)
    if scheduler_config is None:
        return optimizer
    scheduler = instantiate_from_config(scheduler_config)
    return [optimizer], [
        {"scheduler": LambdaLR(optimizer, scheduler.schedule), "interval": "step", "frequency": 1}
    ]


def describe(module: nn.Module) -> str:
    """The size of a module in words, for the log."""
    return f"{type(module).__name__} with {count_params(module) / 1e6:.2f} M parameters"
