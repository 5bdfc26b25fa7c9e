"""Encode once: the posterior of every training image and its flip is computed a single time.

Drawing ``z = mean + std * noise`` from a kept posterior is the same distribution as encoding the
image anew every step, at none of the cost. Each image is encoded alone, so that what is kept does
not depend on which images happened to share a batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution


class PosteriorCache:
    """Posteriors by (run, image, flip), filled when an image is first seen.

    Kept are the parameters of a distribution, or the latent itself where `encode` gives that (VQ).
    """

    def __init__(self, encode: Callable[[Tensor], DiagonalGaussianDistribution | Tensor]) -> None:
        self.encode = encode
        self.exact = False
        self.kept: dict[tuple[int, int, bool], Tensor] = {}

    def __len__(self) -> int:
        return len(self.kept)

    @torch.no_grad()
    def __call__(
        self, images: Tensor, run: Tensor, image_id: Tensor, flip: Tensor
    ) -> DiagonalGaussianDistribution | Tensor:
        """The posterior (or latent) of images (b, 3, H, W), each identified by its keys (b,)."""
        keys = list(zip(run.tolist(), image_id.tolist(), flip.bool().tolist(), strict=True))
        for row, key in enumerate(keys):
            if key not in self.kept:
                encoded = self.encode(images[row : row + 1])
                self.exact = isinstance(encoded, Tensor)
                self.kept[key] = encoded if isinstance(encoded, Tensor) else encoded.parameters
        together = torch.cat([self.kept[key] for key in keys])
        return together if self.exact else DiagonalGaussianDistribution(together)
