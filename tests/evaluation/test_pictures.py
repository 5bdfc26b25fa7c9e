"""What is drawn with the words: prompts filled in, the concept on other subjects."""

import pytest

from ldm.data.playroom import CONCEPT_SETS, PlayroomConcepts
from ldm.errors import UserError
from ldm.evaluation.pictures import Pictures, put
from ldm.prompts import parse_sentence


@pytest.fixture
def frozen(tmp_path):
    """Caption and words of a Lego set."""
    data = PlayroomConcepts("lego-frozen", 16, folder=tmp_path / "set")
    return data.sentence_of(0).caption, data.words


def test_prompts_are_filled_for_every_noun():
    sentence = parse_sentence("a [brown] <bear:toy> on a <board:skateboard>")
    prompts = Pictures(("a photo of {sentence}", "a {word}", "a mug that is {concept}"))
    assert prompts.filled(sentence.caption, sentence.words) == [
        "a photo of a brown <bear> on a <board>", "a <bear>", "a <board>",
    ]  # fmt: skip
    assert prompts.transferred(sentence.caption, sentence.words) == []


def test_the_concept_is_all_from_its_first_word_to_its_last(frozen):
    (prompt,) = Pictures(("a mug that is {concept}",)).filled(*frozen)
    assert prompt == "a mug that is <frozen> in <ice>"


def test_the_concept_on_other_subjects(frozen):
    pictures = Pictures(transfer=("mug", "elephant"))
    assert pictures.transferred(*frozen) == [
        ("mug", "a photo of a mug that is <frozen> in <ice>",
         "a photo of a mug that is frozen in ice"),
        ("elephant", "a photo of an elephant that is <frozen> in <ice>",
         "a photo of an elephant that is frozen in ice"),
    ]  # fmt: skip


def test_without_a_learned_subject_the_concept_is_said_of_a_new_one(tmp_path):
    data = PlayroomConcepts("lego-frozen", 16, folder=tmp_path / "set", subject_separation=False)
    found = Pictures(transfer=("mug",)).transferred(data.sentence_of(0).caption, data.words)
    assert found[0][1] == "a photo of a mug that is <frozen> in <ice>"


@pytest.mark.parametrize("name", [name for name in CONCEPT_SETS if name.startswith("lego-")])
def test_every_lego_set_can_be_transferred(name, tmp_path):
    data = PlayroomConcepts(name, 16, folder=tmp_path / "set")
    for _, learned, plain in Pictures(transfer=("dog",)).transferred(
        data.sentence_of(0).caption, data.words
    ):
        assert "dog" in learned
        assert "<subject>" not in learned
        assert "<" in learned
        assert "<" not in plain


def test_articles():
    assert put("a <s> and <s>", "<s>", "apple") == "an apple and apple"
    assert put("on an <s>", "<s>", "mug") == "on a mug"


@pytest.mark.parametrize(
    ("wanted", "said"), [({"stepz": 3}, "stepz"), ({"every": -1}, "every=-1"), ({"steps": 0}, "=0")]
)
def test_impossible_wishes_are_refused(wanted, said):
    with pytest.raises(ValueError, match=said):
        Pictures.of(wanted)
    assert Pictures.of(None) is None
    assert issubclass(UserError, ValueError)
