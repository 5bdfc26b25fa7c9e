"""Perceptual and adversarial training of a continuous first stage (latent diffusion, appendix G).

Public name: ``LPIPSWithDiscriminator``. The perceptual network and the discriminator come from
taming-transformers, imported only when such a loss is built.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution

ADVICE = "this loss needs taming-transformers: pip install taming-transformers-rom1504 torchvision"


def build_perceptual() -> nn.Module:
    """The pretrained perceptual distance: two images (b,3,h,w) -> (b,1,1,1).

    Raises:
        ImportError: when taming-transformers is missing; the message says what to install.
    """
    try:
        from taming.modules.losses.lpips import LPIPS
    except ImportError as error:
        raise ImportError(ADVICE) from error
    return LPIPS().eval()


def build_discriminator(in_channels: int, num_layers: int, use_actnorm: bool) -> nn.Module:
    """A fresh patch discriminator: image (b,c,h,w) -> logits (b,1,h',w').

    Raises:
        ImportError: when taming-transformers is missing; the message says what to install.
    """
    try:
        from taming.modules.discriminator.model import NLayerDiscriminator, weights_init
    except ImportError as error:
        raise ImportError(ADVICE) from error
    discriminator = NLayerDiscriminator(in_channels, n_layers=num_layers, use_actnorm=use_actnorm)
    return discriminator.apply(weights_init)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """How far the logits are from at least 1 for real and at most -1 for fake images."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def vanilla_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The cross entropy of telling real from fake images."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


DISCRIMINATOR_LOSSES = {"hinge": hinge_loss, "vanilla": vanilla_loss}


class AdversarialLoss(nn.Module):
    """What the losses with a discriminator share.

    The autoencoder's and the discriminator's turns are told apart by `optimizer_idx`, 0 and 1. The
    discriminator takes part from step `disc_start` on. Subclasses may build other networks in
    `build_networks`.

    Raises:
        ValueError: for an unknown `disc_loss`.
    """

    #: The discriminator has an optimizer of its own.
    adversarial = True

    def __init__(  # noqa: PLR0913, PLR0917 (public keywords)
        self,
        disc_start: int,
        disc_num_layers: int = 3,
        disc_in_channels: int = 3,
        disc_factor: float = 1.0,
        disc_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        pixelloss_weight: float = 1.0,
        use_actnorm: bool = False,
        disc_conditional: bool = False,
        disc_loss: str = "hinge",
    ) -> None:
        super().__init__()
        if disc_loss not in DISCRIMINATOR_LOSSES:
            raise ValueError(f"disc_loss is {disc_loss!r}; accepted: {list(DISCRIMINATOR_LOSSES)}")
        self.perceptual_loss, self.discriminator = self.build_networks(
            disc_in_channels, disc_num_layers, use_actnorm
        )
        self.perceptual_loss.requires_grad_(False)
        self.disc_loss = DISCRIMINATOR_LOSSES[disc_loss]
        self.discriminator_iter_start, self.disc_conditional = disc_start, disc_conditional
        self.disc_factor, self.discriminator_weight = disc_factor, disc_weight
        self.perceptual_weight, self.pixel_weight = perceptual_weight, pixelloss_weight

    def build_networks(
        self, in_channels: int, num_layers: int, use_actnorm: bool
    ) -> tuple[nn.Module, nn.Module]:
        """The perceptual distance and the discriminator."""
        return build_perceptual(), build_discriminator(in_channels, num_layers, use_actnorm)

    def train(self, mode: bool = True) -> "AdversarialLoss":
        """Switch to training; the perceptual distance stays as it is, without dropout."""
        super().train(mode)
        self.perceptual_loss.eval()
        return self

    def factor(self, global_step: int) -> float:
        """The weight of everything adversarial: 0 before the discriminator starts."""
        return self.disc_factor if global_step >= self.discriminator_iter_start else 0.0

    def judge(self, images: Tensor, cond: Tensor | None) -> Tensor:
        """The discriminator's logits for `images`, beside their condition if it is conditional.

        Raises:
            ValueError: when a condition is missing or not expected.
        """
        if self.disc_conditional != (cond is not None):
            given = "none was given" if cond is None else "one was given"
            raise ValueError(
                f"disc_conditional is {self.disc_conditional} but of conditions {given}"
            )
        images = images.contiguous()
        return self.discriminator(images if cond is None else torch.cat((images, cond), dim=1))

    def distance(self, inputs: Tensor, reconstructions: Tensor) -> Tensor:
        """Pixel plus perceptual distance, for every value of the images: (b,c,h,w)."""
        distance = self.pixel_weight * (inputs - reconstructions).abs()
        if self.perceptual_weight > 0:
            perceived = self.perceptual_loss(inputs.contiguous(), reconstructions.contiguous())
            distance = distance + self.perceptual_weight * perceived
        return distance

    def adaptive_weight(self, nll_loss: Tensor, g_loss: Tensor, last_layer: Tensor) -> Tensor:
        """The weight that gives both losses equally long gradients at the decoder's last layer."""
        if not torch.is_grad_enabled() or not g_loss.requires_grad:
            return g_loss.new_zeros(())
        norms = [
            torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()
            for loss in (nll_loss, g_loss)
        ]
        return self.discriminator_weight * (norms[0] / (norms[1] + 1e-4)).clamp(0.0, 1e4).detach()

    def fooling(
        self,
        nll_loss: Tensor,
        reconstructions: Tensor,
        cond: Tensor | None,
        last_layer: Tensor | None,
        global_step: int,
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The weighted loss of reconstructions that the discriminator sees through, and its parts.

        Raises:
            ValueError: when `last_layer` is not given.
        """
        if last_layer is None:
            raise ValueError("the adaptive weight needs last_layer, the decoder's last weights")
        factor = self.factor(global_step)
        g_loss = -self.judge(reconstructions, cond).mean()
        weight = g_loss.new_zeros(())
        if self.disc_factor > 0:
            weight = self.adaptive_weight(nll_loss, g_loss, last_layer)
        parts: dict[str, Tensor | float] = {
            "d_weight": weight, "disc_factor": factor, "g_loss": g_loss,
        }  # fmt: skip
        return weight * factor * g_loss, parts

    def discriminate(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        cond: Tensor | None,
        global_step: int,
        split: str,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss on real and reconstructed images, and what to log."""
        real, fake = self.judge(inputs.detach(), cond), self.judge(reconstructions.detach(), cond)
        loss = self.factor(global_step) * self.disc_loss(real, fake)
        log = {"disc_loss": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        return loss, prefixed(log, split)


def prefixed(log: Mapping[str, Tensor | float], split: str) -> dict[str, Tensor]:
    """The values of `log` without gradient, under names that begin with ``<split>/``."""
    return {f"{split}/{name}": torch.as_tensor(value).detach() for name, value in log.items()}


class LPIPSWithDiscriminator(AdversarialLoss):
    """The loss of public KL autoencoders: pixels, perception, divergence and a discriminator."""

    def __init__(  # noqa: PLR0913, PLR0917 (public keywords)
        self,
        disc_start: int,
        logvar_init: float = 0.0,
        kl_weight: float = 1.0,
        pixelloss_weight: float = 1.0,
        disc_num_layers: int = 3,
        disc_in_channels: int = 3,
        disc_factor: float = 1.0,
        disc_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        use_actnorm: bool = False,
        disc_conditional: bool = False,
        disc_loss: str = "hinge",
    ) -> None:
        super().__init__(
            disc_start=disc_start,
            disc_num_layers=disc_num_layers,
            disc_in_channels=disc_in_channels,
            disc_factor=disc_factor,
            disc_weight=disc_weight,
            perceptual_weight=perceptual_weight,
            pixelloss_weight=pixelloss_weight,
            use_actnorm=use_actnorm,
            disc_conditional=disc_conditional,
            disc_loss=disc_loss,
        )
        self.kl_weight = kl_weight
        self.logvar = nn.Parameter(torch.full((), float(logvar_init)))

    def forward(  # noqa: PLR0913, PLR0917 (public signature)
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        posteriors: DiagonalGaussianDistribution,
        optimizer_idx: int,
        global_step: int,
        last_layer: Tensor | None = None,
        cond: Tensor | None = None,
        split: str = "train",
        weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of whose turn `optimizer_idx` says it is, summed over an image, and what to log.

        `weights` (broadcast to the images) weighs the reconstruction.
        """
        if optimizer_idx == 1:
            return self.discriminate(inputs, reconstructions, cond, global_step, split)
        distance = self.distance(inputs, reconstructions)
        nll = distance / self.logvar.exp() + self.logvar
        nll_loss = nll.sum() / len(nll)
        weighted_nll_loss = nll_loss if weights is None else (weights * nll).sum() / len(nll)
        kl_loss = posteriors.kl().sum() / len(nll)
        fooling, parts = self.fooling(nll_loss, reconstructions, cond, last_layer, global_step)
        loss = weighted_nll_loss + self.kl_weight * kl_loss + fooling
        log = {"total_loss": loss, "logvar": self.logvar, "kl_loss": kl_loss, "nll_loss": nll_loss}
        return loss, prefixed({**log, "rec_loss": distance.mean(), **parts}, split)
