"""Learned words: recorded numbers, files, gradients, any spelling."""

import copy
import logging

import pytest
import torch
from torch import nn

from ldm.modules.embedding_manager import EmbeddingManager
from ldm.modules.encoders.modules import BERTEmbedder, FrozenCLIPEmbedder
from ldm.modules.encoders.tokens import WordToken
from ldm.modules.word_vectors import WordVectors
from ldm.prompts import (
    Caption,
    LearnableWord,
    WordSpan,
    apply_strategy,
    parse_sentence,
)
from ldm.prompts import (
    fill as fill_template,
)
from tests.golden import FOLDER, fill, golden

SPELLINGS = ("peachy", "<teddy bear>", "st.bernard", "to", "日本", "keys", "half", "*", "a")
ORIGINAL = FOLDER / "embeddings_gs-original.pt"
TORCH111 = FOLDER / "embeddings_gs-torch111-layout.pt"


@pytest.fixture(scope="module")
def recorded():
    return golden("textual_inversion")


@pytest.fixture(scope="module")
def encoder(recorded, bert_vocab):
    config = recorded.config["text_encoder"]
    return fill(BERTEmbedder(**config, vocab_file=bert_vocab)).requires_grad_(False)


@pytest.fixture(scope="module")
def small(bert_vocab):
    return fill(BERTEmbedder(16, 1, max_seq_len=24, vocab_file=bert_vocab)).requires_grad_(False)


def manager_of(encoder, **words):
    return EmbeddingManager(
        encoder, words=[LearnableWord(name, init) for name, init in words.items()]
    )


@torch.no_grad()
def set_vectors(manager, recorded, prefix):
    for word in manager.words:
        manager.string_to_param_dict[word].copy_(recorded[f"{prefix}.param.{word}"])


class TestRecorded:
    @pytest.mark.parametrize("k", [1, 3])
    def test_vectors_enter_as_recorded(self, recorded, encoder, k):
        manager = EmbeddingManager(encoder, ["*", "@"], ["sculpture", "sculpture"], False, k)
        start = recorded[f"nv{k}.initial.*"]
        assert torch.equal(manager.initial_embeddings["*"], start)
        assert torch.equal(manager.string_to_param_dict["@"], start)
        set_vectors(manager, recorded, f"nv{k}")
        before = recorded["tokens_in"].clone(), recorded["embedded_in"].clone()
        out = manager(recorded["tokens_in"], recorded["embedded_in"])
        recorded.check(f"nv{k}.embedded_out", out)
        assert torch.equal(manager.expand(before[0]), recorded[f"nv{k}.tokens_after"])
        assert torch.equal(recorded["tokens_in"], before[0])
        assert torch.equal(recorded["embedded_in"], before[1])
        recorded.check(f"nv{k}.coarse_loss", manager.embedding_to_coarse_loss())
        recorded.check(f"nv{k}.norms_squared", manager.get_embedding_norms_squared())
        assert manager.string_to_token_dict["*"] == recorded["token.*"]
        assert manager.string_to_token_dict["@"] == recorded["token.@"]

    @pytest.mark.parametrize("k", [1, 3])
    def test_the_whole_encoder_as_recorded(self, recorded, encoder, k):
        manager = EmbeddingManager(encoder, ["*", "@"], num_vectors_per_token=k)
        set_vectors(manager, recorded, f"nv{k}")
        prompts = recorded.config["prompts"]
        with torch.no_grad():
            recorded.check(f"nv{k}.encoded", encoder.encode(prompts, manager))
            recorded.check("plain.encoded", encoder.encode(prompts))

    def test_progressive_words(self, recorded, encoder):
        manager = EmbeddingManager(
            encoder, ["*", "@"], num_vectors_per_token=3, progressive_words=True
        )
        set_vectors(manager, recorded, "nv3")
        manager.progressive_counter = 1999
        assert {word: token.vectors for word, token in manager.words.items()} == {"*": 2, "@": 2}
        tokens = manager.expand(recorded["tokens_in"])
        assert torch.equal(tokens, recorded["progressive.tokens_after"])
        out = manager(recorded["tokens_in"], recorded["embedded_in"])
        recorded.check("progressive.embedded_out", out)
        assert manager.progressive_counter == recorded["progressive.counter_after"]

    @pytest.mark.parametrize("path", [ORIGINAL, TORCH111], ids=lambda path: path.stem)
    def test_original_files_load(self, recorded, encoder, path):
        manager = EmbeddingManager(encoder, ["something else"])
        manager.load(path)
        assert set(manager.words) == {"*", "@"}
        assert manager.words["*"] == WordToken(int(recorded["token.*"]), 3)
        for word in ("*", "@"):
            assert torch.equal(manager.string_to_param_dict[word], recorded[f"nv3.param.{word}"])
            assert manager.string_to_param_dict[word].requires_grad
        with torch.no_grad():
            context = encoder.encode(recorded.config["prompts"], manager)
        recorded.check("nv3.encoded", context)


class TestSpelling:
    @pytest.mark.parametrize("vectors", [1, 2])
    def test_words_of_any_spelling_enter_where_they_stand(self, small, vectors):
        words = [LearnableWord(word, "dog", vectors) for word in SPELLINGS]
        manager = EmbeddingManager(small, words=words)
        with torch.no_grad():
            for i, vector in enumerate(manager.embedding_parameters()):
                vector.fill_(100.0 + i)
        for i, word in enumerate(SPELLINGS):
            tokens = small.tokenize([f"the {word}, dog"], manager.words)
            embedded = manager(tokens.ids, torch.zeros(1, 24, 16))
            hit = (embedded == 100.0 + i).all(-1).nonzero()[:, 1].tolist()
            assert hit == tokens.learnable[0][word] == list(range(2, 2 + vectors))
            assert (embedded != 0).any(-1).sum() == vectors

    def test_checkpoint_keys_are_the_public_ones(self, small):
        manager = manager_of(small, **dict.fromkeys(SPELLINGS, "dog"))
        expected = {
            f"{part}.{word}"
            for part in ("string_to_param_dict", "initial_embeddings")
            for word in SPELLINGS
        }
        assert set(manager.state_dict()) == expected
        named = dict(manager.named_parameters())
        assert [named[key].requires_grad for key in sorted(named)] == [
            key.startswith("string_to_param_dict") for key in sorted(named)
        ]

    def test_checkpoints_load_strictly(self, small):
        manager = manager_of(small, **dict.fromkeys(SPELLINGS, "dog"))
        other = manager_of(small, **dict.fromkeys(SPELLINGS, "cat"))
        other.load_state_dict(manager.state_dict())
        for word in SPELLINGS:
            assert torch.equal(other.string_to_param_dict[word], manager.string_to_param_dict[word])
        state = manager.state_dict()
        state["string_to_param_dict.new.word"] = state.pop("string_to_param_dict.st.bernard")
        with pytest.raises(RuntimeError, match=r"new\.word") as caught:
            other.load_state_dict(state)
        assert "st.bernard" in str(caught.value)

    def test_the_container_is_a_mapping_that_moves_with_its_module(self):
        vectors = WordVectors()
        vectors.assign({"to": torch.ones(1, 2), "a.b": torch.zeros(2, 2)})
        held = vectors["to"]
        assert list(vectors) == list(vectors.keys()) == ["to", "a.b"]
        assert len(vectors) == 2
        assert "to" in vectors
        assert "half" not in vectors
        assert copy.deepcopy(vectors).to(torch.float64)["to"].dtype == torch.float64
        vectors.assign({"to": torch.full((1, 2), 3.0), "c": torch.zeros(1, 2)})
        assert vectors["to"] is held
        assert held.tolist() == [[3.0, 3.0]]
        assert list(vectors) == ["to", "c"]


class TestStart:
    def rows(self, encoder, text):
        return encoder.token_embedding.weight[encoder.text_tokenizer.token_ids(text)]

    def start(self, encoder, word):
        return EmbeddingManager(encoder, words=[word]).string_to_param_dict[word.name]

    def test_several_tokens_are_averaged_for_one_vector(self, small):
        vector = self.start(small, LearnableWord("*", "old brown dog"))
        assert torch.allclose(vector[0], self.rows(small, "old brown dog").mean(0))

    def test_several_tokens_are_shared_out_over_several_vectors(self, small):
        rows = self.rows(small, "old brown dog")
        assert torch.equal(self.start(small, LearnableWord("*", "old brown dog", 3)), rows)
        two = self.start(small, LearnableWord("*", "old brown dog", 2))
        assert torch.allclose(two, torch.stack([rows[:2].mean(0), rows[1:].mean(0)]))
        six = self.start(small, LearnableWord("*", "old brown dog", 6))
        assert torch.equal(six, rows.repeat_interleave(2, 0))

    def test_a_word_without_init_starts_from_its_own_spelling(self, small):
        for name, text in (("st.bernard", "st.bernard"), ("<brown dog>", "brown dog"), ("*", "*")):
            vector = self.start(small, LearnableWord(name))
            assert torch.allclose(vector[0], self.rows(small, text).mean(0))

    def test_random_only_when_asked_and_from_the_given_generator(self, small):
        words = [LearnableWord("*", "random", 2)]
        one, two = (
            EmbeddingManager(small, words=words, generator=torch.Generator().manual_seed(seed))
            for seed in (1, 2)
        )
        again = EmbeddingManager(small, words=words, generator=torch.Generator().manual_seed(1))
        first = one.string_to_param_dict["*"]
        assert torch.equal(first, again.string_to_param_dict["*"])
        assert not torch.equal(first, two.string_to_param_dict["*"])
        assert first.std() < 3 * small.token_embedding.weight.std()

    def test_an_unknown_init_is_a_warning_and_an_empty_one_an_error(self, small, caplog):
        with caplog.at_level(logging.WARNING):
            self.start(small, LearnableWord("*", "☃"))
        assert "'*' starts from '☃', which the vocabulary" in caplog.text
        with pytest.raises(ValueError, match="cannot start from '   '"):
            self.start(small, LearnableWord("*", "   "))

    def test_it_starts_again_when_the_encoder_got_its_weights(self, bert_vocab):
        encoder = BERTEmbedder(16, 1, vocab_file=bert_vocab)
        manager = manager_of(encoder, dog="dog")
        held = manager.string_to_param_dict["dog"]
        fill(encoder)
        assert not torch.equal(held[0], self.rows(encoder, "dog")[0])
        manager.initialize(encoder)
        assert manager.string_to_param_dict["dog"] is held
        assert torch.equal(held[0], self.rows(encoder, "dog")[0])


class TestConfig:
    def test_placeholders_and_inits_pair_up_and_the_rest_start_from_themselves(self, small):
        manager = EmbeddingManager(small, ["*", "@", "&"], ["dog", ""], num_vectors_per_token=2)
        assert manager.learnable == (
            LearnableWord("*", "dog", 2),
            LearnableWord("@", None, 2),
            LearnableWord("&", None, 2),
        )

    def test_the_words_of_the_released_flags(self, small):
        manager = EmbeddingManager(
            small,
            placeholder_strings=["green * and orange @"],
            initializer_words=["ball"],
            presudo_words="green,*,and,orange,@",
            attn_words="*,@",
        )
        assert list(manager.words) == ["green", "*", "and", "orange", "@"]
        assert [word.start for word in manager.learnable] == [
            "green",
            "ball",
            "and",
            "orange",
            "ball",
        ]
        assert manager.attn_words == ("*", "@")

    def test_one_word_for_each_image(self, small):
        manager = EmbeddingManager(small, ["*"], ["dog"], per_image_tokens=True)
        assert list(manager.words)[:3] == ["*", "א", "ב"]
        assert len(manager.words) == 23

    def test_ids_are_distinct_and_only_symbols_keep_theirs(self, small):
        manager = manager_of(small, **dict.fromkeys(SPELLINGS, "dog"))
        ids = {word: token.id for word, token in manager.words.items()}
        assert ids.pop("*") == 1008
        assert sorted(ids.values()) == list(range(30522, 30522 + len(ids)))
        shifted = EmbeddingManager(small, words=[LearnableWord("dog")], first_id=40000)
        assert shifted.words["dog"].id == 40000

    def test_unknown_arguments_are_refused_by_name(self, small):
        with pytest.raises(TypeError, match=r"unknown arguments \['infonce_scale'\]; .*takes pl"):
            EmbeddingManager(small, ["*"], infonce_scale=1)

    def test_no_word_is_refused(self, small):
        with pytest.raises(ValueError, match="no word to learn"):
            EmbeddingManager(small)

    def test_spans_of_the_words(self, small):
        manager = manager_of(small, a="a", dog="dog")
        assert [span.start for span in manager.spans("a photo of a dog")] == [0, 11, 13]
        caption = Caption("a dog b", (WordSpan(2, 5, "dog"), WordSpan(6, 7, "b")))
        assert manager.spans(caption) == (WordSpan(2, 5, "dog"),)


class TestLaws:
    def test_a_manager_changes_nothing_without_its_words(self, small):
        manager = manager_of(small, **{"<x>": "dog", "*": "cat"})
        text = ["a photo of a dog", "x y (z)"]
        assert torch.equal(small.encode(text, manager), small.encode(text))

    def test_a_fresh_word_of_one_token_means_what_it_starts_from(self, small):
        manager = manager_of(small, **{"<x>": "dog"})
        assert torch.equal(small.encode("a <x> runs", manager), small.encode("a dog runs"))

    def test_the_templates_own_article_is_untouched_when_the_sentences_is_learned(self, small):
        sentence = apply_strategy(parse_sentence("a <x:dog>"), "all")
        manager = EmbeddingManager(small, words=sentence.words)
        with torch.no_grad():
            manager.string_to_param_dict["a"].fill_(7.0)
        caption = fill_template("a photo of a {}", sentence.caption)
        ids = small.tokenize([caption], manager.words).ids
        hit = (manager(ids, torch.zeros(1, 24, 16)) == 7.0).all(-1)
        assert hit[0].nonzero().flatten().tolist() == [4]

    def test_only_the_words_in_the_text_get_gradients(self, small):
        manager = EmbeddingManager(
            small, words=[LearnableWord("<x>", "dog", 2), LearnableWord("<y>", "cat")]
        )
        small.encode(["a <x> here", "no word"], manager).square().sum().backward()
        assert all(parameter.grad is None for parameter in small.parameters())
        assert manager.initial_embeddings["<x>"].grad is None
        assert (manager.string_to_param_dict["<x>"].grad.abs().sum(1) > 0).all()
        assert not manager.string_to_param_dict["<y>"].grad.any()

    def test_gradients_equal_finite_differences(self, small):
        manager = manager_of(small, **{"<x>": "dog"}).double()
        encoder = copy.deepcopy(small).double()

        def context(vector):
            held = manager.string_to_param_dict._parameters
            held["<x>"] = vector
            return encoder.encode("<x> and <x>", manager)[:, :4, :2]

        vector = manager.string_to_param_dict["<x>"].detach().clone().requires_grad_(True)
        assert torch.autograd.gradcheck(context, (vector,), fast_mode=True)

    def test_words_of_different_lengths_share_a_text(self, small):
        words = [
            LearnableWord("<x>", "dog", 3),
            LearnableWord("<y>", "cat"),
            LearnableWord("<z>", "sun", 2),
        ]
        manager = EmbeddingManager(small, words=words)
        tokens = small.tokenize(["<z> <x> a <y>"], manager.words)
        assert tokens.learnable[0] == {"<z>": [1, 2], "<x>": [3, 4, 5], "<y>": [7]}
        expanded = manager.expand(tokens.ids)[0]
        for word, positions in tokens.learnable[0].items():
            assert (expanded == manager.words[word].id).nonzero().flatten().tolist() == positions
        assert manager.embedding_to_coarse_loss().tolist() == [[0.0]]
        with torch.no_grad():
            manager.string_to_param_dict["<x>"].add_(1.0)
        assert manager.embedding_to_coarse_loss().item() == pytest.approx(16 / 3)

    def test_blind_tokens_behind_a_word_of_several_vectors_stay_blind(self, small, bert_vocab):
        encoder = copy.deepcopy(small)
        end, padding = encoder.text_tokenizer.special_ids[1:]
        encoder.transformer.blind_to_text([end, padding])
        manager = EmbeddingManager(encoder, words=[LearnableWord("<x>", "dog", 3)])
        one, other = encoder.encode(["a <x> cat", "a <x> sun"], manager)
        assert not torch.isclose(one[1:6], other[1:6]).all(-1).any()
        torch.testing.assert_close(one[6:], other[6:])

    def test_half_precision_text_stays_half_precision(self, small):
        manager = manager_of(small, **{"<x>": "dog"})
        ids = small.tokenize(["a <x>"], manager.words).ids
        assert manager(ids, torch.zeros(1, 24, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16

    def test_words_enter_clip_too(self, bert_vocab):
        from transformers import BertTokenizerFast

        config = {
            "vocab_size": 30522,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 12,
        }
        encoder = FrozenCLIPEmbedder(config=config, max_length=12)
        # Which pieces the text is cut into does not matter here.
        encoder.text_tokenizer._load = lambda: BertTokenizerFast(vocab=str(bert_vocab))
        fill(encoder.transformer)
        manager = EmbeddingManager(
            encoder, words=[LearnableWord("<x>", "brown dog", 2), LearnableWord("*", "dog")]
        )
        text = ["a <x> and *"]
        assert torch.equal(encoder.encode(text, manager), encoder.encode(["a brown dog and dog"]))
        encoder.encode(text, manager).square().sum().backward()
        assert all(p.grad is None for p in encoder.parameters())
        assert all(p.grad.any() for p in manager.embedding_parameters())


class TestFiles:
    @pytest.fixture
    def learned(self, small):
        words = [
            *(LearnableWord(word, "dog") for word in SPELLINGS),
            LearnableWord("<two>", "cat", 2),
        ]
        manager = EmbeddingManager(small, words=words)
        with torch.no_grad():
            for vectors in manager.embedding_parameters():
                vectors.normal_()
        return manager

    @pytest.mark.parametrize("name", ["embeddings_gs-10.pt", "words.safetensors"])
    def test_saved_and_loaded_words_give_the_same_context_bit_for_bit(
        self, small, learned, tmp_path, name
    ):
        learned.save(tmp_path / name)
        other = EmbeddingManager(small, ["?"], embedding_manager_ckpt=tmp_path / name)
        text = [f"a {word} and <two>, *" for word in SPELLINGS]
        assert torch.equal(small.encode(text, other), small.encode(text, learned))

    def test_the_original_code_can_read_the_file(self, learned, tmp_path):
        learned.save(tmp_path / "e.pt")
        content = torch.load(tmp_path / "e.pt", weights_only=False)
        assert set(content) == {"string_to_token", "string_to_param"}
        assert type(content["string_to_param"]) is nn.ParameterDict
        assert list(content["string_to_param"].keys()) == [*SPELLINGS, "<two>"]
        for word, vectors in learned.string_to_param_dict.items():
            held = content["string_to_param"]
            # "keys" is a method that the reader needs.
            stored = held._parameters[word] if word == "keys" else held[word]
            assert isinstance(stored, nn.Parameter)
            assert torch.equal(stored, vectors)
        tokens = content["string_to_token"]
        assert tokens["*"].dtype == torch.int64
        # The ids that the original looks for, where the vocabulary has the word in one piece.
        assert {word: int(tokens[word]) for word in ("*", "a", "to")} == {
            "*": 1008,
            "a": 1037,
            "to": 2000,
        }

    def test_both_files_are_written_and_nothing_else(self, learned, tmp_path):
        learned.save(tmp_path / "new folder" / "embeddings.pt")
        learned.save(tmp_path / "new folder" / "embeddings.pt")
        files = sorted(path.name for path in (tmp_path / "new folder").iterdir())
        assert files == ["embeddings.pt", "embeddings.safetensors"]

    def test_loading_keeps_the_parameters_that_an_optimizer_holds(self, small, learned, tmp_path):
        learned.save(tmp_path / "e.pt")
        held = list(learned.embedding_parameters())
        with torch.no_grad():
            for vectors in held:
                vectors.zero_()
        learned.load(tmp_path / "e.pt")
        assert all(a is b for a, b in zip(held, learned.embedding_parameters(), strict=True))
        assert all(vectors.any() for vectors in held)

    def test_words_of_another_encoder_are_refused(self, small):
        manager = EmbeddingManager(small, ["*"])
        with pytest.raises(ValueError, match=r"'.' is 64 wide but the text encoder is 16 wide"):
            manager.load(ORIGINAL)
        assert list(manager.words) == ["*"]

    def test_the_progress_of_progressive_words_is_kept_in_checkpoints(self, small):
        def build():
            return EmbeddingManager(small, ["*"], num_vectors_per_token=3, progressive_words=True)

        manager, other = build(), build()
        manager.progressive_counter = 4100
        state = manager.state_dict()
        other.load_state_dict(state)
        assert other.progressive_counter == 4100
        assert other.words["*"].vectors == 3
        # Files of the original code have no such entry.
        del state["progressive_counter"]
        build().load_state_dict(state)

    def test_words_that_progressed_elsewhere_are_used_whole_outside_training(self, small):
        manager = EmbeddingManager(small, ["*"], num_vectors_per_token=3, progressive_words=True)
        assert manager.words["*"].vectors == 1
        assert manager.eval().words["*"].vectors == 3
