"""Sentences in templates: one article, spans in the right place."""

import re

import pytest

from ldm.prompts import (
    IMAGENET_DUAL_TEMPLATES_SMALL,
    IMAGENET_TEMPLATES_SMALL,
    IMAGENET_TEMPLATES_STYLE,
    PER_IMAGE_TOKENS,
    Caption,
    WordSpan,
    apply_strategy,
    fill,
    parse_sentence,
)

MARKED = (
    "a [brown] <teddy:bear> on a [rolling] <board:skateboard> at times square",
    "an [orange] <x:ball>",
    "The <x:dog> that is <y:asleep>",
    "<x>",
    "<the thing:ball> and a <x:box>",
    "green <x:ball> and orange <y:box>",
)
DOUBLE = re.compile(
    r"\b(a|an|the|my|one)\s+((clean|dirty|cool|nice|small|weird|large)\s+)?(a|an|the)\b(?!\w*>)",
    re.I,
)
TEMPLATES = IMAGENET_TEMPLATES_SMALL + IMAGENET_TEMPLATES_STYLE


def test_the_templates_are_the_public_ones():
    assert len(IMAGENET_TEMPLATES_SMALL) == len(set(IMAGENET_TEMPLATES_SMALL)) == 27
    assert IMAGENET_TEMPLATES_SMALL[0] == "a photo of a {}"
    assert IMAGENET_TEMPLATES_STYLE[0] == "a painting in the style of {}"
    assert IMAGENET_DUAL_TEMPLATES_SMALL[0] == "a photo of a {} with {}"
    assert len(PER_IMAGE_TOKENS) == len(set(PER_IMAGE_TOKENS)) == 22


@pytest.mark.parametrize("strategy", ["one", "all"])
@pytest.mark.parametrize("markup", MARKED)
def test_no_caption_has_a_double_article_and_every_span_holds_its_word(markup, strategy):
    sentence = apply_strategy(parse_sentence(markup), strategy)
    before = sentence.caption
    for template in TEMPLATES:
        caption = fill(template, before)
        assert not DOUBLE.search(caption.text), caption.text
        assert "{}" not in caption.text
        assert "  " not in caption.text
        lost = set(before.names()) - set(caption.names())
        assert not lost, (lost, caption.text)
        for spans in (caption.learnable, caption.bound):
            assert len(spans) == len(
                before.learnable if spans is caption.learnable else before.bound
            )
        for span in caption.learnable:
            assert caption.text[span.start : span.end].lower() == span.word.lower()
        for old, new in zip(before.bound, caption.bound, strict=True):
            assert before.text[old.start : old.end] == caption.text[new.start : new.end]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a photo of a {}", "a photo of a brown <teddy>"),
        ("the photo of a {}", "the photo of a brown <teddy>"),
        ("a photo of my {}", "a photo of a brown <teddy>"),
        ("a photo of the cool {}", "a photo of the cool brown <teddy>"),
        ("{} at night", "a brown <teddy> at night"),
    ],
)
def test_the_sentence_brings_its_own_article(template, expected):
    assert fill(template, parse_sentence("a [brown] <teddy>").caption).text == expected


def test_an_article_that_is_learned_stays_and_the_templates_goes():
    sentence = Caption("a brown *", (WordSpan(0, 1, "a"), WordSpan(8, 9, "*")))
    caption = fill("the photo of the cool {}", sentence)
    assert caption.text == "the photo of a cool brown *"
    assert caption.learnable == (WordSpan(13, 14, "a"), WordSpan(26, 27, "*"))


def test_a_template_keeps_its_article_when_the_sentence_has_none():
    assert (
        fill("a photo of a {}", "green * and orange @").text == "a photo of a green * and orange @"
    )
    assert fill("a photo of a {}", "another *").text == "a photo of a another *"


def test_the_templates_own_words_are_never_learnable():
    sentence = apply_strategy(parse_sentence("a <x> of a photo"), "all")
    caption = fill("a photo of a {}", sentence.caption)
    assert caption.text == "a photo of a <x> of a photo"
    assert [span.start for span in caption.learnable if span.word == "a"] == [11, 20]
    assert [span.start for span in caption.learnable if span.word == "photo"] == [22]


def test_two_slots_take_two_sentences():
    caption = fill("a photo of a {} with {}", Caption.of("*", ["*"]), Caption.of("א", ["א"]))
    assert caption.text == "a photo of a * with א"
    assert [caption.text[s.start : s.end] for s in caption.learnable] == ["*", "א"]


def test_text_of_one_slot_is_not_taken_for_an_article_of_the_next():
    caption = fill("{} {}", Caption.of("one", ["one"]), "a dog")
    assert caption.text == "one a dog"
    assert caption.names() == ("one",)


def test_a_wrong_number_of_slots_is_refused():
    with pytest.raises(ValueError, match=r"has 2 slots \{\} but 1 sentences"):
        fill("a {} with {}", "*")
