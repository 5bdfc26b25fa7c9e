"""Perceptual and adversarial training of a vector-quantised first stage (appendix G)."""

from typing import Any

from torch import Tensor

from ldm.modules.losses.contperceptual import AdversarialLoss, prefixed


class VQLPIPSWithDiscriminator(AdversarialLoss):
    """The loss of the public VQ autoencoders: pixels, perception, codebook and a discriminator.

    The keywords are those of :class:`AdversarialLoss` and `codebook_weight`.
    """

    def __init__(self, disc_start: int, codebook_weight: float = 1.0, **adversarial: Any) -> None:
        super().__init__(disc_start, **adversarial)
        self.codebook_weight = codebook_weight

    def forward(
        self,
        codebook_loss: Tensor,
        inputs: Tensor,
        reconstructions: Tensor,
        optimizer_idx: int,
        global_step: int,
        last_layer: Tensor | None = None,
        cond: Tensor | None = None,
        split: str = "train",
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of whose turn `optimizer_idx` says it is, a mean over values; what to log."""
        if optimizer_idx == 1:
            return self.discriminate(inputs, reconstructions, cond, global_step, split)
        nll_loss = self.distance(inputs, reconstructions).mean()
        fooling, parts = self.fooling(nll_loss, reconstructions, cond, last_layer, global_step)
        quant_loss = codebook_loss.mean()
        loss = nll_loss + fooling + self.codebook_weight * quant_loss
        log = {"total_loss": loss, "quant_loss": quant_loss, "nll_loss": nll_loss}
        return loss, prefixed({**log, "rec_loss": nll_loss, **parts}, split)
