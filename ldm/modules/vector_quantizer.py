"""The codebook of a vector-quantised first stage (VQ-VAE; latent diffusion, section 3.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VectorQuantizer(nn.Module):
    """Replaces every latent pixel by the nearest of `n_e` learned vectors of `e_dim` values.

    The codebook loss has two halves, one that draws the codes to the encoder and one that commits
    the encoder to its codes. `beta` weighs the first half if `legacy` (as public checkpoints were
    trained), else the second.
    """

    def __init__(
        self,
        n_e: int,
        e_dim: int,
        beta: float = 0.25,
        sane_index_shape: bool = False,
        legacy: bool = True,
    ) -> None:
        super().__init__()
        self.beta, self.legacy, self.sane_index_shape = beta, legacy, sane_index_shape
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / n_e, 1.0 / n_e)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """Quantise `z` (b,c,h,w): the codes in its place, the loss, and the indices in a triple.

        The gradient passes straight through to `z`. The indices are (b*h*w,), or (b,h,w) with
        `sane_index_shape`.
        """
        indices = self.nearest(z)
        z_q = self.get_codebook_entry(indices)
        code_loss, commitment = F.mse_loss(z_q, z.detach()), F.mse_loss(z_q.detach(), z)
        weighs_code = (self.beta, 1.0) if self.legacy else (1.0, self.beta)
        loss = weighs_code[0] * code_loss + weighs_code[1] * commitment
        z_q = z + (z_q - z).detach()
        return z_q, loss, (None, None, indices if self.sane_index_shape else indices.flatten())

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """The index of the code nearest to every pixel: (b,c,h,w) -> (b,h,w)."""
        pixels, codes = z.movedim(1, -1).float(), self.embedding.weight.float()
        # Rounding to half precision would confuse neighbouring codes.
        with torch.autocast(z.device.type, enabled=False):
            return (codes.square().sum(1) - 2.0 * pixels @ codes.T).argmin(-1)

    def get_codebook_entry(
        self, indices: Tensor, shape: tuple[int, int, int, int] | None = None
    ) -> Tensor:
        """The codes at `indices` (b,h,w) -> (b,c,h,w); flat indices need `shape` = (b,h,w,c)."""
        if shape is not None:
            indices = indices.reshape(shape[:3])
        return self.embedding(indices).movedim(-1, 1)
