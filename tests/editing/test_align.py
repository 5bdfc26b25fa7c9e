"""Alignments of prompts against recorded figures, and their laws with learned words."""

import pytest
import torch
from torch import Tensor

from ldm.editing.align import (
    changed_words,
    equalizer,
    mapper_matrix,
    read_prompt,
    refinement_mapper,
    replacement_mapper,
    replacement_windows,
    window_steps,
)
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.modules.encoders.modules import BERTEmbedder
from ldm.prompts.sentence import LearnableWord
from tests.golden import golden

CASE = golden("p2p_align")
REPLACE, REFINE = CASE.config["replace_pairs"], CASE.config["refine_pairs"]
#: '#' is no word of the released code, which strips it from every piece.
INDICES = [one for one in CASE.config["word_indices"] if "#" not in one["text"]]
VOCAB = "models/ldm/playroom/vocab.txt"


@pytest.fixture(scope="module")
def bert(bert_vocab) -> BERTEmbedder:
    """A tiny encoder with the vocabulary that the goldens were made with."""
    return BERTEmbedder(n_embed=8, n_layer=1, vocab_file=bert_vocab)


@pytest.fixture(scope="module")
def toy() -> BERTEmbedder:
    return BERTEmbedder(n_embed=8, n_layer=1, vocab_size=742, max_seq_len=20, vocab_file=VOCAB)


@pytest.fixture(scope="module")
def manager(toy) -> EmbeddingManager:
    words = [LearnableWord("<teddy>", "bear", 3), LearnableWord("<red ball>", "ball")]
    return EmbeddingManager(toy, words=words)


def read(encoder, *prompts: str, manager=None) -> list:
    return [read_prompt(encoder, prompt, manager) for prompt in prompts]


def recorded_replacement(number: int) -> Tensor:
    matrix = torch.zeros(77, 77)
    rows, columns = CASE[f"replace.{number}.mapper"].long()
    matrix[rows, columns] = CASE[f"replace.{number}.values"]
    return matrix


@pytest.mark.parametrize("number", range(len(REPLACE)))
def test_released_replacement_golden(bert, number):
    mapper = replacement_mapper(*read(bert, *REPLACE[number]), released=True)
    torch.testing.assert_close(mapper, recorded_replacement(number), rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", range(len(REFINE)))
def test_released_refinement_golden(bert, number):
    mapper, kept = refinement_mapper(*read(bert, *REFINE[number]), released=True)
    assert torch.equal(mapper, CASE[f"refine.{number}.mapper"])
    assert torch.equal(kept, CASE[f"refine.{number}.alphas"])


@pytest.mark.parametrize("one", INDICES, ids=lambda one: f"{one['text'][:9]}:{one['word']}")
def test_word_positions_golden(bert, one):
    assert read_prompt(bert, one["text"]).positions(one["word"]) == one["indices"]


@pytest.mark.parametrize("number", range(len(CASE.config["alpha"])))
def test_windows_golden(bert, number):
    case = CASE.config["alpha"][number]
    targets = read(bert, *case["prompts"][1:])
    alphas = replacement_windows(targets, case["num_steps"], case["cross"])
    assert torch.equal(alphas.to(torch.uint8), CASE[f"alpha.{number}"])


def test_the_hash_sign_is_a_word(bert):
    prompt = read_prompt(bert, "a green & beside a # box")
    assert (prompt.positions("#"), prompt.positions("box")) == ([6], [7])


@pytest.mark.parametrize("pair", REPLACE)
def test_replacement_moves_all_attention_and_loses_none(bert, pair):
    """A word may become one of more or fewer tokens: what follows keeps its own attention."""
    source, target = read(bert, *pair)
    mapper = replacement_mapper(source, target)
    torch.testing.assert_close(mapper.sum(1), torch.ones(77))
    for (old, here), (new, there) in zip(source.words, target.words, strict=True):
        block = mapper[list(here)][:, list(there)]
        if old == new:
            assert torch.equal(block, torch.eye(len(here)))
        else:
            torch.testing.assert_close(block.sum(1), torch.ones(len(here)))
    ends = len(source.ids) - 1, len(target.ids) - 1
    assert mapper[ends] == 1, "the end token stays the end token"
    if len(source.ids) == len(target.ids):
        assert torch.equal(mapper, replacement_mapper(source, target, released=True))


@pytest.mark.parametrize("pair", REFINE)
def test_refinement_never_gives_a_word_to_the_padding(bert, pair):
    source, target = read(bert, *pair)
    mapper, kept = refinement_mapper(source, target)
    words = len(target.ids)
    assert torch.equal(mapper[:words], refinement_mapper(source, target, released=True)[0][:words])
    assert (mapper[words:] >= len(source.ids)).all()
    for at in kept[:words].nonzero().flatten().tolist():
        assert source.ids[mapper[at]] == target.ids[at]
    matrix = mapper_matrix(mapper)
    assert torch.equal(matrix.sum(0), kept)


def test_equal_prompts_are_aligned_with_themselves(toy, manager):
    one, two = read(toy, "a <teddy> on a <red ball>", "a <teddy> on a <red ball>", manager=manager)
    assert torch.equal(replacement_mapper(one, two), torch.eye(20))
    mapper, kept = refinement_mapper(one, two)
    assert mapper.tolist() == list(range(20))
    assert kept.all()
    assert changed_words(one, two) == ([], [])


def test_learned_words_are_words_of_several_vectors(toy, manager):
    prompt = read_prompt(toy, "a <teddy>, on <red ball>!", manager)
    assert [word for word, _ in prompt.words] == ["a", "<teddy>,", "on", "<red ball>!"]
    assert prompt.positions("<teddy>") == [2, 3, 4]
    assert prompt.positions("<teddy>,") == [2, 3, 4, 5]
    assert prompt.positions("<red ball>") == [7]
    assert prompt.positions("ball") == [7], "part of the learned word"
    assert len(prompt.ids) == 10


def test_three_vectors_are_shared_by_two_tokens_and_back(toy, manager):
    prompts = read(toy, "a <teddy> on grass", "a skateboards' on grass", manager=manager)
    (_, many), (_, few) = (prompt.words[1] for prompt in prompts)
    assert (len(many), len(few)) == (3, 2)
    forth = replacement_mapper(*prompts)
    back = replacement_mapper(*prompts[::-1])
    assert (forth[list(many)][:, list(few)] == 1 / 2).all()
    assert (back[list(few)][:, list(many)] == 1 / 3).all()
    torch.testing.assert_close(back.sum(1), torch.ones(20))


def test_changed_words_leave_out_articles(toy, manager):
    source, target = read(
        toy, "a photo of a <teddy> on grass", "a photo of an old cat on grass", manager=manager
    )
    assert changed_words(source, target) == ([5, 6, 7], target.positions("old cat"))
    one, two = read(toy, "a cat", "the cat")
    assert changed_words(one, two) == ([1], [1]), "nothing else changed"


def test_refine_aligns_around_a_replaced_word(toy, manager):
    source, target = read(toy, "a <teddy> on grass", "a brown cat on grass", manager=manager)
    mapper, kept = refinement_mapper(source, target)
    assert mapper[:7].tolist() == [0, 1, -1, -1, 5, 6, 7]
    assert kept[:7].tolist() == [1, 1, 0, 0, 1, 1, 1]


def test_a_prompt_longer_than_the_encoder_is_aligned_as_far_as_it_goes(toy):
    long = "a cat on grass " * 9
    one, two = read(toy, long + "dog", long.replace("grass", "snow") + "cat")
    assert len(one.ids) == 20
    torch.testing.assert_close(replacement_mapper(one, two).sum(1), torch.ones(20))
    assert refinement_mapper(one, two)[0].max() == 19


def test_equalizer_has_the_factor_at_the_word(bert):
    controllers = golden("p2p_controllers")
    case = controllers.config["equalizer"]
    factors = dict(zip(case["words"], case["values"], strict=True))
    prompt = read_prompt(bert, case["prompt"])
    assert torch.equal(equalizer(prompt, factors)[None], controllers["equalizer"])


def test_windows_are_shares_of_the_sampling():
    assert window_steps(0.4, 10) == (0, 4)
    assert window_steps(1, 10) == (0, 10)
    assert window_steps((0.1, 0.6), 10) == (1, 6)
    for wrong in (1.5, (0.6, 0.1), (-0.1, 1), (0, 0.1, 0.2)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            window_steps(wrong, 10)


def test_misuse_is_refused_with_the_remedy(toy):
    one, two = read(toy, "a cat", "a brown cat")
    with pytest.raises(ValueError, match=r"2 words and .* 3.*use 'refine'"):
        replacement_mapper(one, two)
    with pytest.raises(ValueError, match="'dog' is not in 'a cat'"):
        equalizer(one, {"dog": 2.0})
    with pytest.raises(ValueError, match="'dog' is not in 'a cat' nor in 'a brown cat'"):
        replacement_windows([one, two], 5, {"dog": 0.5})
