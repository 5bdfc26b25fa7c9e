"""Captions speak the world's language, say what is drawn, and keep the splits."""

from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from transformers import BertTokenizerFast

from ldm.data.playroom import OBJECTS, caption_for, sample_spec, spec_from_names, vocabulary
from ldm.data.playroom.captions import KINDS, STRANGE, into_template, plural
from ldm.data.playroom.colours import COLOURS
from ldm.data.playroom.spec import COUNTS
from ldm.data.playroom.splits import (
    SPLITS,
    UNNAMED_OBJECTS,
    UNNAMED_STATES,
    UNSEEN_OBJECTS,
    UNSEEN_PAIRS,
    UNSEEN_STATES,
)
from ldm.data.playroom.vocabulary import world_words

MANY = 2000


@pytest.fixture(scope="module")
def sampled() -> list:
    """Many training scenes with their captions and nouns."""
    found = []
    for k in range(MANY):
        rng = Random(f"captions:{k}")
        spec = sample_spec(rng)
        found.append((spec, *caption_for(spec, rng)))
    return found


@pytest.fixture(scope="module")
def tokenizer(repo: Path) -> BertTokenizerFast:
    return BertTokenizerFast(str(repo / "models/ldm/playroom/vocab.txt"))


def test_training_never_draws_what_is_unseen(sampled: list) -> None:
    for spec, _, _ in sampled:
        for one in spec.objects:
            assert one.name not in UNSEEN_OBJECTS
            assert (one.colour, one.name) not in UNSEEN_PAIRS
            assert one.state not in UNSEEN_STATES


def test_training_never_names_what_is_unnamed_or_unseen(sampled: list) -> None:
    secret = {w for name in (*UNNAMED_OBJECTS, *UNSEEN_OBJECTS) for w in OBJECTS[name].words}
    secret |= {plural(word) for word in secret}
    secret |= {"burnt", "melted", "crumpled", "smiley", "emoji", "cavity", "tumour", "edema"}
    for _, caption, _ in sampled:
        assert not secret & set(caption.split()), caption


def test_what_is_unnamed_is_drawn_and_called_by_a_general_word(sampled: list) -> None:
    drawn = set()
    for spec, caption, nouns in sampled:
        for one, noun in zip(spec.objects, nouns, strict=True):
            if one.name in UNNAMED_OBJECTS:
                drawn.add(one.name)
                assert noun in KINDS
            if one.state in UNNAMED_STATES:
                drawn.add(one.state)
                assert STRANGE in caption.split()
    assert drawn == {*UNNAMED_OBJECTS, *UNNAMED_STATES}


def test_general_words_are_not_secret_names(sampled: list) -> None:
    """Each general word also stands for objects that have names."""
    meant: dict[str, set[str]] = {}
    for spec, _, nouns in sampled:
        for one, noun in zip(spec.objects, nouns, strict=True):
            if noun in KINDS:
                meant.setdefault(noun, set()).add(one.name)
    for noun in ("toy", "animal", "plant", "vehicle", "thing"):
        assert meant[noun] - set(UNNAMED_OBJECTS), noun


def test_captions_mention_their_objects(sampled: list) -> None:
    for spec, caption, nouns in sampled:
        words = caption.split()
        assert len(nouns) == len(spec.objects)
        for one, noun in zip(spec.objects, nouns, strict=True):
            shown = plural(noun, OBJECTS[one.name]) if one.count > 1 else noun
            assert shown in caption
            if one.count > 1:
                assert COUNTS[one.count] in words
        colours = {one.colour for one in spec.objects} | {spec.ground_colour, "grey"}
        assert set(words) & set(COLOURS) <= colours


def test_no_article_is_doubled(sampled: list) -> None:
    for _, caption, _ in sampled:
        words = caption.split()
        assert not any(
            a in ("a", "an", "the", "my", "one") and b in ("a", "an", "the", *COUNTS.values())
            for a, b in pairwise(words)
        ), caption
        assert "  " not in caption


@pytest.mark.parametrize(
    ("template", "sentence", "expected"),
    [
        ("a photo of a {}", "a brown bear", "a photo of a brown bear"),
        ("a photo of a {}", "an orange bear", "a photo of an orange bear"),
        ("a photo of the {}", "a brown bear", "a photo of the brown bear"),
        ("a photo of a clean {}", "an orange bear", "a photo of a clean orange bear"),
        ("a photo of a {}", "three bears", "a photo of three bears"),
        ("a photo of the cool {}", "yellow bananas", "a photo of cool yellow bananas"),
        ("a picture of {}", "a brown bear", "a picture of a brown bear"),
    ],
)
def test_templates(template: str, sentence: str, expected: str) -> None:
    assert into_template(template, sentence) == expected


def test_both_orders_of_a_relation_are_said() -> None:
    spec = spec_from_names(["brown bear", "red ball"], "on")
    found = {caption_for(spec, Random(k), templates=False)[0] for k in range(300)}
    assert "a brown teddy bear on a red ball" in found
    assert "a red ball under a brown teddy bear" in found
    assert "a teddy bear on a ball" in found


def test_other_splits_speak_plainly() -> None:
    for k in range(200):
        for split, names in (("unnamed", UNNAMED_OBJECTS), ("unseen", UNSEEN_OBJECTS)):
            rng = Random(f"{split}:{k}")
            spec = sample_spec(rng, split)
            _, nouns = caption_for(spec, rng, true_names=True)
            assert spec.objects[0].name in names
            assert nouns[0] in OBJECTS[spec.objects[0].name].words
        pair = sample_spec(Random(k), "pairs").objects[0]
        assert (pair.colour, pair.name) in UNSEEN_PAIRS
        named = sample_spec(Random(k), "named", n_objects=3)
        assert len(named.objects) == 3
        assert not {one.name for one in named.objects} & {*UNNAMED_OBJECTS, *UNSEEN_OBJECTS}
    with pytest.raises(ValueError, match="split 'train' is unknown"):
        sample_spec(Random(0), "train")
    assert SPLITS[0] == "seen"


def test_the_vocabulary_file_is_the_vocabulary(repo: Path) -> None:
    pieces = (repo / "models/ldm/playroom/vocab.txt").read_text(encoding="utf-8").splitlines()
    assert pieces == vocabulary()
    assert len(set(pieces)) == len(pieces)
    assert pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert 600 <= len(pieces) <= 900


def test_captions_are_whole_words_of_the_vocabulary(
    sampled: list, tokenizer: BertTokenizerFast
) -> None:
    words = sorted({word for _, caption, _ in sampled for word in caption.split()})
    for word in words:
        pieces = tokenizer.tokenize(word)
        assert not any(piece.startswith("##") for piece in pieces), word
        assert "[UNK]" not in pieces, word
    assert all(tokenizer.tokenize(word) == [word] for word in world_words())
    longest = max(len(tokenizer(caption)["input_ids"]) for _, caption, _ in sampled)
    assert longest <= 77


def test_any_text_in_latin_letters_can_be_written(tokenizer: BertTokenizerFast) -> None:
    text = "Xylophones & zebras: 42 <jumping> quickly, * and @ (50%)!"
    assert "[UNK]" not in tokenizer.tokenize(text)
    assert tokenizer.pad_token_id == 0
