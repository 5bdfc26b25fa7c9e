"""Training the judge on drawn scenes, some of them as an autoencoder would show them."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.checkpoint import load_with_report, read_state_dict
from ldm.data.playroom.labels import UNKNOWN
from ldm.evaluation.judge_network import Features, JudgeNetwork, whole_map
from ldm.util import freeze, instantiate_from_config


class JudgeTraining(pl.LightningModule):
    """A `JudgeNetwork` that learns from `ldm.data.playroom.labels.LabelledScenes`.

    Args:
        network: arguments of the network.
        first_stage_config: the autoencoder through which a share of the pictures is passed.
        first_stage_ckpt: its weights, alone or within those of a whole model.
        through_first_stage: that share.
        first_stage_from: the step at which this begins; before, it would only cost time.
        latent_noise: the most noise that is added to those latents, in standard deviations.
        degraded: the share of pictures that is blurred or made noisy.
        scheduler_config: an object whose ``schedule(step)`` is multiplied with the learning rate.
        ckpt_path: weights of a judge to continue from.
    """

    #: Set by whoever trains, from ``base_learning_rate``.
    learning_rate = 2e-3
    monitor = "val/loss"

    def __init__(  # noqa: PLR0913 - the choices of a recipe
        self,
        network: Mapping[str, Any] | None = None,
        first_stage_config: Mapping[str, Any] | None = None,
        first_stage_ckpt: str | None = None,
        *,
        through_first_stage: float = 0.25,
        first_stage_from: int = 0,
        latent_noise: float = 0.3,
        degraded: float = 0.3,
        weight_decay: float = 0.01,
        scheduler_config: Mapping[str, Any] | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        super().__init__()
        self.network = JudgeNetwork(**(network or {}))
        self.through_first_stage, self.latent_noise = through_first_stage, latent_noise
        self.first_stage_from = first_stage_from
        self.degraded, self.weight_decay = degraded, weight_decay
        self.scheduler_config = scheduler_config
        # In a tuple, so that its weights are no part of the judge's.
        self._first_stage: tuple[Any, ...] = ()
        if first_stage_config is not None:
            self._first_stage = (_first_stage(first_stage_config, first_stage_ckpt),)
        if ckpt_path is not None:
            state = read_state_dict(ckpt_path)
            load_with_report(self, state, core=("network.",), source=ckpt_path)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """One step on pictures as they are, degraded, and as the autoencoder shows them."""
        return self._loss(self.disturbed(_images(batch)), batch, "train")

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log losses and accuracies on pictures as they are."""
        self._loss(_images(batch), batch, "val")

    def disturbed(self, images: Tensor) -> Tensor:
        """Pictures (b,3,h,w), shares of which are degraded or passed through the autoencoder."""
        count = round(self.degraded * len(images))
        parts = [_degraded(images[:count])] if count else []
        begun = self._first_stage and self.global_step >= self.first_stage_from
        through = round(self.through_first_stage * len(images)) if begun else 0
        if through:
            parts.append(self._reconstructed(images[count : count + through]))
        return torch.cat([*parts, images[count + through :]])

    @torch.no_grad()
    def _reconstructed(self, images: Tensor) -> Tensor:
        """Pictures encoded, a little displaced, and decoded."""
        (stage,) = self._first_stage
        stage.to(images.device)
        latents = stage.encode(images).sample()
        amount = self.latent_noise * torch.rand(len(images), 1, 1, 1, device=images.device)
        noise = torch.randn_like(latents) * latents.std() * amount
        return stage.decode(latents + noise).clamp(-1, 1).float()

    def _loss(self, images: Tensor, batch: Mapping[str, Any], split: str) -> Tensor:
        found = self.network(images.contiguous(memory_format=torch.channels_last))
        losses, shares = _whole(found, batch)
        # No further than the fullest scene of the batch: most have one thing or two.
        most = max(1, int((batch["things"] != UNKNOWN).any(0).nonzero().amax() + 1))
        things = batch["things"][:, :most]
        numbers = torch.arange(most, device=images.device) + 1
        masks = batch["instances"][:, None] == numbers[:, None, None]
        described = self.network.objects(images, found, masks, things)
        answers = {
            name: (batch[name][:, :most], logits)
            for name, logits in self.network.facts(described).items()
        }
        if most > 1:
            truth = batch["relations"][:, :most, :most]
            answers["relations"] = truth, self.network.relations(described, masks)
        for name, (truth, logits) in answers.items():
            losses[name], shares[name] = _classified(logits.float(), truth)
        loss = torch.stack(list(losses.values())).sum()
        size = len(images)
        self.log(f"{split}/loss", loss, batch_size=size, prog_bar=split == "train")
        self.log_dict({f"{split}/{k}_right": v for k, v in shares.items()}, batch_size=size)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW, with the schedule if there is one."""
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        if self.scheduler_config is None:
            return optimizer
        schedule = instantiate_from_config(self.scheduler_config).schedule
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Any], **_: Any) -> dict[str, Tensor]:
        """Images (b,3,h,w) to look at: pictures as trained on, their true and read class maps."""
        images = self.disturbed(_images(batch).to(self.device))
        read = whole_map(self.network(images).pixels).argmax(1)
        truth = batch["labels"].to(read)
        return {"inputs": images, "truth": _coloured(truth), "read": _coloured(read)}


def _first_stage(config: Mapping[str, Any], path: str | None) -> Any:
    """The frozen autoencoder."""
    stage = instantiate_from_config(config)
    if path is not None:
        stage.init_from_ckpt(path)
    return freeze(stage).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _images(batch: Mapping[str, Any]) -> Tensor:
    return batch["image"].movedim(-1, 1)


def _degraded(images: Tensor) -> Tensor:
    """Each picture blurred a little, by an amount of its own, and with a little noise."""
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share, noise = torch.rand(2, len(images), 1, 1, 1, device=images.device)
    mixed = images + share * (blurred - images)
    return (mixed + 0.12 * noise * torch.randn_like(images)).clamp(-1, 1)


def _whole(
    found: Features, batch: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and accuracies of the class maps, of what is present, and of the place."""
    # The map is half as fine as the truth: any pixel of a cell will do, another one each time.
    row, column = torch.randint(2, (2,)).tolist()
    labels = batch["labels"][:, row::2, column::2].long()
    pixels = found.pixels.movedim(1, -1).float()
    things = batch["things"]
    present = torch.zeros_like(found.presence, dtype=torch.float32)
    known = things != UNKNOWN
    present.scatter_add_(1, things.clamp(min=0), known.float())
    sure = (batch["absent"] | (present > 0)).float()
    presence = F.binary_cross_entropy_with_logits(
        found.presence.float(), present, weight=sure, reduction="sum"
    )
    placed, at = _classified(found.place.float(), batch["place"])
    losses = {
        "pixels": 2 * F.cross_entropy(pixels.flatten(0, 2), labels.flatten()),
        "presence": presence / len(things),
        "place": 0.3 * placed,
    }
    right = ((found.presence > 0) == (present > 0)) | (sure == 0)
    shares = {
        "presence": right.all(1).float().mean(),
        "place": at,
    }
    return losses, shares


def _classified(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and accuracy of logits (..., n), where the truth (...) is known."""
    known = truth != UNKNOWN
    logits, truth = logits[known], truth[known]
    if not len(truth):
        return logits.sum() * 0, logits.new_ones(())
    return F.cross_entropy(logits, truth), (logits.argmax(-1) == truth).float().mean()


def _coloured(labels: Tensor) -> Tensor:
    """Class maps (b,h,w) in colours that differ, (b,3,h,w) in [-1,1]; the background is black."""
    turns = (
        labels[:, None] * torch.tensor([0.618, 0.382, 0.271], device=labels.device)[:, None, None]
    )
    return torch.where(labels[:, None] > 0, 2 * (turns % 1) - 1, -1.0)
