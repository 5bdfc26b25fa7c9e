"""A whole model at toy size with two learned words."""

import pytest
import torch

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.prompts.sentence import LearnableWord
from ldm.util import freeze
from tests.golden import fill
from tests.training.toy import VOCAB, backbone

WORDS = (LearnableWord("<teddy>", "bear", 2), LearnableWord("<board>", "skateboard"))


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> LatentDiffusion:
    """8x8 latents, 16x16 pictures; `<teddy>` has two vectors, `<board>` one."""
    params = backbone(VOCAB, tmp_path_factory.mktemp("toy"))["model"]["params"]
    toy = fill(LatentDiffusion(**params))
    toy.learn(WORDS)
    torch.manual_seed(1)
    for vectors in toy.embedding_manager.embedding_parameters():
        vectors.data.copy_(torch.randn_like(vectors))
    toy.mask_resolution = (8, 4)
    return freeze(toy).eval()
