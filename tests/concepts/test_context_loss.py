"""The context loss (Lego eq. 2): the printed formula, what it moves, and the lists it needs."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ldm.concepts.context_loss import ContextLoss, context_loss, word_embeddings
from ldm.concepts.objective import Objective
from ldm.concepts.word_lists import PACKAGED, WordList, word_lists
from ldm.data.playroom.sets import LEGO_SETS
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.modules.encoders.modules import BERTEmbedder
from ldm.prompts import LearnableWord, parse_sentence
from tests.concepts.toy import make_step

VOCAB = PACKAGED.parents[2] / "models/ldm/playroom/vocab.txt"
WORDS = (
    LearnableWord("<subject>", "toy"),
    LearnableWord("<frozen>", "strange", role="concept"),
    LearnableWord("<ice>", "strange", role="concept"),
)


def encoder_of(width: int, spread: float = 1.0) -> BERTEmbedder:
    """A text encoder of the playroom's words, with token vectors of the given spread."""
    size = len(VOCAB.read_text().splitlines())
    encoder = BERTEmbedder(width, 1, vocab_size=size, max_seq_len=24, vocab_file=VOCAB)
    nn.init.normal_(encoder.token_embedding.weight, std=spread)
    return encoder.requires_grad_(False)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(1)
    return encoder_of(16)


def manager_of(encoder, words=WORDS):
    return EmbeddingManager(encoder, words=words)


def ready(encoder, words=WORDS, **options) -> ContextLoss:
    term = ContextLoss(1.0, lists="playroom", **options)
    term.look_up(encoder, words)
    return term


def step_of(manager):
    return make_step(2, embeddings=manager)


def printed(cpt, positives, negatives, score=lambda a, b: float(a @ b)):
    """The formula of the paper, term by term."""
    near = sum(math.exp(score(cpt, p)) for p in positives)
    far = sum(math.exp(score(cpt, n)) for n in negatives)
    return -math.log(near / (near + far))


class TestFormula:
    def test_by_hand(self):
        # e^(log 3) = 3 and e^0 = 1: three quarters fall on the positives.
        cpt = torch.tensor([[1.0, 0.0]])
        positives, negatives = torch.tensor([[math.log(3), 7.0]]), torch.tensor([[0.0, -5.0]])
        loss = context_loss(cpt, positives, negatives)
        assert torch.allclose(loss, torch.tensor([math.log(4 / 3)]))
        assert torch.allclose(context_loss(cpt, negatives, positives), torch.tensor([math.log(4)]))

    @pytest.mark.parametrize("width", [2, 16, 768])
    def test_as_printed(self, width):
        cpt, near, far = (torch.randn(n, width, dtype=torch.float64) / 4 for n in (3, 5, 4))
        expected = [printed(vector, near, far) for vector in cpt]
        assert context_loss(cpt, near, far).tolist() == pytest.approx(expected)

    def test_cosine_with_a_temperature(self):
        cpt, near, far = (torch.randn(n, 6, dtype=torch.float64) for n in (2, 3, 4))

        def score(a, b):
            return float(a @ b / a.norm() / b.norm()) / 0.07

        expected = [printed(vector, near, far, score) for vector in cpt]
        loss = context_loss(cpt, near, far, similarity="cosine", temperature=0.07)
        assert loss.tolist() == pytest.approx(expected)
        longer = context_loss(5 * cpt, near, far, similarity="cosine", temperature=0.07)
        assert torch.allclose(longer, loss)

    def test_large_products_neither_overflow_nor_lose_their_gradient(self):
        cpt = torch.full((1, 4), 300.0, requires_grad=True)
        near, far = -torch.ones(2, 4), torch.ones(3, 4)
        loss = context_loss(cpt, near, far)
        loss.sum().backward()
        assert loss.item() == pytest.approx(2400 + math.log(3 / 2))
        assert torch.allclose(cpt.grad, torch.full((1, 4), 2.0))

    def test_precision_does_not_depend_on_autocast(self):
        cpt, near, far = torch.randn(2, 8), torch.randn(3, 8), torch.randn(3, 8)
        with torch.autocast("cpu", torch.bfloat16):
            inside = context_loss(cpt, near, far)
        assert torch.equal(inside, context_loss(cpt, near, far))

    def test_packed_runs_stay_apart(self):
        cpt, near, far = torch.randn(2, 3, 8), torch.randn(4, 8), torch.randn(5, 8)
        alone = torch.stack([context_loss(run, near, far) for run in cpt])
        assert torch.allclose(context_loss(cpt, near, far), alone)
        held = {"<x>": cpt.requires_grad_()}
        term = ContextLoss(1.0, {"<x>": {"positives": ["a"], "negatives": ["b"]}})
        term.neighbours = {"<x>": (near, far)}
        step = make_step(4, run=torch.tensor([0, 0, 1, 1]), runs=2,
                         embeddings=SimpleNamespace(string_to_param_dict=held))  # fmt: skip
        value = term(step).loss
        assert torch.allclose(value, alone.sum(-1))
        (gradient,) = torch.autograd.grad(value[0], cpt)
        assert gradient[0].abs().min() > 0
        assert gradient[1].abs().max() == 0


class TestTerm:
    def test_sums_the_concept_words_of_the_real_encoder(self, encoder):
        manager, lists = manager_of(encoder), word_lists("playroom")
        expected = 0.0
        for word, name in (("<frozen>", "frozen"), ("<ice>", "ice")):
            near, far = (
                [encoder.token_embedding.weight[encoder.text_tokenizer.single_id(w)] for w in part]
                for part in (lists[name].positives, lists[name].negatives)
            )
            expected += printed(manager.string_to_param_dict[word][0].detach(), near, far)
        value = ready(encoder)(step_of(manager))
        assert value.loss.shape == (1,)
        assert value.loss.item() == pytest.approx(expected, rel=1e-5)

    def test_the_share_is_that_of_the_positives(self, encoder):
        manager = manager_of(encoder)
        term = ready(encoder, words=WORDS[:2])
        value = term(step_of(manager))
        assert value.logs["context_share"].item() == pytest.approx(math.exp(-value.loss.item()))

    def test_the_gradient_reaches_concept_words_and_never_the_subject(self, encoder):
        manager = manager_of(encoder)
        Objective([ready(encoder)])(step_of(manager))[0].backward()
        assert manager.string_to_param_dict["<subject>"].grad is None
        for word in ("<frozen>", "<ice>"):
            assert manager.string_to_param_dict[word].grad.abs().min() > 0
        assert encoder.token_embedding.weight.grad is None

    @pytest.mark.parametrize("similarity", ["dot", "cosine"])
    def test_words_move_towards_positives_and_away_from_negatives(self, encoder, similarity):
        manager, term = manager_of(encoder), ready(encoder, similarity=similarity)
        optimizer = torch.optim.SGD(manager.parameters(), lr=0.02)
        subject = manager.string_to_param_dict["<subject>"].detach().clone()

        def nearness():
            rows = []
            for word, parts in term.neighbours.items():
                sides = [manager.string_to_param_dict[word].detach(), *parts]
                if similarity == "cosine":
                    sides = [nn.functional.normalize(side, dim=-1) for side in sides]
                vector, near, far = sides
                rows.append([(vector @ part.T).logsumexp(-1).item() for part in (near, far)])
            return torch.tensor(rows)

        before, losses = nearness(), []
        for _ in range(30):
            optimizer.zero_grad()
            loss = term(step_of(manager)).loss.sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        after = nearness()
        assert losses == sorted(losses, reverse=True)
        assert (after[:, 0] > before[:, 0]).all()
        assert (after[:, 1] < before[:, 1]).all()
        assert torch.equal(manager.string_to_param_dict["<subject>"], subject)

    def test_weight_zero_is_absence(self, encoder):
        manager = manager_of(encoder)
        other = ready(encoder, words=WORDS[1:2])
        other.name = "other"
        term = ready(encoder)
        term.weight = 0.0
        total, logs = Objective([other, term])(step_of(manager))
        alone, logs_alone = Objective([other])(step_of(manager))
        assert torch.equal(total, alone)
        assert logs.keys() == logs_alone.keys()
        total.backward()
        assert manager.string_to_param_dict["<ice>"].grad is None

    def test_every_vector_of_a_word_is_steered(self, encoder):
        three = LearnableWord("<frozen>", "frozen strange ice", 3, role="concept")
        manager, term = manager_of(encoder, [three]), ready(encoder, [three])
        vectors = manager.string_to_param_dict["<frozen>"]
        term(step_of(manager)).loss.sum().backward()
        for number in range(3):
            alone = vectors[number : number + 1].detach().clone().requires_grad_()
            context_loss(alone, *term.neighbours["<frozen>"]).sum().backward()
            torch.testing.assert_close(alone.grad[0], vectors.grad[number])
            assert alone.grad.abs().sum() > 0

    @pytest.mark.parametrize("width", [8, 40])
    def test_any_width_of_the_encoder(self, width):
        other = encoder_of(width)
        manager = manager_of(other)
        ready(other)(step_of(manager)).loss.sum().backward()
        assert manager.string_to_param_dict["<ice>"].grad.shape == (1, width)

    def test_a_word_of_several_tokens_is_their_mean(self, encoder):
        table = encoder.token_embedding.weight
        ids = encoder.text_tokenizer.token_ids("block of ice")
        assert len(ids) == 3
        rows = word_embeddings(encoder, ["ice", "block of ice"])
        assert torch.equal(rows[0], table[encoder.text_tokenizer.single_id("ice")])
        assert torch.allclose(rows[1], table[torch.tensor(ids)].mean(0))

    def test_synonyms_stay_what_they_were_when_the_words_were_looked_up(self):
        own = encoder_of(8)
        manager, term = manager_of(own), ready(own)
        before = term(step_of(manager)).loss.clone()
        with torch.no_grad():
            own.token_embedding.weight.mul_(3)
        assert torch.equal(term(step_of(manager)).loss, before)
        assert not any(t.requires_grad for pair in term.neighbours.values() for t in pair)


class TestWhichWords:
    def test_a_mapping_wins_and_takes_lists_or_names(self, encoder):
        own = {"positives": ["green"], "negatives": ["red", "blue"]}
        assert list(ready(encoder).neighbours) == ["<frozen>", "<ice>"]
        term = ContextLoss(1.0, {"<ice>": own, "<subject>": "frozen"}, lists="playroom")
        term.look_up(encoder, WORDS)
        assert list(term.neighbours) == ["<ice>", "<subject>"]
        assert [len(part) for part in term.neighbours["<ice>"]] == [1, 2]
        assert torch.equal(term.neighbours["<ice>"][0], word_embeddings(encoder, ["green"]))
        frozen = word_lists("playroom")["frozen"].positives
        assert torch.equal(term.neighbours["<subject>"][0], word_embeddings(encoder, frozen))

    @pytest.mark.parametrize(
        ("options", "words", "message"),
        [
            ({}, WORDS[:1], r"<subject>.*concept/"),
            ({"words": {"<snow>": "ice"}}, WORDS, r"<snow>.*<frozen>"),
            ({"words": {"<ice>": "icecream"}}, WORDS, r"<ice>.*icecream.*ice"),
            ({"lists": "nowhere.yaml"}, WORDS, r"nowhere.*english"),
            ({"words": {"<ice>": ["ice"]}}, WORDS, "positives"),
        ],
    )
    def test_what_is_missing_is_named(self, encoder, options, words, message):
        term = ContextLoss(1.0, **{"lists": "playroom", **options})
        with pytest.raises(ValueError, match=message):
            term.look_up(encoder, words)

    @pytest.mark.parametrize(
        ("options", "message"), [({"similarity": "l2"}, "cosine"), ({"temperature": 0}, "positive")]
    )
    def test_options_out_of_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            ContextLoss(1.0, **options)

    def test_a_word_outside_the_vocabulary_is_refused(self, encoder):
        with pytest.raises(ValueError, match="日"):
            word_embeddings(encoder, ["ice", "日"])

    def test_a_step_without_its_words_says_so(self, encoder):
        term = ready(encoder)
        for embeddings in (None, manager_of(encoder, WORDS[:2])):
            with pytest.raises(ValueError, match=r"<ice>.*learn\(\)"):
                term(make_step(2, embeddings=embeddings))


class TestLists:
    def test_the_papers_ten_concepts_and_those_of_the_playroom_have_lists(self):
        english, playroom = word_lists("english"), word_lists("playroom")
        ten = (
            "three four five burnt melted crumpled squeezed closed eyes walking rope arms raised "
            "frozen ice smiley emoji face"
        )
        assert set(ten.split()) <= set(english)
        for one in LEGO_SETS:
            words = [word.name.strip("<>") for word in parse_sentence(one.sentence).words]
            assert words[0] == "subject" or "subject" in words
            assert {word for word in words if word != "subject"} <= set(playroom) & set(english)

    def test_a_word_is_nearer_to_its_own_list(self):
        for lists in (word_lists("english"), word_lists("playroom")):
            for word, found in lists.items():
                assert word in found.positives or word in ("relation", "squeezed"), word
                assert word not in found.negatives

    @pytest.mark.parametrize("collection", ["english", "playroom"])
    def test_numbers_stand_against_numbers(self, collection):
        numbers = {"three": "3", "four": "4", "five": "5"}
        lists = word_lists(collection)
        for word, digit in numbers.items():
            assert {word, digit} <= set(lists[word].positives)
            others = {*numbers, *numbers.values(), "one", "two"} - {word, digit}
            assert others <= set(lists[word].negatives)

    def test_the_playrooms_lists_are_whole_words_of_its_vocabulary(self, encoder):
        tokenizer = encoder.text_tokenizer
        vocabulary = set(VOCAB.read_text().split())
        for found in word_lists("playroom").values():
            for word in (*found.positives, *found.negatives):
                assert tokenizer.single_id(word) is not None, word
                assert word in vocabulary

    def test_the_english_lists_are_known_to_a_large_vocabulary(self, bert_vocab):
        large = BERTEmbedder(4, 1, vocab_file=bert_vocab)
        for found in word_lists("english").values():
            for word in (*found.positives, *found.negatives):
                assert not large.text_tokenizer.unknown(word), word
                assert len(large.text_tokenizer.token_ids(word)) <= 4, word

    def test_a_file_of_ones_own(self, encoder, tmp_path):
        path = tmp_path / "lists.yaml"
        path.write_text(
            "glowing: {positives: [bright, 3], negatives: [dark]}\n"
            "states:\n  wet: {positives: [wet, water], negatives: [dry]}\n"
        )
        lists = word_lists(str(path))
        assert lists["glowing"] == WordList(("bright", "3"), ("dark",))
        word = LearnableWord("<wet>", "strange", role="concept")
        term = ContextLoss(1.0, lists=str(path))
        term.look_up(encoder, [word])
        assert torch.equal(term.neighbours["<wet>"][1], word_embeddings(encoder, ["dry"]))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("wet: {positives: [wet], negatives: []}", "wet.*negatives"),
            ("wet: {positives: [wet, dry], negatives: [dry]}", r"wet.*\['dry'\]"),
            ("wet: {positives: [on, up], negatives: [down]}", "wet.*True.*quote"),
            ("wet: {positives: wet, negatives: [dry]}", "wet.*list"),
            ("wet: [wet]", "wet.*positives"),
            ("[wet]", "lists.yaml.*list"),
            ("wet: {", "lists.yaml.*not YAML"),
            ("a: {wet: {positives: [x], negatives: [y]}}\n"
             "b: {wet: {positives: [y], negatives: [x]}}", "wet.*two different"),
        ],
    )  # fmt: skip
    def test_broken_files_are_named(self, tmp_path, text, message):
        path = tmp_path / "lists.yaml"
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            word_lists(str(path))
