import numpy as np
import pytest
import torch

from ldm.checkpoint import save_safetensors
from ldm.data.playroom.labels import (
    COLOUR_NAMES,
    LEAST_AREA,
    NAMES,
    OPPOSITES,
    PLACE_NAMES,
    RELATION_NAMES,
    STATE_NAMES,
    LabelledScenes,
    recognisable,
)
from ldm.data.playroom.scene import render_scene
from ldm.data.playroom.spec import spec_from_names
from ldm.data.steps import StepKey, collate
from ldm.evaluation.judge import WEIGHTS, Judge, load_judge
from ldm.evaluation.judge_accuracy import accuracy
from ldm.evaluation.judge_network import JudgeNetwork, contact, layout, pool, whole_map
from ldm.evaluation.judge_training import JudgeTraining
from ldm.evaluation.playroom import pictures

WIDTH = (8, 8, 8)
FIRST_STAGE = {
    "target": "ldm.models.autoencoder.AutoencoderKL",
    "params": {
        "embed_dim": 4,
        "ddconfig": {"double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3,
                     "out_ch": 3, "ch": 8, "ch_mult": [1, 2], "num_res_blocks": 1,
                     "attn_resolutions": [], "dropout": 0.0, "norm_groups": 8},
        "lossconfig": {"target": "torch.nn.Identity"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def batch():
    data = LabelledScenes(size=32)
    return collate([data[StepKey(0, slot)] for slot in range(8)])


@pytest.fixture
def judge():
    torch.manual_seed(0)
    judge = Judge(JudgeNetwork(WIDTH, 8))
    judge.network.presence.bias.data.fill_(4.0)  # everything is there: something is read
    judge.network.pixels.bias.data[0] = -5.0
    return judge


class TestNetwork:
    def test_a_mask_of_everything_pools_the_mean(self):
        features = torch.randn(2, 3, 4, 4)
        assert torch.allclose(pool(features, torch.ones(2, 1, 8, 8))[:, 0], features.mean((2, 3)))
        assert not pool(features, torch.zeros(2, 1, 8, 8)).any()

    def test_pooling_sees_nothing_outside_the_mask(self):
        features, mask = torch.randn(1, 3, 4, 4), torch.zeros(1, 1, 8, 8)
        mask[..., :4] = 1
        other = features.clone()
        other[..., 2:] += 1
        assert torch.equal(pool(features, mask), pool(other, mask))

    def test_layout_and_contact(self):
        masks = torch.zeros(1, 3, 16, 16, dtype=torch.bool)
        masks[0, 0, 4:8, 0:4] = True
        masks[0, 1, 8:12, 0:4] = True
        masks[0, 2, 12:, 12:] = True
        expected = torch.tensor([0, 4, 3, 7, 1.5, 5.5]) / 15
        assert torch.allclose(layout(masks)[0, 0], expected)
        touch = contact(masks)[0, ..., 0]
        assert touch[0, 1] > 0
        assert touch[0, 2] == 0
        assert torch.allclose(contact(masks)[..., 1], contact(masks)[..., 0].mT)

    def test_maps_have_the_size_of_the_picture(self):
        network = JudgeNetwork(WIDTH, 8)
        found = network(torch.zeros(1, 3, 32, 32))
        assert whole_map(found.pixels).shape == (1, 1 + len(NAMES), 32, 32)
        assert found.place.shape == (1, len(PLACE_NAMES))


class TestTraining:
    def test_it_learns_what_it_is_shown(self, batch):
        torch.manual_seed(0)
        training = JudgeTraining({"width": WIDTH, "hidden": 16}, degraded=0.25)
        training.log = training.log_dict = lambda *_, **__: None
        training.learning_rate = 1e-2
        optimizer = training.configure_optimizers()
        losses = []
        for step in range(40):
            loss = training.training_step(batch, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
        assert all(p.grad is not None for p in training.network.parameters())

    def test_a_share_passes_the_autoencoder_whose_weights_are_not_the_judges(self, batch):
        training = JudgeTraining(
            {"width": WIDTH}, FIRST_STAGE, through_first_stage=0.25, degraded=0.25
        )
        images = batch["image"].movedim(-1, 1)
        changed = (training.disturbed(images) != images).flatten(1).any(1)
        assert changed.tolist() == [True] * 4 + [False] * 4
        assert all(name.startswith("network.") for name in training.state_dict())

    def test_pictures_to_look_at(self, batch):
        shown = JudgeTraining({"width": WIDTH}).log_images(batch)
        assert {each.shape for each in shown.values()} == {(8, 3, 32, 32)}


class TestReading:
    def test_a_reading_is_consistent(self, judge):
        images = torch.rand(3, 3, 64, 64) * 2 - 1
        readings = judge.read(images)
        assert len(readings) == 3
        assert any(reading.things for reading in readings)
        for reading in readings:
            areas = [thing.area for thing in reading.things]
            assert areas == sorted(areas, reverse=True)
            assert all(area >= LEAST_AREA for area in areas)
            assert reading.place in PLACE_NAMES
            for thing in reading.things:
                assert np.array_equal(reading.labels == 1 + NAMES.index(thing.name), thing.mask)
                assert reading.find(thing.name) is thing
                assert thing.colour in COLOUR_NAMES
                assert thing.state in STATE_NAMES
                assert 0 <= thing.probability <= 1
        assert judge.read(images[:0]) == []

    def test_a_picture_is_read_alike_in_any_batch(self, judge):
        images = torch.rand(5, 3, 64, 64) * 2 - 1
        alone = [judge.read(images[k : k + 1])[0] for k in range(5)]
        judge.batch = 2
        for one, other in zip(judge.read(images), alone, strict=True):
            assert (one.labels == other.labels).mean() > 0.99
            assert one.place == other.place

    def test_other_sizes_are_reduced(self, judge):
        (reading,) = judge.read(torch.zeros(1, 3, 128, 128))
        assert reading.labels.shape == (64, 64)

    def test_single_questions_agree_with_the_reading(self, judge):
        images = torch.rand(2, 3, 64, 64) * 2 - 1
        readings = judge.read(images)
        thing = readings[0].things[0]
        assert judge.object_probability(images, thing.name)[0] == pytest.approx(thing.probability)
        assert judge.count(images, thing.name)[0] == thing.count
        probability = judge.state_probability(images, thing.name, thing.state)[0]
        assert probability == pytest.approx(thing.state_probability, abs=1e-4)
        absent = next(n for n in NAMES if readings[0].find(n) is None)
        assert judge.count(images, absent)[0] == 0

    def test_relations_turn_with_the_pair(self, judge):
        images = torch.rand(4, 3, 64, 64) * 2 - 1
        first, second = torch.zeros(2, 4, 64, 64, dtype=torch.bool)
        first[:, 10:30, 10:30], second[:, 30:50, 10:30] = True, True
        there = judge.relation(images, first, second)
        back = judge.relation(images, second, first)
        assert set(there) <= set(RELATION_NAMES)
        assert [OPPOSITES[each] for each in there] == back

    def test_unknown_names_and_shapes_are_refused(self, judge):
        images = torch.zeros(1, 3, 64, 64)
        with pytest.raises(ValueError, match="unicorn"):
            judge.object_probability(images, "unicorn")
        with pytest.raises(ValueError, match="crumpled"):
            judge.state_probability(images, "bear", "sad")
        with pytest.raises(ValueError, match="b,3,h,w"):
            judge.read(images[0])

    def test_weights_of_something_else_are_refused(self, tmp_path):
        save_safetensors({"encoder.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match=r"x\.safetensors"):
            load_judge(tmp_path / "x.safetensors")

    def test_accuracy_counts_what_is_missed(self, judge):
        scenes = [render_scene(spec_from_names(["dog", "chair"], "on", seed=k)) for k in range(2)]
        assert all(recognisable(each) for one in scenes for each in one.objects)
        judge.network.presence.bias.data.fill_(-1e4)  # nothing is there
        found = accuracy(judge, scenes, pictures(scenes))
        assert found["objects"] == [0.0] * 4
        assert len(found.pop("places")) == 2
        assert not any(values for name, values in found.items() if name != "objects")

    def test_accuracy_counts_what_is_made_up(self, judge):
        scenes = [render_scene(spec_from_names(["dog"], seed=k)) for k in range(2)]
        judge.network.presence.bias.data[NAMES.index("dog")] = -1e4
        names = [{thing.name for thing in each.things} for each in judge.read(pictures(scenes))]
        assert all(names)
        assert not any("dog" in each for each in names)
        found = accuracy(judge, scenes, pictures(scenes))
        assert found["objects"] == [0.0] * (2 + sum(map(len, names)))


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the judge's weights are not here")
class TestShippedWeights:
    def test_they_are_small(self):
        assert WEIGHTS.stat().st_size < 5e6

    def test_they_read_what_is_drawn(self):
        data = LabelledScenes(seed=999)
        scenes = [data.scene(k) for k in range(64)]
        found = accuracy(load_judge(), scenes, pictures(scenes))
        assert np.mean(found["objects"]) > 0.9
        assert np.mean(found["colours"]) > 0.9
        assert np.mean(found["places"]) > 0.95
