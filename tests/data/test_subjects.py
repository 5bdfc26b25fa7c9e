"""Lego's two sets of pictures: which words are concepts, and what is left without separation."""

import json

import pytest
from PIL import Image

from ldm.data.personalized import PersonalizedBase
from ldm.data.playroom import PlayroomConcepts
from ldm.data.steps import StepKey
from ldm.data.subjects import describe
from ldm.prompts import LearnableWord, Sentence, apply_strategy, parse_sentence

KEYS = [StepKey(step, slot) for step in range(5) for slot in range(4)]
TWO = {
    "concept/1.png": "a photo of a <cat:animal> with <closed:strange> <eyes:strange>",
    "concept/2.png": "a photo of a [red] <robot:toy> with <closed> <eyes>",
    "subject/1.png": "a photo of a <cat>",
    "subject/2.png": "a photo of a [red] <robot>",
}


def pictures(folder, sentences):
    """A folder of small pictures with these sentences."""
    rows = []
    for number, (name, text) in enumerate(sentences.items()):
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(path)
        rows.append(json.dumps({"file_name": name, "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def roles(dataset):
    return {word.name: word.role for word in dataset.words}


def captions(dataset):
    return {str(dataset[key]["caption"]) for key in KEYS}


class TestWhichWordsAreConcepts:
    def test_those_that_only_pictures_of_the_concept_show(self, tmp_path):
        dataset = PersonalizedBase(pictures(tmp_path, TWO), size=8)
        assert roles(dataset) == {
            "<cat>": "noun", "<robot>": "noun", "<closed>": "concept", "<eyes>": "concept",
        }  # fmt: skip

    def test_ordinary_pictures_have_none(self, tmp_path):
        texts = {name.replace("concept/", ""): text for name, text in list(TWO.items())[:2]}
        assert set(roles(PersonalizedBase(pictures(tmp_path, texts), size=8)).values()) == {"noun"}

    def test_words_between_are_none(self, tmp_path):
        dataset = PersonalizedBase(pictures(tmp_path, TWO), size=8, strategy="all")
        found = roles(dataset)
        assert found["with"] == "other"
        assert found["red"] == "adjective"
        assert [name for name, role in found.items() if role == "concept"] == ["<closed>", "<eyes>"]

    def test_a_sentence_for_each_kind(self, tmp_path):
        folder = pictures(tmp_path, dict.fromkeys(TWO, "x"))
        (folder / "metadata.jsonl").unlink()
        sentence = {"concept": "<cube:toy> that is <burnt>", "subject": "<cube>"}
        dataset = PersonalizedBase(folder, size=8, sentence=sentence)
        assert roles(dataset) == {"<cube>": "noun", "<burnt>": "concept"}


class TestWithoutSeparation:
    def test_only_the_concept_is_shown_and_subjects_are_described(self, tmp_path):
        dataset = PersonalizedBase(pictures(tmp_path, TWO), size=8, subject_separation=False)
        assert [item.kind for item in dataset.items] == ["concept", "concept"]
        assert captions(dataset) == {
            "a photo of an animal with <closed> <eyes>",
            "a photo of a red toy with <closed> <eyes>",
        }
        assert roles(dataset) == {"<closed>": "concept", "<eyes>": "concept"}
        assert len(dataset) == 200
        assert {index for index, _, _ in dataset.images()} == {0, 1}

    def test_pictures_without_kinds_stay(self, tmp_path):
        texts = {"1.png": "a photo of a <cat:animal>"}
        folder = pictures(tmp_path, texts)
        on, off = (PersonalizedBase(folder, subject_separation=each) for each in (True, False))
        assert on.sentences == off.sentences
        assert on.words == off.words

    def test_one_sentence_for_all_as_textual_inversion_has_it(self, tmp_path):
        dataset = PersonalizedBase(
            pictures(tmp_path, TWO), size=8, sentence="a photo of a toy that is <R:and>",
            own_sentences=False, subject_separation=False,
        )  # fmt: skip
        assert captions(dataset) == {"a photo of a toy that is <R>"}
        assert dataset.num_images == 2
        assert roles(dataset) == {"<R>": "concept"}

    def test_the_drawn_set_keeps_its_masks(self, tmp_path):
        options = {"name": "lego-frozen", "size": 32, "folder": tmp_path / "set"}
        dataset = PlayroomConcepts(**options, subject_separation=False)
        assert dataset.num_images == 2
        assert captions(dataset) == {"a photo of a toy that is <frozen> in <ice>"}
        whole = PlayroomConcepts(**options)
        assert whole.num_images == 4
        for index in range(2):
            assert (dataset.masks(index)["<subject>"] == whole.masks(index)["<subject>"]).all()
            assert dataset.items[index] == whole.items[index]

    @pytest.mark.parametrize(
        ("sentences", "message"),
        [
            ({"subject/1.png": "a photo of a <cat:animal>"}, "every picture is one without"),
            (
                {"subject/1.png": "a photo of a <cat:animal>", "concept/2.png": "the <cat>"},
                r"2\.png.*nothing is left to learn",
            ),
        ],
    )
    def test_nothing_left_is_said(self, tmp_path, sentences, message):
        with pytest.raises(ValueError, match=message):
            PersonalizedBase(pictures(tmp_path, sentences), subject_separation=False)


class TestDescribe:
    def test_spans_fit_the_new_text(self):
        markup = "a [striped] <x:animal> beside a <cat:cat> and a <x> on a [big] <y:orange duck>"
        sentence = describe(parse_sentence(markup), {"<x>", "<y>"})
        caption = sentence.caption
        text = "a striped animal beside a <cat> and an animal on a big orange duck"
        assert caption.text == text
        assert [text[s.start : s.end] for s in caption.learnable] == ["<cat>"]
        assert caption.bound == ()
        assert sentence.names == ("<cat>",)

    def test_adjectives_of_other_words_stay_bound(self):
        caption = describe(parse_sentence("a <x:ant> on a [red] <y>"), {"<x>"}).caption
        assert caption.text == "an ant on a red <y>"
        assert [(caption.text[s.start : s.end], s.word) for s in caption.bound] == [("red", "<y>")]

    def test_a_learned_article_is_left_alone(self):
        sentence = apply_strategy(parse_sentence("a <x:ant>"), "all")
        caption = describe(sentence, {"<x>"}).caption
        assert caption.text == "a ant"
        assert caption.names() == ("a",)

    def test_a_word_that_starts_at_random_goes_by_its_name(self):
        base = parse_sentence("a <cube> that is <burnt>")
        words = (LearnableWord("<cube>", "random"), base.words[1])
        text = describe(Sentence(base.caption, words), {"<cube>"}).caption.text
        assert text == "a cube that is <burnt>"
