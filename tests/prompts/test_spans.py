"""Finding words in text."""

import pytest

from ldm.prompts import Caption, WordSpan, find_words


def found(text, words):
    return [(span.word, text[span.start : span.end]) for span in find_words(text, words)]


def test_words_are_found_whole_in_order_of_appearance():
    assert found("the art of a party, art!", ["art", "party"]) == [
        ("art", "art"),
        ("party", "party"),
        ("art", "art"),
    ]


@pytest.mark.parametrize("text", ["party", "arts", "1art", "art_2", "ärt"])
def test_a_word_that_touches_letters_or_digits_is_another_word(text):
    assert found(text, ["art"]) == []


def test_punctuation_matches_anywhere():
    assert found("x*y a* @@", ["*", "@"]) == [("*", "*"), ("*", "*"), ("@", "@"), ("@", "@")]


def test_the_longest_word_wins():
    assert found("a teddy bear and a bear", ["bear", "teddy bear"]) == [
        ("teddy bear", "teddy bear"),
        ("bear", "bear"),
    ]
    # Also against one that begins further left.
    assert found("a b c d", ["a b", "b c d"]) == [("b c d", "b c d")]


def test_lower_case_words_match_any_case_and_others_only_their_own():
    assert found("Peachy PEACHY", ["peachy"]) == [("peachy", "Peachy"), ("peachy", "PEACHY")]
    assert found("Peachy peachy", ["Peachy"]) == [("Peachy", "Peachy")]


def test_scripts_without_spaces_need_none():
    assert found("日本の猫", ["日本", "猫"]) == [("日本", "日本"), ("猫", "猫")]


@pytest.mark.parametrize("word", ["st.bernard", "<teddy bear>", "c++", "(x)", "café", "\\d"])
def test_any_spelling_is_taken_literally(word):
    text = f"see {word}, and xst.bernardx dd"
    assert found(text, [word]) == [(word, word)]


def test_a_caption_orders_its_spans_and_names_them_once():
    caption = Caption("a * a", (WordSpan(4, 5, "a"), WordSpan(0, 1, "a"), WordSpan(2, 3, "*")))
    assert [span.start for span in caption.learnable] == [0, 2, 4]
    assert caption.names() == ("a", "*")
    assert str(caption) == "a * a"


@pytest.mark.parametrize("span", [(0, 9), (-1, 2), (2, 2), (3, 2)])
def test_a_span_outside_the_text_is_refused(span):
    with pytest.raises(ValueError, match=r"is not inside the 5 characters of 'a \* a'"):
        Caption("a * a", (WordSpan(*span, "*"),))


def test_overlapping_learnable_words_are_refused():
    with pytest.raises(ValueError, match="'ab' and 'b' overlap in 'abc'"):
        Caption("abc", (WordSpan(1, 2, "b"), WordSpan(0, 2, "ab")))


def test_a_caption_made_of_a_caption_keeps_its_own_spans():
    caption = Caption("a * and a", (WordSpan(8, 9, "a"),))
    assert Caption.of(caption, ["a", "*"]) is caption
    assert Caption.of("a * and a", ["a", "*"]).names() == ("a", "*")
