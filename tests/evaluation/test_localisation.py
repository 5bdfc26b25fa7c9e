"""Where words look: each noise level and each picture has noise of its own."""

import pytest
import torch

from ldm.evaluation.localisation import word_maps
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.prompts.sentence import LearnableWord
from tests.models.small import small_model

CAPTIONS = ["a <teddy>", "a cat and a <teddy>"]


@pytest.fixture(scope="module")
def model():
    model = small_model().eval()
    words = [LearnableWord("<teddy>", "dog")]
    model.embedding_manager = EmbeddingManager(model.cond_stage_model, words=words)
    return model


@pytest.fixture(scope="module")
def latents(model) -> torch.Tensor:
    shape = (2, *model.latent_shape())
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def maps_of(model, latents, captions, **options) -> torch.Tensor:
    return word_maps(model, latents, captions, resolutions=[8, 4], **options)["<teddy>"]


def test_two_looks_at_one_level_are_not_the_same_look_twice(model, latents):
    once = maps_of(model, latents, CAPTIONS, shares=(0.5,))
    twice = maps_of(model, latents, CAPTIONS, shares=(0.5, 0.5))
    assert not torch.allclose(once, twice, rtol=1e-3)


def test_a_picture_is_seen_the_same_beside_others(model, latents):
    alone = maps_of(model, latents[:1], CAPTIONS[:1])
    torch.testing.assert_close(maps_of(model, latents, CAPTIONS)[:1], alone)
