"""The markup, the strategies and the released flags."""

import logging

import pytest

from ldm.prompts import (
    Caption,
    LearnableWord,
    Sentence,
    WordSpan,
    apply_strategy,
    as_words,
    fill,
    parse_released,
    parse_sentence,
    relate,
)

TEDDY = "a [brown] <teddy:bear> on a [rolling] <board:skateboard> at times square"


def test_the_markup_says_everything():
    sentence = parse_sentence(TEDDY)
    assert str(sentence) == "a brown <teddy> on a rolling <board> at times square"
    assert sentence.words == (
        LearnableWord("<teddy>", "bear", adjective="brown"),
        LearnableWord("<board>", "skateboard", adjective="rolling"),
    )
    text = sentence.caption.text
    assert [text[s.start : s.end] for s in sentence.caption.learnable] == ["<teddy>", "<board>"]
    assert [(text[s.start : s.end], s.word) for s in sentence.caption.bound] == [
        ("brown", "<teddy>"),
        ("rolling", "<board>"),
    ]


@pytest.mark.parametrize(
    ("markup", "word"),
    [
        ("<teddy bear>", LearnableWord("<teddy bear>", "teddy bear")),
        ("<x: small brown dog >", LearnableWord("<x>", "small brown dog")),
        ("<x:dog|3>", LearnableWord("<x>", "dog", 3)),
        ("<x|2>", LearnableWord("<x>", "x", 2)),
        ("<日本:japan>", LearnableWord("<日本>", "japan")),
        ("<x:random>", LearnableWord("<x>", "random")),
        ("[big] [dark red] <x>", LearnableWord("<x>", "x", adjective="big dark red")),
        ("<x:dog> and <x>", LearnableWord("<x>", "dog")),
        ("<x> and <x:dog>", LearnableWord("<x>", "dog")),
        ("<x:dog|2> and [red] <x:dog>", LearnableWord("<x>", "dog", 2, "red")),
    ],
)
def test_forms_of_a_word(markup, word):
    assert parse_sentence(markup).words == (word,)


@pytest.mark.parametrize(
    ("markup", "message", "column"),
    [
        ("a dog", "no learnable word", 0),
        ("a <teddy", "no partner", 2),
        ("a teddy>", "no partner", 7),
        ("a <x> [red", "no partner", 6),
        ("a [<x>]", "no partner", 2),
        ("a <x [red]>", "no partner", 2),
        ("<x> is [red]", "no learnable word after it", 7),
        ("a <>", "has no name", 2),
        ("a <:dog>", "has no name", 2),
        ("a <x:>", "no init after the colon", 2),
        ("a [ ] <x>", "no adjective between", 2),
        ("a <x|0>", "'0' is not a number of vectors", 2),
        ("a <x|two>", "'two' is not a number of vectors", 2),
        ("a <x|>", "'' is not a number of vectors", 2),
        ("<x:dog> <x:cat>", "from 'dog' before and from 'cat' here", 8),
        ("<x|2> <x|3>", "2 vectors before and 3 here", 6),
    ],
)
def test_errors_quote_the_sentence_and_point_at_the_place(markup, message, column):
    with pytest.raises(ValueError, match="\n") as caught:
        parse_sentence(markup)
    first, quoted, pointer = str(caught.value).split("\n")
    assert message in first
    assert quoted == "  " + markup
    assert pointer == " " * (2 + column) + "^"


def test_strategy_one_keeps_the_marked_words():
    sentence = parse_sentence(TEDDY)
    assert apply_strategy(sentence, "one") is sentence


def test_strategy_all_learns_every_word_from_itself():
    sentence = apply_strategy(parse_sentence(TEDDY), "all")
    assert str(sentence) == str(parse_sentence(TEDDY))
    assert sentence.words[2:] == (
        LearnableWord("a", "a", role="other"),
        LearnableWord("brown", "brown", role="adjective"),
        LearnableWord("on", "on", role="other"),
        LearnableWord("rolling", "rolling", role="adjective"),
        LearnableWord("at", "at", role="other"),
        LearnableWord("times", "times", role="other"),
        LearnableWord("square", "square", role="other"),
    )
    spans = sentence.caption.learnable
    assert [span.word for span in spans] == (
        ["a", "brown", "<teddy>", "on", "a", "rolling", "<board>", "at", "times", "square"]
    )
    assert sentence.caption.bound == parse_sentence(TEDDY).caption.bound


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="strategy 'some': expected 'one'"):
        apply_strategy(parse_sentence(TEDDY), "some")


def test_a_caption_cannot_hold_an_undefined_word():
    with pytest.raises(ValueError, match=r"\['x'\] in 'x' are learnable but not defined"):
        Sentence(Caption("x", (WordSpan(0, 1, "x"),)), (LearnableWord("y"),))


def test_lists_of_words_as_the_flags_give_them():
    assert as_words("green,*, and,orange,@,*") == ("green", "*", "and", "orange", "@")
    assert as_words("") == as_words(None) == as_words([]) == ()


class TestReleasedFlags:
    """The five commands of the MCPL README, and textual inversion's."""

    def test_textual_inversion(self):
        sentence = parse_released("*", "", init_word="toy")
        assert sentence.words == (LearnableWord("*", "toy"),)
        assert parse_released("peachy", (), init_word="toy").words[0].init == "toy"

    def test_all(self):
        sentence = parse_released("green * and orange @", "green,*,and,orange,@", init_word="ball")
        assert sentence.caption.names() == ("green", "*", "and", "orange", "@")
        assert {word.name: word.start for word in sentence.words} == {
            "green": "green",
            "*": "ball",
            "and": "and",
            "orange": "orange",
            "@": "ball",
        }

    def test_one(self):
        sentence = parse_released("green * and orange @", ["*", "@"], init_word="ball,box")
        assert sentence.caption.names() == ("*", "@")
        assert [word.init for word in sentence.words] == ["ball", "box"]

    def test_diverse(self):
        words = "*,@,on,under,next,front"
        sentence = parse_released("green * RELATE orange @", words, init_word="ball")
        assert str(sentence) == "green * RELATE orange @"
        assert sentence.names == tuple(words.split(","))
        under = relate(sentence, "under")
        assert str(under) == "green * under orange @"
        assert under.caption.names() == ("*", "under", "@")
        assert under.words == sentence.words
        for span in under.caption.learnable:
            assert under.caption.text[span.start : span.end] == span.word
        # A relation that is not listed is an ordinary word.
        assert relate(sentence, "behind").caption.names() == ("*", "@")

    def test_contrast_with_bound_adjectives(self):
        sentence = parse_released(
            "a brown @ on a rolling * at times square",
            "a,brown,on,rolling,at,times,square,@,*",
            adjectives="brown,rolling",
            init_word="bear",
            nouns="@,*",
        )
        caption = sentence.caption
        assert [span.start for span in caption.learnable if span.word == "a"] == [0, 13]
        bound = [(caption.text[s.start : s.end], s.word) for s in caption.bound]
        assert bound == [("brown", "@"), ("rolling", "*")]
        words = {word.name: word for word in sentence.words}
        assert (words["@"].adjective, words["*"].adjective) == ("brown", "rolling")
        assert (words["brown"].role, words["a"].role, words["@"].role) == (
            "adjective",
            "other",
            "noun",
        )
        # In a template, its own article is neither doubled nor learned.
        filled = fill("a photo of a {}", caption)
        assert filled.text == "a photo of a brown @ on a rolling * at times square"
        assert [span.start for span in filled.learnable if span.word == "a"] == [11, 24]

    def test_adjectives_of_the_mask_command_bind_to_the_next_noun(self):
        sentence = parse_released("brown and big @ by a *", "and,@,*", adjectives=["brown", "big"])
        assert [span.word for span in sentence.caption.bound] == ["@", "@"]
        assert {w.name: w.adjective for w in sentence.words} == {
            "and": None,
            "@": "brown big",
            "*": None,
        }

    def test_a_listed_word_that_is_not_in_the_sentence_is_refused(self):
        with pytest.raises(
            ValueError, match=r"\['%'\] are not in the placeholder string 'green \*'"
        ):
            parse_released("green *", "*,%")

    def test_adjectives_must_be_there_and_have_a_word_to_bind_to(self):
        with pytest.raises(ValueError, match=r"adjectives \['red'\] are not in"):
            parse_released("green *", "*", adjectives="red")
        with pytest.raises(ValueError, match="'green' has no learnable word after it") as caught:
            parse_released("* is green", "*", adjectives="green")
        assert str(caught.value).endswith("\n  * is green\n       ^")

    def test_init_words_must_be_one_or_as_many_as_the_placeholders(self):
        with pytest.raises(ValueError, match=r"names 3 words for the placeholders \['\*', '@'\]"):
            parse_released("* and @", "*,@", init_word="a,b,c")

    def test_an_init_word_without_placeholder_is_a_warning(self, caplog):
        with caplog.at_level(logging.WARNING):
            sentence = parse_released("red dog", "red,dog", init_word="cat")
        assert "init_word 'cat' is not used" in caplog.text
        assert [word.start for word in sentence.words] == ["red", "dog"]


def test_relating_a_sentence_without_relation_changes_nothing():
    sentence = parse_sentence(TEDDY)
    assert relate(sentence, "under") == sentence


@pytest.mark.parametrize(("name", "vectors"), [("", 1), ("  ", 1), ("x", 0)])
def test_a_word_needs_a_name_and_a_vector(name, vectors):
    with pytest.raises(ValueError, match="needs"):
        LearnableWord(name, vectors=vectors)


@pytest.mark.parametrize(
    ("name", "start"), [("<dog>", "dog"), ("dog", "dog"), ("<", "<"), ("*", "*")]
)
def test_a_word_starts_from_its_own_spelling(name, start):
    assert LearnableWord(name).start == start
    assert LearnableWord(name, "cat").start == "cat"


def test_relate_is_no_word_of_its_own():
    sentence = apply_strategy(parse_sentence("a <ball:toy> RELATE a <box:thing>"), "all")
    assert "relate" not in sentence.names
    shown = apply_strategy(relate(sentence, "in front of"), "all").caption
    assert [shown.text[s.start : s.end] for s in shown.learnable] == [
        "a", "<ball>", "in", "front", "of", "a", "<box>",
    ]  # fmt: skip
