"""The text transformer against recorded figures and public checkpoints' names."""

import gzip
import json

import pytest
import torch

from ldm.modules.x_transformer import Encoder, TransformerWrapper
from tests.golden import FOLDER, fill, golden

PREFIX = "transformer."


def make(**changes: int) -> TransformerWrapper:
    return TransformerWrapper(changes.get("num_tokens", 11), 6, Encoder(dim=16, depth=2, heads=2))


def test_golden():
    case = golden("bert_embedder")
    config = case.config
    model = TransformerWrapper(
        config["vocab_size"],
        config["max_seq_len"],
        Encoder(dim=config["n_embed"], depth=config["n_layer"]),
    )
    fill(model, case.seed, prefix=PREFIX)
    shapes = {PREFIX + name: list(value.shape) for name, value in model.state_dict().items()}
    assert shapes == case.keys()["embedder"]
    with torch.no_grad():
        case.check("out", model(case["tokens"], return_embeddings=True))
        case.check("out_first5", model(case["tokens"][:, :5], return_embeddings=True))


def test_state_dict_keys_are_those_of_public_checkpoints():
    with gzip.open(FOLDER / "manifests" / "txt2img-1p4B.json.gz", "rt") as file:
        manifest = json.load(file)["keys"]
    with torch.device("meta"):
        model = TransformerWrapper(30522, 77, Encoder(dim=1280, depth=32))
    prefix = "cond_stage_model.transformer."
    expected = {k.removeprefix(prefix): v for k, v in manifest.items() if k.startswith(prefix)}
    assert len(expected) == 422
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == expected


def test_manager_acts_between_lookup_and_positions():
    model, tokens = make(), torch.tensor([[1, 2, 3], [4, 11, 2]])
    seen = []

    def manager(ids, embedded):
        seen.append((ids, embedded))
        return torch.where((ids == 11)[..., None], model.token_emb.weight[7], embedded)

    got = model(tokens, return_embeddings=True, embedding_manager=manager)
    [(ids, embedded)] = seen
    assert torch.equal(ids, tokens)
    assert torch.equal(embedded, model.token_emb(tokens.clamp(max=10)))
    plain = torch.where(tokens == 11, 7, tokens)
    torch.testing.assert_close(got, model(plain, return_embeddings=True))


def test_gradient_reaches_a_replaced_row():
    model = make().requires_grad_(False)
    row = torch.randn(16, requires_grad=True)
    ids = torch.tensor([[1, 11, 3]])
    model(
        ids, True, lambda ids, x: torch.where((ids == 11)[..., None], row, x)
    ).square().sum().backward()
    assert row.grad is not None
    assert row.grad.abs().max() > 0


class TestBlindTokens:
    """Tokens that do not read the text: what they become is the same whatever it says."""

    TEXTS = torch.tensor([[1, 4, 5, 2, 0, 0], [1, 6, 7, 2, 0, 0]])

    @pytest.fixture
    def encoder(self) -> TransformerWrapper:
        torch.manual_seed(0)
        return make().double().requires_grad_(False)

    def test_they_are_the_same_in_every_text(self, encoder):
        seeing = encoder(self.TEXTS, True)
        assert not torch.isclose(seeing[0, [0, 3, 4, 5]], seeing[1, [0, 3, 4, 5]]).all(-1).any()
        encoder.blind_to_text([0, 1, 2])
        first, second = encoder(self.TEXTS, True)
        torch.testing.assert_close(first[[0, 3, 4, 5]], second[[0, 3, 4, 5]])
        assert not torch.isclose(first[1:3], second[1:3]).all(-1).any()

    def test_words_still_read_each_other(self, encoder):
        encoder.blind_to_text([0, 1, 2])
        other = self.TEXTS[:1].clone()
        other[0, 2] = 8
        assert not torch.allclose(encoder(self.TEXTS[:1], True)[0, 1], encoder(other, True)[0, 1])

    def test_none_is_as_before(self, encoder):
        before = encoder(self.TEXTS, True)
        encoder.blind_to_text([9])
        torch.testing.assert_close(encoder(self.TEXTS, True), before)

    def test_no_key_is_added(self, encoder):
        before = set(encoder.state_dict())
        encoder.blind_to_text([0])
        assert set(encoder.state_dict()) == before


def test_scores_and_positions():
    model, tokens = make(), torch.tensor([[5, 5, 5]])
    assert model(tokens).shape == (1, 3, 11)
    out = model(tokens, return_embeddings=True)[0]
    assert not torch.allclose(out[0], out[1], atol=1e-4)
    with pytest.raises(ValueError, match="7 tokens for 6 positions"):
        model(torch.zeros(1, 7, dtype=torch.long))
