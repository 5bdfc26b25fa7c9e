"""OpenCLIP's text tower against one built from torch's own parts, under the public key names."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn

from ldm.modules.encoders.modules import FrozenOpenCLIPEmbedder

TOWER = {
    "vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 20,
}  # fmt: skip


class Block(nn.Module):
    """A residual attention block with the names of public checkpoints."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width),
                gelu=nn.GELU(),
                c_proj=nn.Linear(4 * width, width),
            )
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(nn.Module):
    """The text tower of OpenCLIP."""

    def __init__(self) -> None:
        super().__init__()
        width = TOWER["hidden_size"]
        self.token_embedding = nn.Embedding(TOWER["vocab_size"], width)
        self.positional_embedding = nn.Parameter(torch.randn(20, width))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(
            Block(width, TOWER["num_attention_heads"]) for _ in range(TOWER["num_hidden_layers"])
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, 8))
        self.logit_scale = nn.Parameter(torch.ones(()))

    def forward(self, ids: torch.Tensor, left_out: int) -> torch.Tensor:
        x = self.token_embedding(ids) + self.positional_embedding
        mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)
        blocks = list(self.transformer.resblocks)
        for block in blocks[: len(blocks) - left_out]:
            x = block(x, mask)
        return self.ln_final(x)


@pytest.fixture(scope="module")
def tower() -> Tower:
    torch.manual_seed(3)
    return Tower().eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tokenizer of single characters in CLIP's files."""
    folder = tmp_path_factory.mktemp("open_clip")
    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.mark.parametrize(("layer", "left_out"), [("last", 0), ("penultimate", 1)])
def test_public_weights_give_the_same_context(tower, folder, layer, left_out):
    encoder = FrozenOpenCLIPEmbedder(layer=layer, tower=TOWER, tokenizer=folder, max_length=20)
    state = {f"model.{key}": value for key, value in tower.state_dict().items()}
    result = encoder.load_state_dict(state, strict=False)
    assert result.unexpected_keys == []
    assert [key for key in result.missing_keys if "position_ids" not in key] == []
    ids = torch.randint(0, 600, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.encode_tokens(ids), tower(ids, left_out), rtol=1e-4, atol=1e-5
        )


def test_what_it_saves_it_loads(tower, folder):
    first, second = (
        FrozenOpenCLIPEmbedder(tower=TOWER, tokenizer=folder, max_length=20) for _ in range(2)
    )
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())


def test_captions_are_padded_with_zeros(folder):
    encoder = FrozenOpenCLIPEmbedder(tower=TOWER, tokenizer=folder, max_length=20)
    ids = encoder.tokenize(["ab"]).ids[0]
    assert ids[4:].eq(0).all()
    assert ids[3] != 0


def test_it_is_frozen_unless_asked_otherwise(folder):
    make = {"tower": TOWER, "tokenizer": folder, "max_length": 20}
    assert not any(p.requires_grad for p in FrozenOpenCLIPEmbedder(**make).parameters())
    assert all(p.requires_grad for p in FrozenOpenCLIPEmbedder(freeze=False, **make).parameters())


@pytest.mark.parametrize("wrong", [{"arch": "ViT-B-32"}, {"layer": "first"}])
def test_unknown_towers_and_layers_are_refused(folder, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        FrozenOpenCLIPEmbedder(tokenizer=folder, **wrong)
