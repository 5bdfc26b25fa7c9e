"""Figures of learned words: overlaps with true masks, plain and matched, and neighbours."""

import numpy as np
import pytest
import torch

from ldm.evaluation.words import (
    MOST_MATCHED,
    best_matching,
    mean_overlap,
    nearest_words,
    report_words,
    word_overlaps,
)
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.modules.encoders.modules import BERTEmbedder
from ldm.prompts.sentence import LearnableWord
from tests.training.toy import VOCAB

LEFT, RIGHT = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
LEFT[:, :4], RIGHT[:, 4:] = True, True
TRUTHS = [{"<a>": LEFT, "<b>": RIGHT}, {"<a>": LEFT, "<b>": RIGHT}]


def maps(*masks):
    """Attention that is exactly each of `masks`, in two pictures."""
    return torch.stack([torch.from_numpy(mask).float() for mask in masks])


def test_words_that_look_right():
    table = word_overlaps({"<a>": maps(LEFT, LEFT), "<b>": maps(RIGHT, RIGHT)}, TRUTHS)
    assert table == {"<a>": {"<a>": 1.0, "<b>": 0.0}, "<b>": {"<a>": 0.0, "<b>": 1.0}}
    assert mean_overlap(table) == 1.0
    assert best_matching(table) == (1.0, {"<a>": "<a>", "<b>": "<b>"})


def test_words_that_found_each_others_objects():
    table = word_overlaps({"<a>": maps(RIGHT, RIGHT), "<b>": maps(LEFT, LEFT)}, TRUTHS)
    assert mean_overlap(table) == 0.0
    assert best_matching(table) == (1.0, {"<a>": "<b>", "<b>": "<a>"})


def test_only_pictures_that_show_both_count():
    """The second picture's caption has no <a>: its map is empty."""
    seen = {"<a>": maps(LEFT, np.zeros_like(LEFT)), "on": maps(LEFT, LEFT)}
    assert word_overlaps(seen, TRUTHS) == {"<a>": {"<a>": 1.0, "<b>": 0.0}}
    assert word_overlaps({"on": maps(LEFT, LEFT)}, TRUTHS) == {}
    assert word_overlaps({"<a>": maps(LEFT, LEFT)}, []) == {}


def test_the_matching_is_never_worse_than_the_plain_order():
    random = np.random.default_rng(0)
    for _ in range(20):
        words = [f"<{n}>" for n in range(4)]
        table = {w: {o: float(random.random()) for o in words} for w in words}
        assert best_matching(table)[0] >= mean_overlap(table) - 1e-4


def test_nothing_to_match():
    assert mean_overlap({}) is None
    assert best_matching({}) is None
    many = [f"<{n}>" for n in range(MOST_MATCHED + 1)]
    assert best_matching({w: dict.fromkeys(many, 0.5) for w in many}) is None


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    size = len(VOCAB.read_text().splitlines())
    return BERTEmbedder(16, 1, vocab_size=size, max_seq_len=8, vocab_file=str(VOCAB))


def test_a_word_is_nearest_to_what_it_starts_from(encoder):
    words = [LearnableWord("<teddy>", "bear", 2, "brown"), LearnableWord("<r>", "random")]
    manager = EmbeddingManager(encoder, words=words)
    rows = report_words(manager, encoder)
    assert rows[0].nearest[0] == "bear"
    assert len(rows[0].nearest) == len(set(rows[0].nearest)) == 3
    assert (rows[0].moved, rows[0].vectors, rows[0].bound_adjective) == (0.0, 2, "brown")
    assert rows[0].norm_before == rows[0].norm_after > 0
    assert rows[0].iou is None


def test_neighbours_are_whole_words(encoder):
    table = encoder.token_embedding.weight
    for number in range(0, len(table), 50):
        found = nearest_words(encoder, table[number].detach(), 5)
        assert not [word for word in found if word.startswith(("##", "["))]


def test_the_report_tells_how_far_a_word_moved(encoder):
    manager = EmbeddingManager(encoder, words=[LearnableWord("<teddy>", "bear")])
    with torch.no_grad():
        manager.string_to_param_dict["<teddy>"][0, 0] += 3.0
    (row,) = report_words(manager, encoder, {"<teddy>": {"<teddy>": 0.5}}, {})
    assert row.moved == pytest.approx(3.0, abs=1e-3)
    assert (row.iou, row.iou_before) == (0.5, None)
