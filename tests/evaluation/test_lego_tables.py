"""Lego's experiments: what is asked, what counts as transfer or leakage, how lambda is found."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm.checkpoint import save_safetensors
from ldm.concepts.context_loss import ContextLoss
from ldm.data.playroom import PlayroomConcepts
from ldm.data.playroom.labels import NAMES
from ldm.data.playroom.scene import render_scene
from ldm.data.playroom.sets import LEGO_MULTI_SETS, LEGO_SETS, get_concept_set
from ldm.data.playroom.spec import spec_from_names
from ldm.evaluation.judge import Judge
from ldm.evaluation.judge_network import JudgeNetwork
from ldm.evaluation.playroom import pictures
from ldm.evaluation.tables.grid import Arm, Run, arm_config, read_experiment
from ldm.evaluation.tables.lego import Concept, LegoFamily, preferred
from ldm.evaluation.tables.lego_gradients import LambdaFamily, pulls
from ldm.evaluation.tables.report import markdown
from ldm.inference import load_model
from ldm.training.cli import parse
from ldm.training.config import load_config
from scripts import reproduce
from tests.conftest import REPO
from tests.training.toy import PIXELS, write_toy

FILES = {path.stem: path for path in (REPO / "configs/paper").glob("lego-*.yaml")}
FROZEN = ("<subject>", "<frozen>", "<ice>")
SIMILARITIES = {"dot": {"lists": "playroom"}}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def model(toy):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_model(toy.weights, toy.backbone, device=device)


class Truth:
    """Reads drawn scenes by what they are known to show, with the judge's interface."""

    def __init__(self, *specs):
        self.specs = specs

    def _things(self, row):
        return [SimpleNamespace(**{**vars(one)}) for one in self.specs[row].objects]

    def read(self, images):
        return [SimpleNamespace(things=self._things(row)) for row in range(len(images))]

    def _each(self, images, value):
        # A picture is found again by its first pixel, which the tests number.
        rows = images[:, 0, 0, 0].round().int().tolist()
        return [next((value(t) for t in self._things(row) if value(t)), 0) for row in rows]

    def object_probability(self, images, name):
        return torch.tensor(self._each(images, lambda t: 0.5 * (t.name == name))).float()

    def state_probability(self, images, name, state):
        right = self._each(images, lambda t: 0.8 * (t.name == name and t.state == state))
        return torch.tensor(right).float()

    def count(self, images, name):
        return torch.tensor(self._each(images, lambda t: (t.name == name) * t.count))


def numbered(count):
    return torch.arange(count).float()[:, None, None, None].expand(count, 3, PIXELS, PIXELS)


def family_of(model, folder, judge=None, name="lego-transfer", **options):
    told = read_experiment(FILES[name])
    told = replace(told, options={**told.options, "steps": 2, **options})
    made = LambdaFamily if name == "lego-lambda" else LegoFamily
    return made(told, model, folder, judge or Judge(JudgeNetwork().eval()))


def run_of(set_name, wording="own", learned=True, seed=0):
    arm = Arm("an-arm", wording=wording, learned=learned)
    task = SimpleNamespace(part="", sentence=None)
    return Run(arm, "group", set_name, seed, task, f"{set_name}-{wording}-{seed}")


class TestExperiments:
    @pytest.mark.parametrize("name", sorted(FILES))
    def test_every_file_describes_one(self, name, model, tmp_path):
        told = read_experiment(FILES[name])
        arms = {arm.name for arm in told.arms}
        for check in told.checks:
            asked = {check["best"]} if "best" in check else {*check["better"], *check["than"]}
            assert asked <= arms
            assert set(check.get("measures", ())) <= set(told.columns)
        family = family_of(model, tmp_path, name=name)
        for names in told.groups.values():
            for each in names:
                assert len(family.targets(each)) == told.options["images"]
        steps = f"lightning.modelcheckpoint.params.every_n_train_steps={told.steps}"
        assert steps in told.overrides

    def configured(self, name, base="configs/lego.yaml"):
        told = read_experiment(FILES["lego-leakage"])
        arms = {arm.name: arm for arm in told.arms}
        overrides = (*told.overrides, *arms[name].overrides) if name in arms else ()
        config = load_config(parse(["--base", str(REPO / base), *overrides]))
        return OmegaConf.to_container(config, resolve=True)

    def test_an_arm_may_learn_longer(self):
        told = read_experiment(FILES["lego-rate"])
        steps = {
            arm.name: arm_config(told, arm, reproduce.Workshop(1)).lightning.trainer.max_steps
            for arm in (*told.arms, Arm("short", times=0.001))
        }
        assert steps["gentle"] == told.steps
        assert steps["gentle-long"] == 3 * told.steps
        assert steps["short"] == 1
        assert f"{told.steps} or {3 * told.steps} steps a run" in markdown(told, [], {})

    def test_the_baselines_are_those_of_the_configurations(self):
        for arm, base in (("reversion", "reversion"), ("ti", "textual-inversion")):
            ours, theirs = self.configured(arm), self.configured("", f"configs/{base}.yaml")
            wanted = theirs["model"]["params"]
            for own in ("context", "scheduler_config"):
                assert ours["model"]["params"].pop(own) is None
            assert ours["model"]["params"] == wanted
            assert ours["data"] == theirs["data"]
            assert ours["model"]["base_learning_rate"] == theirs["model"]["base_learning_rate"]

    def test_the_ablation_switches_two_things(self):
        def switches(arm):
            told = self.configured(arm)
            return (told["model"]["params"]["context"] is not None,
                    told["data"]["params"]["train"]["params"]["subject_separation"])  # fmt: skip

        cells = {arm: switches(arm) for arm in ("lego", "no-context", "no-separation", "neither")}
        assert cells == {"lego": (True, True), "no-context": (False, True),
                         "no-separation": (True, False), "neither": (False, False)}  # fmt: skip


class TestWhatIsAsked:
    @pytest.mark.parametrize(
        ("set_name", "wording", "expected"),
        [
            ("lego-melted", "own", "a photo of a mug that is <burnt> <melted>"),
            ("lego-melted-multi", "own", "a photo of a mug that is <burnt> <melted>"),
            ("lego-melted", "one", "a photo of a mug that is <concept>"),
            ("lego-melted", "relation", "a photo of a mug that is <R>"),
            ("lego-melted", "language", "a photo of a mug that is burnt and melted"),
            ("lego-melted", "general", "a photo of a strange mug"),
            ("lego-rope", "own", "a photo of a mug <walking> on a <rope>"),
            ("lego-three", "own", "a photo of <three> mugs"),
            ("lego-three", "language", "a photo of three mugs"),
            ("lego-three", "general", "a photo of several mugs"),
        ],
    )
    def test_prompts(self, set_name, wording, expected):
        assert Concept(get_concept_set(set_name)).prompt(wording, "mug") == expected

    @pytest.mark.parametrize("chosen", [*LEGO_SETS, *LEGO_MULTI_SETS], ids=lambda s: s.name)
    def test_prompts_have_the_words_of_the_concept_and_not_the_subject(self, chosen):
        concept = Concept(chosen)
        prompt = concept.prompt("own", "ball")
        words = {word.name for word in concept.start("own").words} - set(chosen.shows)
        assert words
        assert all(word in prompt for word in words)
        assert not any(subject in prompt for subject in chosen.all_shows)

    def test_baselines_learn_a_sentence_of_their_own(self):
        concept = Concept(get_concept_set("lego-closed-eyes"))
        assert concept.sentence("own") is None
        assert concept.sentence("relation") == "a photo of an animal that is <R:and>"
        assert concept.sentence("one") == "<concept:strange>"

    def test_a_thing_of_the_pictures_is_no_target(self, model, tmp_path):
        family = family_of(model, tmp_path, targets={"lego-melted": ["mug", "box"]})
        with pytest.raises(ValueError, match=r"targets\.lego-melted.*unlike \['box'\]"):
            family.targets("lego-melted")
        with pytest.raises(ValueError, match=r"targets\.lego-frozen"):
            family.targets("lego-frozen")


class TestWhatIsRead:
    def read(self, model, tmp_path, *texts, set_name="lego-melted", targets=("mug",)):
        specs = [spec_from_names(text.split("; ")) for text in texts]
        options = {"images": len(specs), "targets": {set_name: list(targets)}}
        family = family_of(model, tmp_path, Truth(*specs), **options)
        row = family.read(run_of(set_name), numbered(len(specs)))
        return row["values"], row["scores"]

    def test_a_state(self, model, tmp_path):
        values, scores = self.read(
            model, tmp_path, "red mug, burnt and melted", "red mug", "duck, burnt and melted",
            "blue box, burnt and melted",
        )  # fmt: skip
        assert values["transfer"] == 0.25
        assert values["concept"] == 0.75
        assert values["target"] == 0.5
        assert values["leak"] == pytest.approx(0.5 / 4)
        assert scores == pytest.approx([0.4, 0, 0, 0])
        assert values["score"] == pytest.approx(0.1)

    def test_a_state_beside_the_target_is_no_transfer(self, model, tmp_path):
        values, _ = self.read(model, tmp_path, "red mug; blue box, burnt and melted")
        assert (values["transfer"], values["concept"], values["target"]) == (0, 1, 1)
        assert values["leak"] == 0.5

    def test_a_number_is_that_of_the_target(self, model, tmp_path):
        texts = ("three red balls", "two red balls", "three blue ducks", "pink star; red ball")
        values, scores = self.read(
            model, tmp_path, *texts, set_name="lego-three", targets=("ball",)
        )
        assert (values["transfer"], values["concept"], values["target"]) == (0.25, 0.5, 0.75)
        assert scores == pytest.approx([0.5, 0, 0, 0])
        assert values["leak"] == pytest.approx(0.5 / 4)

    def test_both_things_of_a_set_of_two_leak(self, model, tmp_path):
        texts = ("blue box", "yellow star", "red mug", "red mug")
        values, _ = self.read(model, tmp_path, *texts, set_name="lego-melted-multi")
        assert values["leak"] == pytest.approx(0.25)

    def test_targets_take_turns(self, model, tmp_path):
        texts = ("red mug, burnt and melted", "green duck, burnt and melted", "green duck", "mug")
        values, scores = self.read(model, tmp_path, *texts, targets=("mug", "duck"))
        assert values["target"] == 0.5
        assert [score > 0 for score in scores] == [True, True, False, False]

    def test_the_real_judge_can_be_asked(self, model, tmp_path):
        assert {"mug", "box"} <= set(NAMES)
        scene = render_scene(spec_from_names(["red mug, burnt and melted"]))
        family = family_of(model, tmp_path, images=1)
        values = family.read(run_of("lego-melted"), pictures([scene]))["values"]
        assert all(0 <= value <= 1 for value in values.values())

    def test_preference_counts_pairs(self):
        assert preferred([1.0, 0.2, 0.5, 0.0], [0.5, 0.9, 0.5, 0.0]) == pytest.approx(0.5)
        assert preferred([1.0], [0.0]) == 1
        assert preferred([0.0], [0.0]) == 0.5
        assert preferred([0.3], [0.0]) == 0.5, "neither shows what was asked for"


class TestRuns:
    def test_arms_draw_from_the_same_noise_and_seeds_from_another(self, model, tmp_path):
        family = family_of(model, tmp_path, images=2)
        runs = [run_of("lego-frozen", "language", False, seed) for seed in (0, 0, 1)]
        runs = [replace(run, name=f"{i}") for i, run in enumerate(runs)]
        rows = family.measure(runs, [None] * 3)
        first, again, other = (np.asarray(Image.open(tmp_path / f"{i}.png")) for i in range(3))
        assert np.abs(first.astype(int) - again).max() <= 1
        assert np.abs(first.astype(int) - other).max() > 10
        assert rows[0]["values"]["bytes"] == 0
        assert len(rows[0]["scores"]) == 2

    def test_drawn_scenes_show_the_concept_on_the_target(self, model, tmp_path):
        for name, expected in (("lego-melted", ("burnt and melted", 1)), ("lego-three", (None, 3))):
            scene = Concept(get_concept_set(name)).scene("mug", 3)
            (thing,) = scene.objects
            assert (thing.name, (thing.state, thing.count)) == ("mug", expected)
        family = family_of(model, tmp_path, images=2)
        (row,) = family.measure([run_of("lego-melted", "drawn", False)], [None])
        assert 0 <= row["values"]["score"] <= 1
        drawn = np.asarray(Image.open(tmp_path / "lego-melted-drawn-0.png"))
        assert drawn.shape == (64, 128, 3)

    def test_learned_words_are_read_and_counted(self, model, tmp_path):
        file = tmp_path / "words.safetensors"
        width = model.cond_stage_model.width
        save_safetensors(
            {w: torch.ones(2, width) for w in ("<subject>", "<frozen>", "<ice>")}, file
        )
        family = family_of(model, tmp_path, images=1)
        (row,) = family.measure([run_of("lego-frozen")], [file])
        assert row["values"]["bytes"] == 3 * 2 * width * 4

    def test_pictures_are_compared_with_those_of_the_arm_against(self, model, tmp_path):
        family = family_of(model, tmp_path)
        common = {"set": "lego-frozen", "seed": 0, "name": "x"}
        rows = [
            {**common, "arm": "lego", "scores": [0.9, 0.1], "values": {}},
            {**common, "arm": "lego", "seed": 1, "scores": [0.9, 0.1], "values": {}},
            {**common, "arm": "language", "scores": [0.2, 0.6], "values": {}},
        ]
        family.derive(rows)
        assert rows[0]["values"] == {"preferred": 0.5}
        assert rows[1]["values"] == rows[2]["values"] == {}


class TestLambda:
    def test_pulls_are_the_gradients_of_the_terms(self, model, tmp_path):
        data = PlayroomConcepts("lego-frozen", PIXELS, folder=tmp_path / "set")
        plain = pulls(model, data, ContextLoss(**SIMILARITIES["dot"]), steps=1)
        assert set(plain) == {"<frozen>", "<ice>"}
        for each in plain.values():
            assert each.step == pytest.approx(each.drift)  # of one step
            assert min(each.step, each.context) > 0
            assert each.balance == pytest.approx(each.drift / each.context)
        several = pulls(model, data, ContextLoss(**SIMILARITIES["dot"]), steps=4)
        for word, each in several.items():
            assert each.drift < each.step  # noise averages out
            assert each.context == pytest.approx(plain[word].context)

    def test_the_temperature_divides_what_the_pull_is(self, model, tmp_path):
        data = PlayroomConcepts("lego-frozen", PIXELS, folder=tmp_path / "set")
        found = [
            pulls(model, data, ContextLoss(lists="playroom", temperature=t), 1)["<ice>"].context
            for t in (1e3, 1e4)
        ]
        assert found[0] == pytest.approx(10 * found[1], rel=1e-2)

    def test_words_as_they_start_and_learned_ones(self, model, tmp_path):
        family = family_of(
            model, tmp_path, name="lego-lambda", images=1, looks=1, similarities=SIMILARITIES,
            size=PIXELS,
        )  # fmt: skip
        file = tmp_path / "words.safetensors"
        width = model.cond_stage_model.width
        save_safetensors(
            {w: torch.ones(1, width) for w in ("<subject>", "<frozen>", "<ice>")}, file
        )
        runs = [run_of("lego-frozen", learned=False), run_of("lego-frozen")]
        start, learned = (row["values"] for row in family.measure(runs, [None, file]))
        assert {"step", "drift", "context_dot", "balance_dot"} <= set(start)
        assert learned["norm"] == pytest.approx(width**0.5)
        assert 0 < learned["share"] < 1
