"""Pictures and sentences of a few concepts: captions, stateless draws, the original interface."""

import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data import personalized, personalized_style
from ldm.data.images import to_array
from ldm.data.metadata import read_items
from ldm.data.personalized import PersonalizedBase
from ldm.data.steps import StepBatchSampler, StepKey
from ldm.prompts import IMAGENET_TEMPLATES_SMALL, Caption, parse_released, parse_sentence

SENTENCE = "a [brown] <teddy:bear> on a [rolling] <board:skateboard|2> at times square"
DOUBLED = re.compile(r"\b(a|an|the|my|one)\s+(a|an|the)\b", re.IGNORECASE)
KEYS = [StepKey(step, slot, run) for step in range(6) for slot in range(4) for run in range(2)]


@pytest.fixture
def folder(tmp_path):
    """Four pictures, no two alike and none symmetric, named by relations."""
    values = np.random.default_rng(3)
    for name in ("on", "under", "next to", "front"):
        pixels = values.integers(0, 255, (10, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path


def jsonl(folder, *rows):
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def same(one, other):
    assert one.keys() == other.keys()
    assert np.array_equal(one["image"], other["image"])
    return all(one[name] == other[name] for name in one if name != "image")


def test_an_example_depends_on_its_key_alone(folder):
    dataset = PersonalizedBase(folder, size=8, sentence=SENTENCE)
    forward = {key: dataset[key] for key in KEYS}
    torch.manual_seed(99)
    again = PersonalizedBase(folder, size=8, sentence=SENTENCE)
    assert all(same(again[key], forward[key]) for key in reversed(KEYS))
    other = PersonalizedBase(folder, size=8, sentence=SENTENCE, seed=1)
    assert not all(other[key]["caption"] == forward[key]["caption"] for key in KEYS)


def test_an_example_draws_nothing_from_the_global_generator(folder):
    dataset = PersonalizedBase(folder, size=8, sentence=SENTENCE)
    before = torch.get_rng_state()
    assert dataset[KEYS[0]]
    assert torch.equal(torch.get_rng_state(), before)


def test_runs_see_different_draws(folder):
    dataset = PersonalizedBase(folder, size=8, sentence=SENTENCE)
    draws = [
        [dataset[StepKey(step, 0, run)]["caption"].text for step in range(20)] for run in range(2)
    ]
    assert draws[0] != draws[1]


def test_an_example_has_the_contracts_entries(folder):
    example = PersonalizedBase(folder, size=8, sentence=SENTENCE)[StepKey(3, 1, 2)]
    assert example["image"].shape == (8, 8, 3)
    assert example["image"].dtype == np.float32
    assert np.abs(example["image"]).max() <= 1
    assert isinstance(example["caption"], Caption)
    assert (example["step"], example["slot"], example["run"]) == (3, 1, 2)


def test_images_templates_and_flips_are_drawn_evenly(folder):
    dataset = PersonalizedBase(folder, size=8, sentence="<teddy>")
    examples = [dataset[StepKey(step, 0)] for step in range(600)]
    ids = Counter(example["image_id"] for example in examples)
    assert set(ids) == {0, 1, 2, 3}
    assert min(ids.values()) > 100
    assert 230 < sum(example["flip"] for example in examples) < 370
    assert {e["caption"].text for e in examples} == {
        template.format("<teddy>") for template in IMAGENET_TEMPLATES_SMALL
    }


def test_every_image_is_among_those_that_can_be_cached(folder):
    dataset = PersonalizedBase(folder, size=8, sentence=SENTENCE)
    cache = {(index, flip): array for index, flip, array in dataset.images()}
    assert dataset.cacheable
    assert len(cache) == 8
    for key in KEYS:
        example = dataset[key]
        assert np.array_equal(example["image"], cache[example["image_id"], example["flip"]])
    for index, item in enumerate(dataset.items):
        plain = to_array(Image.open(item.path), 8, center_crop=False)
        assert np.array_equal(cache[index, False], plain)
        assert np.array_equal(cache[index, True], plain[:, ::-1])


@pytest.mark.parametrize(("flip_p", "flips"), [(0.0, {False}), (1.0, {True}), (0.3, {False, True})])
def test_only_flips_that_can_happen_are_listed(folder, flip_p, flips):
    dataset = PersonalizedBase(folder, size=8, flip_p=flip_p)
    assert {flip for _, flip, _ in dataset.images()} == flips
    assert {dataset[StepKey(step, 0)]["flip"] for step in range(40)} == flips


def test_pictures_too_many_to_keep_are_read_again(folder, monkeypatch):
    kept = PersonalizedBase(folder, size=8)
    expected = kept[KEYS[0]]
    monkeypatch.setattr(personalized, "KEPT_BYTES", 100)
    dataset = PersonalizedBase(folder, size=8)
    assert same(dataset[KEYS[0]], expected)
    assert not dataset._kept


@pytest.mark.parametrize("strategy", ["one", "all"])
def test_captions_carry_their_words_and_no_article_twice(folder, strategy):
    dataset = PersonalizedBase(folder, size=8, sentence=SENTENCE, strategy=strategy)
    for key in KEYS:
        caption = dataset[key]["caption"]
        assert not DOUBLED.search(caption.text), caption.text
        assert {"<teddy>", "<board>"} <= set(caption.names())
        for span in caption.learnable:
            assert caption.text[span.start : span.end].lower() == span.word
        bound = {(caption.text[s.start : s.end], s.word) for s in caption.bound}
        assert bound == {("brown", "<teddy>"), ("rolling", "<board>")}


def test_all_learns_every_word_of_the_sentence(folder):
    dataset = PersonalizedBase(folder, sentence=SENTENCE, strategy="all")
    names = {word.name for word in dataset.words}
    assert names == {"a", "brown", "<teddy>", "on", "rolling", "<board>", "at", "times", "square"}
    defined = {word.name: word for word in dataset.words}
    assert (defined["<board>"].init, defined["<board>"].vectors) == ("skateboard", 2)


def test_relations_come_from_file_names(folder):
    words = ["*", "@", "on", "under", "next", "front"]
    sentence = parse_released("green * RELATE orange @", words, init_word="ball")
    dataset = PersonalizedBase(folder, size=8, sentence=sentence)
    relation = {item.relation: index for index, item in enumerate(dataset.items)}
    for key in KEYS:
        example = dataset[key]
        index, text = example["image_id"], example["caption"].text
        (name,) = [name for name, number in relation.items() if number == index]
        assert f"green * {name} orange @" in text
        learned = {"*", "@", name.split()[0]}
        assert set(example["caption"].names()) == learned
    assert len(dataset.sentences) == 4


def test_each_picture_is_shown_with_its_own_sentence(folder):
    jsonl(
        folder,
        {"file_name": "on.png", "text": "a <teddy> on a <board>"},
        {"file_name": "under.png", "text": "the <cup:mug>"},
    )
    dataset = PersonalizedBase(folder, size=8, sentence=SENTENCE)
    shown = {}
    for key in KEYS:
        example = dataset[key]
        shown.setdefault(example["image_id"], set()).add(example["caption"].names())
    both = {("<teddy>", "<board>")}
    assert shown == {0: both, 1: {("<cup>",)}, 2: both, 3: both}
    counts = {str(sentence): count for sentence, count in dataset.sentences.items()}
    assert counts == {
        "a <teddy> on a <board>": 1,
        "the <cup>": 1,
        "a brown <teddy> on a rolling <board> at times square": 2,
    }
    words = {word.name: (word.init, word.vectors) for word in dataset.words}
    assert words == {"<teddy>": ("bear", 1), "<board>": ("skateboard", 2), "<cup>": ("mug", 1)}
    for sentence in dataset.sentences:
        assert all((word.init, word.vectors) == words[word.name] for word in sentence.words)


def test_plain_text_uses_the_words_that_are_known(folder):
    jsonl(folder, {"file_name": "on.png", "text": "an orange @ and nothing else"})
    given = parse_released("green * and orange @", "*,@", init_word="ball,box")
    dataset = PersonalizedBase(folder, size=8, sentence=given)
    (own,) = [each for each in dataset.sentences if "nothing" in str(each)]
    assert own.caption.names() == ("@",)
    assert {word.name: word.init for word in own.words}["@"] == "box"


def test_whole_captions_need_no_template(tmp_path, folder):
    (folder / "on.txt").write_text("a photo of <cube> that is <frozen>")
    (folder / "under.txt").write_text("photo of <cube>")
    (folder / "front.txt").write_text("the <cube>")
    (folder / "next to.txt").write_text("a photograph album of <cube>")
    dataset = PersonalizedBase(folder, size=8)
    texts = {}
    for step in range(60):
        example = dataset[StepKey(step, 0)]
        name = dataset.items[example["image_id"]].path.stem
        texts.setdefault(name, set()).add(example["caption"].text)
    assert texts["on"] == {"a photo of <cube> that is <frozen>"}
    assert texts["under"] == {"photo of <cube>"}
    assert len(texts["front"]) > 3
    assert len(texts["next to"]) > 3


def test_a_marked_sentence_of_its_own_takes_the_rest_of_a_definition_over(folder):
    jsonl(folder, *({"file_name": f"{name}.png", "text": "a <teddy> here"}
                    for name in ("on", "under", "next to", "front")))  # fmt: skip
    (word,) = PersonalizedBase(folder, size=8, sentence="a <teddy:bear|4> and a <ball>").words
    assert (word.name, word.init, word.vectors) == ("<teddy>", "bear", 4)
    jsonl(folder, {"file_name": "on.png", "text": "a <teddy:dog> here"})
    with pytest.raises(ValueError, match=r"on\.png.*defined twice"):
        PersonalizedBase(folder, size=8, sentence="a <teddy:bear>")


def test_crops_are_pictures_of_their_own(folder):
    rows = [
        {"file_name": "on.png", "text": "a <teddy>", "crop": [1, 2, 6, 7]},
        {"file_name": "on.png", "text": "a <board>", "crop": [6, 0, 14, 8]},
    ]
    jsonl(folder, *rows)
    dataset = PersonalizedBase(folder, sentence=SENTENCE, flip_p=0)
    whole = np.asarray(Image.open(folder / "on.png"))
    arrays = {index: array for index, _, array in dataset.images()}
    assert len(arrays) == 6
    assert np.array_equal(arrays[0], (whole[2:7, 1:6] / 127.5 - 1).astype(np.float32))
    assert np.array_equal(arrays[1], (whole[0:8, 6:14] / 127.5 - 1).astype(np.float32))
    example = next(e for e in map(dataset.__getitem__, KEYS) if e["image_id"] == 1)
    assert example["caption"].names() == ("<board>",)


@pytest.fixture
def lego(tmp_path):
    for kind, count in (("concept", 2), ("subject", 5)):
        (tmp_path / kind).mkdir()
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / kind / f"{number}.png")
    return tmp_path


LEGO = {"concept": "a photo of <cube> that is <frozen>", "subject": "a photo of <cube>"}


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_every_step_draws_from_both_sets(lego, batch_size):
    dataset = PersonalizedBase(lego, size=8, sentence=LEGO)
    seen = Counter()
    for batch in StepBatchSampler(batch_size, max_steps=40):
        examples = [dataset[key] for key in batch]
        kinds = Counter(dataset.items[e["image_id"]].kind for e in examples)
        assert batch_size == 1 or kinds["concept"] == kinds["subject"] == batch_size // 2
        for example in examples:
            kind = dataset.items[example["image_id"]].kind
            assert ("<frozen>" in example["caption"].names()) == (kind == "concept")
        seen += kinds
    assert seen["concept"] == seen["subject"]


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ({"concept": LEGO["concept"]}, r"0\.png.*'subject'"),
        ({"concepts": LEGO["concept"]}, "concepts"),
        ("a cube", "no learnable word"),
    ],
)
def test_missing_sentences_are_named(lego, sentence, message):
    with pytest.raises(ValueError, match=message):
        PersonalizedBase(lego, sentence=sentence)


@pytest.mark.parametrize("text", ["a teddy bear", "a [brown] bear", "a <teddy"])
def test_a_sentence_without_learnable_word_is_refused(folder, text):
    (folder / "under.txt").write_text(text)
    with pytest.raises(ValueError, match=r"under\.png.*under\.txt"):
        PersonalizedBase(folder, sentence=SENTENCE)


def test_a_picture_without_sentence_among_others_that_have_one_is_named(folder):
    for name in ("on", "under", "front"):
        (folder / f"{name}.txt").write_text("a <teddy>")
    with pytest.raises(ValueError, match=r"next to\.png.*no sentence"):
        PersonalizedBase(folder)


@pytest.mark.parametrize("mark", ["<teddy:dog>", "<board:skateboard|3>"])
def test_a_word_defined_twice_differently_is_refused(folder, mark):
    (folder / "under.txt").write_text(f"a {mark}")
    with pytest.raises(ValueError, match="defined twice"):
        PersonalizedBase(folder, sentence=SENTENCE)


WRONG = {
    "flip_p": {"flip_p": 1.5},
    "mixing_prob": {"per_image_tokens": True, "mixing_prob": -1},
    "templates": {"templates": []},
    "slot": {"templates": ["a photo"]},
    "coarse_class_text": {"sentence": SENTENCE, "coarse_class_text": "toy"},
    "cats and dogs": {"placeholder_token": "cats and dogs"},
    "strategy": {"strategy": "most"},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_refused(folder, name):
    with pytest.raises(ValueError, match=name):
        PersonalizedBase(folder, **WRONG[name])


# The interface of the originals.


def test_numbers_give_image_and_text_as_they_used_to(folder):
    dataset = PersonalizedBase(folder, 8, 100, "bicubic", 0.5, "train", "*")
    assert len(dataset) == 400
    assert len(PersonalizedBase(folder, set="val", repeats=10)) == 4
    texts, flips = set(), set()
    for number in range(0, 400, 4):
        example = dataset[number]
        assert set(example) == {"image", "caption"}
        assert type(example["caption"]) is str
        texts.add(example["caption"])
        flips.add(example["image"].tobytes())
    assert len(flips) == 2
    assert texts <= {template.format("*") for template in IMAGENET_TEMPLATES_SMALL}
    assert len(texts) > 10
    with pytest.raises(IndexError):
        dataset[400]


def test_the_coarse_class_stands_before_the_placeholder(folder):
    dataset = PersonalizedBase(folder, size=8, coarse_class_text="toy")
    caption = dataset[StepKey(0, 0)]["caption"]
    assert caption.text.endswith(" toy *")
    assert caption.names() == ("*",)


def test_punctuation_in_a_long_placeholder_is_learned(folder):
    dataset = PersonalizedBase(folder, placeholder_token="green * and orange @")
    assert [word.name for word in dataset.words] == ["*", "@"]


def test_an_annotated_placeholder_is_read(folder):
    assert PersonalizedBase(folder, placeholder_token="a <teddy:bear>").words[0].init == "bear"


def test_each_picture_may_have_a_token_of_its_own(folder):
    dataset = PersonalizedBase(folder, size=8, per_image_tokens=True, mixing_prob=0.25)
    mixed = 0
    for step in range(400):
        example = dataset[StepKey(step, 0)]
        token = personalized.per_img_token_list[example["image_id"]]
        names = example["caption"].names()
        assert names in {("*",), ("*", token)}
        assert example["caption"].text.endswith(f" with {token}") == (len(names) == 2)
        mixed += len(names) == 2
    assert 60 < mixed < 140


def test_too_many_pictures_for_tokens_of_their_own(tmp_path):
    for number in range(23):
        Image.new("RGB", (2, 2)).save(tmp_path / f"{number}.png")
    with pytest.raises(ValueError, match="23 pictures"):
        PersonalizedBase(tmp_path, per_image_tokens=True)


def test_style_captions(folder):
    dataset = personalized_style.PersonalizedBase(folder, size=8)
    assert all("in the style of *" in dataset[key]["caption"].text for key in KEYS)


def test_old_names_are_importable():
    for module in (personalized, personalized_style):
        assert "{}" in module.imagenet_templates_small[0]
        assert module.imagenet_dual_templates_small[0].count("{}") == 2
        assert len(set(module.per_img_token_list)) == 22


# The papers' pictures.


def test_the_cactus_and_the_ball(shared):
    root = shared / "data" / "multi-concept-dataset" / "natural_2_concepts" / "cactus_ball"
    dataset = PersonalizedBase(
        root / "unmasked" / "0", size=64, sentence="a [green] <cactus> and an [orange] <ball>"
    )
    assert dataset.num_images == len(read_items(root / "unmasked" / "0")) == 4
    assert len({array.tobytes() for _, _, array in dataset.images()}) == 8
    assert dataset.sentences == {parse_sentence("a [green] <cactus> and an [orange] <ball>"): 4}
    with pytest.raises(ValueError, match="no image"):
        PersonalizedBase(root, sentence=SENTENCE)


def test_adjectives_are_bound_in_a_plain_sentence_of_a_picture(tmp_path):
    for name in ("1", "2"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "1.txt").write_text("a brown hat on a rolling * under a brown @, brown as earth")
    sentence = parse_released("a brown @ on a rolling *", "@,*", adjectives="brown,rolling")
    data = PersonalizedBase(tmp_path, 8, sentence=sentence)
    captions = [data.sentence_of(i).caption for i in range(2)]
    found = [{c.text[s.start : s.end]: s.word for s in c.bound} for c in captions]
    assert found == [{"rolling": "*", "brown": "@"}, {"brown": "@", "rolling": "*"}]
    assert [len(c.bound) for c in captions] == [2, 2], "two more are said of nothing"
