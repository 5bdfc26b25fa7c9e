"""The toy model as files, with two learned words and a photograph, and scripts called in place."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.inference import load_model
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.prompts.sentence import LearnableWord
from tests.training.conftest import fresh_logging
from tests.training.toy import write_toy

WORDS = (LearnableWord("<teddy>", "bear", 2), LearnableWord("<board>", "skateboard"))


@dataclass(frozen=True)
class Files:
    """What a script is given."""

    config: Path
    weights: Path
    words: Path
    photo: Path

    @property
    def learned(self) -> list[str]:
        """The flags that load the model and its words."""
        return ["--config", str(self.config), "--ckpt_path", str(self.weights),
                "--embedding_path", str(self.words)]  # fmt: skip


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Files:
    """The toy, `words.pt` (`<teddy>` has two vectors) and a photograph of 80x40 pixels."""
    toy = write_toy(tmp_path_factory.mktemp("toy"))
    manager = EmbeddingManager(load_model(toy.weights, toy.backbone).cond_stage_model, words=WORDS)
    torch.manual_seed(1)
    for vectors in manager.embedding_parameters():
        vectors.data.copy_(torch.randn_like(vectors))
    words, photo = toy.root / "words.pt", toy.root / "photo.png"
    manager.save(words)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    return Files(toy.backbone, toy.weights, words, photo)


@pytest.fixture
def calling(capsys):
    """Calls a script's main; returns its exit code and what it wrote to stderr."""

    def call(main, *arguments) -> tuple[int, str]:
        with fresh_logging():
            code = main([str(argument) for argument in arguments])
        return code, capsys.readouterr().err

    return call
