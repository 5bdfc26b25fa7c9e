"""A reconstruction loss that needs no second network: pixels, edges and the latent's divergence."""

import torch
from torch import Tensor, nn

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution


class ReconstructionLoss(nn.Module):
    """Absolute error of pixels and of their differences, and a pull towards a normal latent.

    `gradient_weight` weighs the error of the differences between neighbouring pixels, which keeps
    edges sharp where the plain pixel error would blur them; `scales` counts the sizes at which both
    are taken, each half the one before. `kl_weight` weighs the divergence per latent value, so that
    it means the same at every resolution.

    Raises:
        ValueError: for a negative weight or fewer than one scale.
    """

    #: One optimizer is enough: there is no discriminator to train.
    adversarial = False

    def __init__(
        self,
        l1_weight: float = 1.0,
        gradient_weight: float = 0.5,
        kl_weight: float = 1e-4,
        scales: int = 1,
    ) -> None:
        super().__init__()
        weights = {"l1_weight": l1_weight, "gradient_weight": gradient_weight}
        for name, value in {**weights, "kl_weight": kl_weight}.items():
            if value < 0:
                raise ValueError(f"{name} is {value}: a weight cannot be negative; use 0 for none")
        if scales < 1:
            raise ValueError(f"scales is {scales}: at least the full size is compared; use 1")
        self.l1_weight, self.gradient_weight = l1_weight, gradient_weight
        self.kl_weight, self.scales = kl_weight, scales

    def forward(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        posteriors: DiagonalGaussianDistribution,
        split: str = "train",
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of `reconstructions` (b,c,h,w), and what to log under ``<split>/``."""
        error = (reconstructions - inputs).float()
        pixels, edges = _pyramid(error, self.scales)
        divergence = posteriors.kl().mean() / posteriors.mean[0].numel()
        loss = self.l1_weight * pixels + self.gradient_weight * edges
        loss = loss + self.kl_weight * divergence
        log = {"total_loss": loss, "rec_loss": pixels, "edge_loss": edges, "kl_loss": divergence}
        return loss, {f"{split}/{name}": value.detach() for name, value in log.items()}


def edge_error(error: Tensor) -> Tensor:
    """The mean absolute difference between neighbours in both directions of `error` (b,c,h,w)."""
    return 0.5 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())


def _pyramid(error: Tensor, scales: int) -> tuple[Tensor, Tensor]:
    """The pixel and edge errors, averaged over `scales` halvings of the error image."""
    pixels, edges = [], []
    for scale in range(scales):
        error = nn.functional.avg_pool2d(error, 2) if scale else error
        pixels.append(error.abs().mean())
        edges.append(edge_error(error))
    return torch.stack(pixels).mean(), torch.stack(edges).mean()
