import math
from collections import Counter

import pytest
import torch

from ldm.data.playroom.labels import NAMES
from ldm.data.playroom.splits import UNNAMED_OBJECTS, UNSEEN_OBJECTS, is_drawn, is_named
from ldm.evaluation.intervals import Mean
from ldm.evaluation.judge import Judge
from ldm.evaluation.judge_network import JudgeNetwork
from ldm.evaluation.playroom import (
    PADDING,
    autoencoded,
    by_kind,
    by_thing,
    fresh_scenes,
    localisation,
    pictures,
    reconstruction,
    sampled,
    shares_by_kind,
    word_positions,
    words_of,
)
from ldm.evaluation.playroom_card import (
    CARD,
    differences,
    markdown,
    read_figures,
    update_card,
    write_figures,
)
from ldm.evaluation.playroom_words import pooled, trials, write_pictures
from ldm.inference import SamplingOptions, load_model, sample_latents
from tests.training.toy import write_toy

RESOLUTIONS = (8, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    toy = write_toy(tmp_path_factory.mktemp("toy"))
    return load_model(toy.weights, toy.backbone)


@pytest.fixture(scope="module")
def scenes(model):
    return fresh_scenes(3, 2, size=model.image_size * 2)


@pytest.fixture(scope="module")
def judge(scenes):
    """One that sees the first thing of the first scene everywhere."""
    torch.manual_seed(0)
    network = JudgeNetwork((8, 8, 8), 8)
    network.presence.bias.data.fill_(4.0)
    network.pixels.bias.data[1 + NAMES.index(scenes[0].objects[0].name)] = 50.0
    return Judge(network)


def test_fresh_scenes_are_named_and_repeatable(scenes):
    assert all(is_named(thing.name) for one in scenes for thing in one.objects)
    assert all(len(one.objects) == 2 for one in scenes)
    again = fresh_scenes(3, 2, masks=False)
    assert [one.caption for one in again] == [one.caption for one in scenes]


def test_words_that_are_said_of_two_things_are_left_out():
    for one in fresh_scenes(40, 3, 16, masks=False):
        words = words_of(one)
        assert {f"noun {k}" for k in range(3)} <= set(words)
        colours = [words[name] for name in words if name.startswith("colour")]
        assert len(colours) == len(set(colours))
        assert one.spec.ground_colour not in colours


def test_positions_are_those_of_the_words(model, scenes):
    tokens = model.cond_stage_model.tokenize([one.caption for one in scenes])
    for row, one in enumerate(scenes):
        positions = word_positions(model, scenes)[row]
        padding = [positions.pop(f"{PADDING} {k}") for k in range(2)]
        pieces = len(model.cond_stage_model.text_tokenizer.token_ids(one.caption))
        length = model.cond_stage_model.max_length
        assert padding == [[0, *range(pieces + 1, length)]] * 2
        for name, at in positions.items():
            start, end = tokens.offsets[row][at[0]][0], tokens.offsets[row][at[-1]][1]
            assert one.caption[start:end] == words_of(one)[name]


def test_attention_and_reconstruction_of_any_model(model, scenes):
    done = []
    found = localisation(model, scenes, RESOLUTIONS, batch=2, done=done.append)
    assert sum(done) == len(scenes)
    assert by_kind(found)["noun"].count == 6
    assert 0 <= by_kind(found)["noun"].value <= 1
    shares = shares_by_kind(found)
    assert set(by_kind(found)) == set(shares) - {PADDING}
    assert shares["noun"].value > 0
    assert sum(mean.value for mean in shares.values()) < 1, "other words get the rest"
    names = Counter(thing.name for one in scenes for thing in one.objects)
    assert {name: mean.count for name, mean in by_thing(found).items()} == names
    images = pictures(scenes)
    assert reconstruction(images, images).value > 90
    assert reconstruction(images, autoencoded(model, images, batch=2)).count == 3


def test_samples_are_read_in_the_order_of_their_captions(model, scenes, judge):
    options = SamplingOptions(steps=2, scale=2.0)

    def sample(captions, first, on_step):
        return sample_latents(
            model, captions, options, first=first, progress=False, on_step=on_step
        )

    found = sampled(model, judge, scenes, sample, RESOLUTIONS, batch=2)
    assert len(found.fidelity) == len(found.specs) == len(found.pictures) == 3
    names = [[thing.name for thing in one.objects] for one in scenes]
    assert [[thing.name for thing in spec.objects] for spec in found.specs] == names
    assert len(found.seen) == 6
    assert 0 < sum(found.seen) == by_kind(found.overlaps)["noun"].count < 6
    assert set(by_thing(found.overlaps)) == {names[0][0]}
    alone = sampled(model, judge, scenes[:1], sample, RESOLUTIONS)
    assert torch.allclose(alone.pictures[0], found.pictures[0], atol=1e-4)


class TestFigures:
    def test_what_is_written_is_read(self, tmp_path):
        figures = {
            "samples/objects/1": Mean(0.9, 0.02, 100),
            "reconstruction/psnr": Mean(30.0, 0.1, 9),
        }
        write_figures(tmp_path / "f.json", figures, {"steps": 50})
        assert read_figures(tmp_path / "f.json") == (figures, {"steps": 50})
        (tmp_path / "g.json").write_text("{}")
        with pytest.raises(ValueError, match=r"g\.json"):
            read_figures(tmp_path / "g.json")

    def test_only_intervals_that_do_not_meet_differ(self):
        card = {"a/b": Mean(0.5, 0.1, 10), "a/c": Mean(math.nan, math.nan, 0), "a/d": Mean(1, 0, 1)}
        assert not differences({"a/b": Mean(0.65, 0.1, 10), "a/c": Mean(1.0, 0.0, 4)}, card)
        (found,) = differences({"a/b": Mean(0.75, 0.1, 10)}, card)
        assert "a/b" in found

    def test_numbers_of_things_become_columns(self):
        text = markdown(
            {"samples/objects/1": Mean(0.9, 0.02, 9), "samples/objects/2": Mean(0.8, 0.03, 9)}
        )
        assert "|  | 1 | 2 |" in text
        assert "| objects | 0.900 ± 0.020 | 0.800 ± 0.030 |" in text

    def test_a_card_takes_what_was_measured_and_keeps_the_rest(self, tmp_path):
        page = tmp_path / "README.md"
        places = "".join(f"<!-- begin {name} -->\n<!-- end {name} -->\n" for name in CARD)
        page.write_text(f"# Card\n{places}after\n")
        update_card(page, {"samples/objects/2": Mean(0.78, 0.06, 200)}, {"samples": {"steps": 50}})
        update_card(page, {"judge/objects": Mean(0.976, 0.007, 1000)}, {"judge": {"judged": 500}})
        text = page.read_text()
        assert "| all things | - | 0.78 ± 0.06 | - | - | - |" in text
        assert "| fresh renders | 0.976 ± 0.007 | - |" in text
        assert "begin words -->\n<!-- end words" in text
        figures, notes = read_figures(tmp_path / "figures.json")
        assert set(figures) == {"samples/objects/2", "judge/objects"}
        assert notes == {"samples": {"steps": 50}, "judge": {"judged": 500}}


class TestWords:
    def test_trials_cover_what_the_model_does_not_know(self):
        known = {each.name: each.known for each in trials()}
        assert {name for name, kind in known.items() if kind == "unnamed"} == set(UNNAMED_OBJECTS)
        assert {name for name, kind in known.items() if kind == "unseen"} == set(UNSEEN_OBJECTS)
        assert set(known) <= set(NAMES)
        assert all(is_drawn(e.name, e.colour) for e in trials() if e.known != "unseen")

    def test_pictures_are_written(self, tmp_path):
        folder = write_pictures(trials()[0], tmp_path / "set", count=2)
        assert sorted(path.name for path in folder.iterdir()) == ["1.png", "2.png"]

    def test_pooling_keeps_kinds_apart(self):
        rows = [{"iou": Mean(v, 0.0, 4)} for v in (0.2, 0.4, 0.9)]
        found = pooled(["seen", "seen", "unseen"], rows)
        assert found["seen"]["iou"].value == pytest.approx(0.3)
        assert found["unseen"]["iou"].value == pytest.approx(0.9)
