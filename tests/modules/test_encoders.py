"""Tokenizers, text encoders, and the encoders of classes and images."""

import copy
import gzip
import json
import logging
import pickle

import pytest
import torch

from ldm.data.playroom.vocabulary import world_words
from ldm.modules.encoders.clip import load_tokenizer
from ldm.modules.encoders.modules import (
    BERTEmbedder,
    BERTTokenizer,
    ClassEmbedder,
    FrozenCLIPEmbedder,
    SpatialRescaler,
    TransformerEmbedder,
)
from ldm.modules.encoders.tokens import NOWHERE, WordToken
from ldm.prompts import Caption, WordSpan, find_words
from ldm.util import get_obj_from_str
from tests.golden import FOLDER, fill, golden

TINY_CLIP = {
    "vocab_size": 600,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
}


@pytest.fixture(scope="module")
def bert(bert_vocab):
    return fill(BERTEmbedder(32, 1, max_seq_len=20, vocab_file=bert_vocab))


@pytest.fixture(scope="module")
def clip(clip_folder):
    encoder = FrozenCLIPEmbedder(config=TINY_CLIP, tokenizer=clip_folder, max_length=20)
    fill(encoder.transformer)
    return encoder


@pytest.fixture(params=["bert", "clip"])
def encoder(request):
    return request.getfixturevalue(request.param)


def public_keys(name: str) -> dict[str, list[int]]:
    """Names and shapes of the text encoder in a public checkpoint."""
    path = FOLDER / f"manifests/{name}.json.gz"
    if not path.is_file():
        pytest.skip(f"tests/goldens/manifests/{name}.json.gz is not there")
    recorded = json.loads(gzip.decompress(path.read_bytes()))["keys"]
    prefix = "cond_stage_model."
    return {k.removeprefix(prefix): v for k, v in recorded.items() if k.startswith(prefix)}


class TestTokenizer:
    def test_ids_equal_the_recorded_ones(self, bert_vocab):
        recorded = golden("tokenizer")
        tokenizer = BERTTokenizer(vocab_file=bert_vocab, vq_interface=False)
        ids = tokenizer(recorded.config["sentences"])
        assert torch.equal(ids, recorded["ids"].long())
        assert torch.equal(tokenizer.encode(recorded.config["sentences"][0]), ids[:1])

    def test_the_vector_quantising_interface(self, bert_vocab):
        first, second, (third, fourth, ids) = BERTTokenizer(vocab_file=bert_vocab).encode(["dog"])
        assert (first, second, third, fourth) == (None,) * 4
        assert ids.shape == (1, 77)

    @pytest.mark.parametrize("length", [8, 32])
    def test_the_length_is_honoured(self, bert_vocab, length):
        tokenizer = BERTTokenizer(vocab_file=bert_vocab, max_length=length)
        ids = tokenizer("photo " * 50)
        assert ids.shape == (1, length)
        assert ids[0, -1] == 102

    def test_a_missing_vocabulary_is_named_with_where_it_was_looked_for(self, repo):
        with pytest.raises(
            FileNotFoundError, match=r"vocab_file 'no/such\.txt' was not found"
        ) as e:
            BERTTokenizer(vocab_file="no/such.txt")
        assert str(repo / "no/such.txt") in str(e.value)

    def test_a_relative_vocabulary_is_looked_up_here_and_then_in_the_project(
        self, repo, bert_vocab, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        inside = bert_vocab.relative_to(repo) if bert_vocab.is_relative_to(repo) else None
        if inside is not None:
            assert BERTTokenizer(vocab_file=str(inside))("dog")[0, 1] == 3899
        (tmp_path / "mine.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ndog\n")
        assert BERTTokenizer(vocab_file="mine.txt", max_length=4)("dog").tolist() == [[2, 5, 3, 0]]

    @pytest.mark.parametrize("name", ["no-one/has-this", "nothing"])
    def test_without_vocabulary_the_error_says_what_to_do(self, monkeypatch, tmp_path, name):
        """Rather than a tokenizer of special tokens alone, to which every word is unknown."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.chdir(tmp_path)
        tokenizer = BERTTokenizer(name=name)  # not looked for yet
        with pytest.raises(OSError, match=r"give its vocab\.txt as vocab_file"):
            tokenizer("dog")
        with pytest.raises(OSError, match=r"give a local folder with vocab\.json"):
            load_tokenizer(name)

    def test_a_word_that_is_letters_to_the_vocabulary_is_told_once(self, tmp_path, caplog):
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "on", "##dle", "po"]
        letters = [f"{start}{letter}" for letter in "abcdegorz" for start in ("", "##")]
        (tmp_path / "letters.txt").write_text("\n".join(dict.fromkeys([*words, *letters])))
        tokenizer = BERTTokenizer(vocab_file=str(tmp_path / "letters.txt"))
        for _ in range(2):
            tokenizer(["a dog on a zebra", "a poodle", "a Zebra <o>"])
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == 2
        assert "does not know 'zebra'" in told[0]
        assert "does not know 'Zebra'" in told[1]
        assert tokenizer.text_tokenizer.spelt_out("a zebra on a poodle") == ["zebra"]

    def test_a_known_beginning_does_not_make_a_word_known(self, repo, bert_vocab):
        text = "an island with a backpack and a café, cubes 1234 and t-shirts <x>"
        shipped = BERTTokenizer(vocab_file=repo / "models/ldm/playroom/vocab.txt")
        assert shipped.text_tokenizer.spelt_out(text)[:3] == ["island", "backpack", "café"]
        assert shipped.text_tokenizer.spelt_out(" ".join(world_words())) == []
        large = BERTTokenizer(vocab_file=bert_vocab).text_tokenizer
        assert large.spelt_out(f"{text} poodle 日本 tiramisu xylophones") == []


class TestPositions:
    """Where the words of a caption are among the tokens."""

    @pytest.mark.parametrize("word", ["peachy", "<teddy bear>", "st.bernard", "to", "日本", "*"])
    def test_a_word_of_any_spelling_is_one_token_and_is_found(self, encoder, word):
        number = encoder.text_tokenizer.placeholder_id(word) or encoder.vocab_size + 3
        tokens = encoder.tokenize([f"dog {word}, dog"], {word: WordToken(number)})
        (position,) = tokens.learnable[0][word]
        assert position == 2
        assert tokens.ids[0, position] == number
        comma, last = tokens.ids[0, position + 1], tokens.ids[0, position + 2]
        assert last == tokens.ids[0, 1] != comma

    @pytest.mark.parametrize("adjective", ["st.bernard", "peachy", "(ex-)dog"])
    def test_positions_of_an_adjective_are_all_its_pieces(self, encoder, adjective):
        text = f"dog {adjective} <x>"
        start = 4
        caption = Caption(
            text,
            find_words(text, ["<x>"]),
            (WordSpan(start, start + len(adjective), "<x>"),),
        )
        tokens = encoder.tokenize([caption], {"<x>": 9999})
        pieces = encoder.text_tokenizer.token_ids(adjective)
        assert len(pieces) > 1
        positions = tokens.bound[0]["<x>"]
        assert tokens.ids[0, positions].tolist() == pieces
        assert tokens.learnable[0]["<x>"] == [positions[-1] + 1]

    def test_positions_count_after_expansion(self, encoder):
        words = {"<a>": WordToken(9000, 3), "<b>": WordToken(9001, 2)}
        text = "dog <b> dog <a> dog <b>"
        tokens = encoder.tokenize([text], words)
        assert tokens.learnable[0] == {"<b>": [2, 3, 9, 10], "<a>": [5, 6, 7]}
        assert (tokens.ids[0] == 9001).nonzero().flatten().tolist() == [2, 6]
        assert tokens.at(0, 16, 19) == [8]
        assert len(tokens.offsets[0]) == 20
        assert tokens.offsets[0][0] == tokens.offsets[0][11] == NOWHERE

    def test_two_words_swapped_in_a_caption_swap_positions(self, encoder):
        words = {"<a>": 9000, "<b>": 9001}
        tokens = encoder.tokenize(["dog <a> dog <b>", "dog <b> dog <a>"], words)
        first, second = tokens.learnable
        assert (first["<a>"], first["<b>"]) == (second["<b>"], second["<a>"]) == ([2], [4])

    def test_a_caption_marks_only_its_own_words(self, encoder):
        caption = Caption("a photo of a dog", (WordSpan(11, 12, "a"),))
        plain = encoder.tokenize(["a photo of a dog"])
        marked = encoder.tokenize([caption], {"a": 9000})
        everywhere = encoder.tokenize(["a photo of a dog"], {"a": 9000})
        hits = [(t.ids[0] == 9000).sum().item() for t in (plain, marked, everywhere)]
        assert hits == [0, 1, 2]
        assert (plain.ids != marked.ids).sum() == 1

    def test_a_word_that_falls_off_the_end_is_a_warning_that_names_it(self, encoder, caplog):
        text = "dog " * 16 + "<a> <b>"
        words = {"<a>": WordToken(9000, 2), "<b>": WordToken(9001)}
        with caplog.at_level(logging.WARNING):
            tokens = encoder.tokenize([text], words)
        assert "['<b>']" in caplog.text
        assert tokens.learnable[0] == {"<a>": [17, 18]}
        assert tokens.ids[0, 18] == encoder.text_tokenizer.special_ids[1]
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            words["<a>"] = WordToken(9000, 3)
            tokens = encoder.tokenize([text], words)
        assert "['<a>']" in caplog.text, "of <b> it was said already"
        assert tokens.learnable[0] == {}

    def test_cutting_ordinary_text_is_silent_and_keeps_the_end_token(self, encoder, caplog):
        tokens = encoder.tokenize(["<a> " + "dog " * 40], {"<a>": WordToken(9000, 4)})
        assert not caplog.records
        assert tokens.learnable[0] == {"<a>": [1, 2, 3, 4]}
        assert tokens.ids[0, 16] == encoder.text_tokenizer.special_ids[1]

    def test_no_captions_give_no_rows(self, encoder):
        assert encoder.tokenize([]).ids.shape == (0, 20)


class TestBERT:
    def test_numbers_equal_the_recorded_ones(self):
        recorded = golden("bert_embedder")
        config = {**recorded.config}
        encoder = fill(BERTEmbedder(**config))
        assert {k: list(v.shape) for k, v in encoder.named_parameters()} == recorded.keys()[
            "embedder"
        ]
        with torch.no_grad():
            recorded.check("out", encoder(recorded["tokens"]))
            recorded.check("out_first5", encoder(recorded["tokens"][:, :5]))

    def test_the_public_config_has_the_public_keys(self):
        with torch.device("meta"):
            encoder = BERTEmbedder(n_embed=1280, n_layer=32)
        keys = {k: list(v.shape) for k, v in encoder.state_dict().items()}
        assert keys == public_keys("txt2img-1p4B")

    def test_a_small_vocabulary_and_length(self, tmp_path):
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "##s"]
        (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
        encoder = BERTEmbedder(
            128, 2, vocab_size=len(pieces), max_seq_len=32, vocab_file=str(tmp_path)
        )
        assert (encoder.width, encoder.max_length, encoder.vocab_size) == (128, 32, 8)
        assert encoder(["a dogs", "dog"]).shape == (2, 32, 128)
        assert encoder.tokenize("dogs a").ids[0, :5].tolist() == [2, 6, 7, 5, 3]
        with pytest.raises(ValueError, match=r"has 8 words but the encoder has vocab_size 7"):
            BERTEmbedder(32, 1, vocab_size=7, vocab_file=str(tmp_path))

    def test_blind_tokens_say_nothing_of_the_caption(self, bert_vocab):
        blind = {"blind_tokens": ["[CLS]", "[SEP]", "[PAD]"]}
        encoder = fill(BERTEmbedder(32, 2, max_seq_len=8, vocab_file=bert_vocab, **blind))
        with torch.no_grad():
            dog, cat = encoder(["a dog", "a cat"])
        torch.testing.assert_close(dog[[0, 3, 4, 7]], cat[[0, 3, 4, 7]])
        assert not torch.isclose(dog[1:3], cat[1:3]).all(-1).any()

    def test_unknown_blind_tokens_are_named(self, bert_vocab):
        with pytest.raises(ValueError, match=r"\['<pad>'\] are not in the vocabulary.*\[PAD\]"):
            BERTEmbedder(32, 1, vocab_file=bert_vocab, blind_tokens=["[PAD]", "<pad>"])
        with pytest.raises(ValueError, match="use_tokenizer=True"):
            BERTEmbedder(32, 1, use_tokenizer=False, blind_tokens=["[PAD]"])

    def test_text_and_ids_and_one_or_many_are_the_same(self, bert):
        ids = bert.tokenize(["a dog"]).ids
        with torch.no_grad():
            context = bert("a dog")
            assert torch.equal(context, bert.encode(["a dog"]))
            assert torch.equal(context, bert.encode(ids))
            assert torch.equal(context, bert.encode(Caption("a dog")))

    def test_without_tokenizer_text_is_refused(self):
        for encoder in (
            TransformerEmbedder(16, 1, 50),
            BERTEmbedder(16, 1, 50, use_tokenizer=False),
        ):
            assert encoder(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 16)
            with pytest.raises(ValueError, match="without a tokenizer"):
                encoder("a dog")

    def test_a_learnable_id_without_its_manager_is_refused(self, bert):
        with pytest.raises(ValueError, match="token id 30525 is a learnable word"):
            bert(torch.tensor([[101, 30525]]))

    def test_it_can_be_copied_and_pickled(self, bert):
        bert.tokenize("a dog")  # the tokenizer is loaded
        for other in (copy.deepcopy(bert), pickle.loads(pickle.dumps(bert))):
            assert torch.equal(other("a dog"), bert("a dog"))


class TestCLIP:
    def test_numbers_equal_the_recorded_ones(self):
        recorded = golden("clip_text")
        encoder = FrozenCLIPEmbedder(config=recorded.config)
        fill(encoder.transformer)
        names = {k: list(v.shape) for k, v in encoder.transformer.named_parameters()}
        assert names == recorded.keys()["clip_text"]
        with torch.no_grad():
            recorded.check("last_hidden_state", encoder(recorded["tokens"]))

    def test_the_public_config_builds_without_a_download_under_the_public_keys(self):
        with torch.device("meta"):
            encoder = FrozenCLIPEmbedder()
        assert {k: list(v.shape) for k, v in encoder.state_dict().items()} == public_keys("sd-v1")

    @pytest.mark.parametrize("case", ["public", "no prefix", "no positions", "float positions"])
    def test_files_of_all_ages_load(self, clip, case):
        state = {k: v.clone() for k, v in clip.state_dict().items()}
        positions = "transformer.text_model.embeddings.position_ids"
        assert state[positions].tolist() == [list(range(20))]
        if case == "no prefix":
            state = {k.replace("text_model.", ""): v for k, v in state.items()}
        elif case == "no positions":
            del state[positions]
        elif case == "float positions":
            state[positions] = state[positions].half() + 0.3
        other = FrozenCLIPEmbedder(config=TINY_CLIP, max_length=20)
        other.load_state_dict(state)
        for key, value in clip.state_dict().items():
            assert torch.equal(other.state_dict()[key], value), key

    def test_a_file_without_the_encoder_is_still_an_error(self):
        other = FrozenCLIPEmbedder(config=TINY_CLIP, max_length=20)
        with pytest.raises(RuntimeError, match="Missing key"):
            other.load_state_dict({})

    def test_a_local_folder_gives_configuration_weights_and_tokenizer(self, clip, clip_folder):
        from transformers import CLIPTextConfig, CLIPTextModel

        CLIPTextConfig(**TINY_CLIP).save_pretrained(clip_folder)
        bare = FrozenCLIPEmbedder(version=str(clip_folder), max_length=20)
        bare.load_state_dict(clip.state_dict())
        with torch.no_grad():
            assert torch.equal(bare("a dog"), clip("a dog"))
        model = CLIPTextModel(CLIPTextConfig(**TINY_CLIP))
        model.save_pretrained(clip_folder)
        whole = FrozenCLIPEmbedder(version=str(clip_folder), max_length=20)
        with torch.no_grad():
            expected = model.eval()(whole.tokenize("a dog").ids).last_hidden_state
            assert torch.equal(whole("a dog"), expected)
        for name in ("config.json", "model.safetensors"):
            (clip_folder / name).unlink()

    def test_it_is_frozen(self, clip):
        assert not clip.transformer.training
        assert not any(parameter.requires_grad for parameter in clip.parameters())

    def test_without_weights_it_says_what_to_do(self):
        with torch.device("meta"):
            encoder = FrozenCLIPEmbedder()
        with pytest.raises(OSError, match="load a checkpoint that has them"):
            encoder(torch.zeros(1, 5, dtype=torch.long))

    def test_offline_errors_say_what_to_do(self, tmp_path):
        with pytest.raises(OSError, match="no configuration for the text encoder"):
            FrozenCLIPEmbedder(version=str(tmp_path / "nothing"))
        encoder = FrozenCLIPEmbedder(config=TINY_CLIP, tokenizer=tmp_path / "no", max_length=20)
        with pytest.raises(OSError, match=r"local folder with vocab\.json and merges\.txt"):
            encoder("a dog")

    def test_more_tokens_than_positions_are_refused(self):
        with pytest.raises(ValueError, match="max_length 77 exceeds the model's 20 positions"):
            FrozenCLIPEmbedder(config=TINY_CLIP)

    def test_the_hook_is_gone_afterwards_even_after_an_error(self, clip):
        def broken(ids, embedded):
            raise RuntimeError("stop")

        before = clip("a dog")
        with pytest.raises(RuntimeError, match="stop"):
            clip.encode_tokens(clip.tokenize("a dog").ids, broken)
        assert torch.equal(clip("a dog"), before)


class TestOthers:
    def test_a_class_becomes_one_token(self):
        encoder = ClassEmbedder(6, n_classes=4, key="label")
        assert list(encoder.state_dict()) == ["embedding.weight"]
        out = encoder({"label": torch.tensor([2, 0]), "other": torch.tensor([1, 1])})
        assert torch.equal(out, encoder.embedding.weight[[2, 0]][:, None])
        assert torch.equal(
            encoder({"other": torch.tensor([1])}, key="other")[0, 0], encoder.embedding.weight[1]
        )

    def test_an_image_is_halved_per_stage(self):
        x = torch.arange(64.0).reshape(1, 1, 8, 8)
        out = SpatialRescaler(n_stages=2, method="area", in_channels=1)(x)
        assert torch.equal(out, torch.nn.functional.avg_pool2d(x, 4))

    def test_channels_are_mapped_under_the_public_key(self):
        encoder = SpatialRescaler(in_channels=3, out_channels=5, bias=True)
        assert set(encoder.state_dict()) == {"channel_mapper.weight", "channel_mapper.bias"}
        assert encoder.encode(torch.zeros(1, 3, 8, 8)).shape == (1, 5, 4, 4)
        assert not SpatialRescaler().state_dict()

    def test_wrong_settings_are_refused(self):
        with pytest.raises(ValueError, match="method 'cubic': expected one of nearest"):
            SpatialRescaler(method="cubic")
        with pytest.raises(ValueError, match="n_stages -1"):
            SpatialRescaler(n_stages=-1)

    @pytest.mark.parametrize(
        "name",
        [
            *("AbstractEncoder", "BERTEmbedder", "BERTTokenizer", "ClassEmbedder"),
            *("FrozenCLIPEmbedder", "SpatialRescaler", "TransformerEmbedder"),
        ],
    )
    def test_the_public_path_has_every_name(self, name):
        assert get_obj_from_str(f"ldm.modules.encoders.modules.{name}").__name__ == name

    def test_the_base_class_says_that_it_cannot_encode(self):
        from ldm.modules.encoders.modules import AbstractEncoder

        with pytest.raises(NotImplementedError, match=r"AbstractEncoder has no encode\(\)"):
            AbstractEncoder().encode("x")
