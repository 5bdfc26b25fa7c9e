"""MCPL's experiments: what runs learn from, how they are measured, what the figures say."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from ldm.checkpoint import save_safetensors
from ldm.data.playroom.spec import ObjectSpec
from ldm.evaluation.judge import Judge
from ldm.evaluation.judge_network import JudgeNetwork
from ldm.evaluation.tables.bank import Drawing, WordBank
from ldm.evaluation.tables.grid import (
    Arm,
    Experiment,
    Place,
    carry_out,
    read_experiment,
    runs_of,
)
from ldm.evaluation.tables.mcpl import MCPLFamily
from ldm.evaluation.tables.pictures import alone, without_adjectives
from ldm.evaluation.tables.questions import answers
from ldm.evaluation.tables.rendering import Ask, asks_of, relation_asks, score
from ldm.evaluation.tables.report import document, fill_page, markdown, write_report
from ldm.inference import load_model
from ldm.prompts.sentence import apply_strategy, parse_sentence
from ldm.prompts.spans import Caption
from tests.training.toy import PIXELS, write_toy

OPTIONS = {"pictures": 2, "held": 1, "size": PIXELS, "shares": [0.5], "samples": 1, "steps": 2,
           "scale": 2.0, "prompts": ["a photo of a {adjective} {word}", "a {colour} {word}"],
           "relations": ["on", "under"]}  # fmt: skip
BEAR = "a [brown] <bear:toy> on an [orange] <box:thing> at times square"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def model(toy):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(toy.weights, toy.backbone, device=device)
    model.mask_resolution = [8, 4]
    return model


def experiment(*arms: Arm, **changes) -> Experiment:
    told = {"name": "trial", "title": "Trial", "about": "A trial.", "base": "toy", "family": "toy",
            "arms": arms, "groups": {"seen": ("bear-skateboard",)}, "seeds": 2, "steps": 1,
            "columns": {"iou": "IoU", "rendered": "rendered"}, "options": OPTIONS}  # fmt: skip
    return Experiment(**{**told, **changes})


class Bench:
    """Learns by drawing vectors: what a run learned depends on its name alone."""

    def __init__(self, shown: int = 25) -> None:
        self.learned: list[str] = []
        self.shown = shown

    def configure(self, base, overrides):
        from omegaconf import OmegaConf

        told = {"model": {"base": base, "overrides": list(overrides)}, "lightning": {"trainer": {}}}
        return OmegaConf.merge(
            OmegaConf.create(told), {"seed": 1, "summary": {"steps": self.shown}}
        )

    def learn(self, config, runs, root):
        files = []
        for run in runs:
            self.learned.append(run.name)
            file = root / f"{run.name}.safetensors"
            generator = torch.Generator().manual_seed(len(self.learned))
            words = parse_sentence(run.task.sentence).words
            file.parent.mkdir(parents=True, exist_ok=True)
            save_safetensors({w.name: torch.randn(1, 32, generator=generator) for w in words}, file)
            files.append(file)
        return files


def family_of(told: Experiment, model, folder) -> MCPLFamily:
    return MCPLFamily(told, model, folder / "pictures", Judge(JudgeNetwork().eval()))


class TestExperiments:
    def test_every_file_describes_one(self, repo):
        files = sorted((repo / "configs/paper").glob("mcpl-*.yaml"))
        found = {path.stem: read_experiment(path) for path in files}
        assert {"mcpl-arms", "mcpl-gamma", "mcpl-mask-average", "mcpl-diverse",
                "mcpl-adjectives", "mcpl-words"} <= set(found)  # fmt: skip
        for told in found.values():
            arms = {arm.name for arm in told.arms}
            for check in told.checks:
                asked = {check["best"]} if "best" in check else {*check["better"], *check["than"]}
                assert asked <= arms
                assert set(check.get("measures", ())) <= set(told.columns)

    def test_the_six_arms_are_the_papers(self, repo):
        arms = {
            arm.name: arm for arm in read_experiment(repo / "configs/paper/mcpl-arms.yaml").arms
        }
        assert {arms[n].strategy for n in ("all", "all-cl", "all-full")} == {"all"}
        assert {arms[n].strategy for n in ("one", "one-cl", "one-full")} == {"one"}
        assert "model.params.contrast.weight=0.0005" in arms["one-cl"].overrides
        assert arms["one-full"].overrides == ()  # the main job: gamma 0.00075, tau 0.3

    def test_a_broken_file_is_refused_by_name(self, tmp_path):
        path = tmp_path / "wrong.yaml"
        path.write_text("title: x\narms: {one: {strength: 3}}\ngroups: {}\n")
        with pytest.raises(ValueError, match=r"wrong\.yaml.*strength"):
            read_experiment(path)

    def test_a_trial_and_a_choice_of_sets(self):
        told = experiment(groups={"a": ("x", "y"), "b": ("z",)}, quick={"steps": 2})
        assert told.trial().groups == {"a": ("x",), "b": ("z",)}
        assert (told.trial().steps, told.trial().seeds) == (2, 1)
        assert told.only(["y"]).groups == {"a": ("y",)}
        with pytest.raises(ValueError, match="'w'"):
            told.only(["w"])


class TestCarryingOut:
    def test_nothing_is_learned_or_measured_twice(self, model, tmp_path):
        told = experiment(Arm("untrained", learned=False), Arm("one"))
        bench = Bench()
        place = Place(tmp_path, bench, pack=1)
        first = carry_out(told, family_of(told, model, tmp_path), place)
        assert len(bench.learned) == 2
        second = carry_out(told, family_of(told, model, tmp_path), place)
        assert len(bench.learned) == 2
        assert first == second
        assert {row["arm"] for row in first} == {"untrained", "one"}

    def test_the_same_run_of_another_experiment_is_taken_over(self, model, tmp_path):
        bench = Bench()
        for name in ("trial", "again"):
            told = experiment(Arm(f"one-{name}"), name=name, seeds=1)
            rows = carry_out(told, family_of(told, model, tmp_path), Place(tmp_path, bench))
            assert rows[0]["arm"] == f"one-{name}"
        assert len(bench.learned) == 1

    def test_a_run_is_named_after_all_that_decides_it(self, model, tmp_path):
        told = experiment(Arm("one"))
        family = family_of(told, model, tmp_path)
        config = Bench().configure("toy", [])

        def name(arm=told.arms[0], config=config, weights=""):
            return next(iter(runs_of(told, arm, family, config, weights))).name

        names = {
            name(),
            name(arm=Arm("one", strategy="all")),
            name(arm=Arm("one", wording="bare")),
            name(config=Bench().configure("toy", ["a=1"])),
            name(weights="other"),
        }
        assert len(names) == 5
        assert name() == name(arm=Arm("another name"))
        assert name() == name(config=Bench(shown=3).configure("toy", []))  # only drawn at the end

    def test_every_measure_is_there(self, model, tmp_path):
        told = experiment(
            Arm("untrained", learned=False), Arm("masked", wording="alone"), Arm("one"), seeds=2
        )
        rows = carry_out(told, family_of(told, model, tmp_path), Place(tmp_path, Bench()))
        wanted = {"iou", "iou_permuted", "iou_held", "iou_held_permuted", "object", "colour",
                  "object_permuted", "rendered", "similarity", "margin", "known"}  # fmt: skip
        for row in rows:
            assert wanted - {"colour"} <= set(row["values"]), row["arm"]
            assert all(math.isfinite(value) for value in row["values"].values())
        assert {row["part"] for row in rows if row["arm"] == "masked"} == {"<bear>", "<skateboard>"}
        assert len(list(tmp_path.glob("samples/one/*.png"))) == 2

    def test_a_word_is_as_similar_to_its_estimate_as_it_is_near(self, model, tmp_path):
        told = experiment(Arm("one"))
        family = family_of(told, model, tmp_path)
        base = {"set": "s", "seed": 0, "values": {}, "part": ""}
        estimates = [
            {**base, "arm": "masked", "seed": s, "values": {}, "meanings": {"<a>": [1.0, 0.0]}}
            for s in (0, 1)
        ] + [{**base, "arm": "masked", "values": {}, "meanings": {"<b>": [0.0, 1.0]}}]
        right = {**base, "arm": "one", "values": {}, "meanings": {"<a>": [2.0, 0.0]}}
        swapped = {**base, "arm": "one", "values": {}, "meanings": {"<a>": [0.0, 3.0]}}
        family.derive([*estimates, right, swapped])
        assert right["values"] == {"similarity": 1.0, "margin": 1.0}
        assert swapped["values"] == {"similarity": 0.0, "margin": -1.0}
        assert estimates[0]["values"]["similarity"] == 1.0  # that of the other seed
        assert "similarity" not in estimates[2]["values"]  # there is no other run to compare with


class TestBank:
    def test_runs_do_not_meet(self, model):
        vectors = [
            {"<x>": torch.randn(1, 32)},
            {"<x>": torch.randn(2, 32), "on": torch.ones(1, 32)},
        ]
        told = Caption.of("a photo of a <x>", ["<x>"])
        wanted = [Drawing(0, told, 5), Drawing(1, told, 5)]
        together = WordBank(model, vectors).draw(wanted, 2, 2.0)
        second = WordBank(model, vectors[1:]).draw([replace(wanted[1], run=0)], 2, 2.0)
        torch.testing.assert_close(together[1:], second, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(together[0], together[1], atol=1e-2)

    def test_a_learned_function_word_stays_out_of_plain_text(self, model):
        bank = WordBank(model, [{"<x>": torch.randn(1, 32), "a": torch.randn(1, 32)}])
        caption = bank.caption(0, Caption.of("a photo of a <x>", ["<x>"]))
        assert caption.names() == (bank.name(0, "<x>"),)

    def test_what_nouns_have_in_common_is_taken_away(self, model):
        bank = WordBank(model, [{"<x>": torch.randn(1, 32)}])
        from ldm.data.playroom.objects import OBJECTS
        from ldm.data.playroom.splits import is_named

        nouns = [bank.meaning(name) for name in OBJECTS if is_named(name)]
        torch.testing.assert_close(torch.stack(nouns).mean(0), torch.zeros(32), atol=1e-5, rtol=0)


class TestSentences:
    def test_without_adjectives(self):
        assert without_adjectives(BEAR) == "a <bear:toy> on a <box:thing> at times square"

    def test_one_word_alone(self):
        assert alone(BEAR, "<box>") == "an [orange] <box:thing>"
        assert alone("a <x|2> and <y>", "<x>") == "a <x|2>"
        with pytest.raises(ValueError, match="zebra"):
            alone(BEAR, "<zebra>")

    def test_each_wording_learns_what_it_says(self, model, tmp_path):
        told = experiment(Arm("one"), options={**OPTIONS, "pictures": 3})
        family = family_of(told, model, tmp_path)

        def sentences(wording, name="bear-skateboard"):
            tasks = family.tasks(Arm("a", wording=wording), name, 0)
            return [task.sentence for task in tasks]

        assert "[" in sentences("own")[0]
        assert "[" not in sentences("bare")[0]
        assert sentences("alone") == ["a [brown] <bear:toy>", "a [rolling] <skateboard:toy>"]
        assert sentences("relations", "relations-ball-box") == [None]
        one = parse_sentence(sentences("relation", "relations-ball-box")[0])
        assert one.names == ("<ball>", "<relation>", "<box>")
        with pytest.raises(ValueError, match="twisted"):
            family_of(experiment(Arm("a", wording="twisted")), model, tmp_path)


def seen(name: str, colour: str = "red"):
    return SimpleNamespace(things=(SimpleNamespace(name=name, colour=colour),))


class TestRendering:
    THINGS = {"<bear>": ObjectSpec("bear", "brown"), "<box>": ObjectSpec("box", "orange")}

    def asks(self, strategy="one", **options):
        sentence = apply_strategy(parse_sentence(BEAR), strategy)
        return asks_of(0, 0, sentence, self.THINGS, {**OPTIONS, **options})

    def test_the_noise_is_that_of_every_other_arm(self):
        assert [a.drawing.seed for a in self.asks()] == [a.drawing.seed for a in self.asks("all")]

    def test_a_colour_is_asked_for_that_was_not_shown(self):
        asked = {str(ask.drawing.caption): ask.colour for ask in self.asks()}
        assert asked["a photo of a brown <bear>"] == "brown"
        assert asked["a blue <bear>"] == "blue"

    def test_of_all_learned_words_only_the_concepts_are_used(self):
        names = {name for ask in self.asks("all") for name in ask.drawing.caption.names()}
        assert names == {"<bear>", "brown", "<box>", "orange"}

    def test_swapped_words_are_right_only_when_permuted(self):
        asks = self.asks(prompts=["a {word}"])
        scores = score(asks, [seen("box"), seen("bear")], self.THINGS)
        assert scores == {"object": 0.0, "object_permuted": 1.0, "rendered": 0.0}

    def test_a_colour_word_renders_a_colour_and_no_object(self):
        asks = self.asks(prompts=["a {adjective} {word}"])
        readings = [seen("ball", "brown"), seen("box", "orange")]
        scores = score(asks, readings, self.THINGS)
        assert scores["colour"] == 1.0
        assert scores["rendered"] == scores["object"] == 0.5

    def test_nothing_seen_is_nothing_right(self):
        empty = SimpleNamespace(things=())
        scores = score(self.asks(), [empty] * 4, self.THINGS)
        assert set(scores.values()) == {0.0}

    def test_relations_are_asked_for_by_their_learned_words(self):
        markup = "a [green] <ball:toy> <{}:and> an [orange] <box:thing>"
        diverse = parse_sentence(markup.format("on"))
        texts = [str(a.drawing.caption) for a in relation_asks(0, 0, diverse, OPTIONS)]
        assert texts[0] == "a photo of a green <ball> <on> a orange <box>"
        assert " under " in texts[1]  # a relation that has no word of its own is said plainly
        one = parse_sentence(markup.format("relation"))
        texts = [str(a.drawing.caption) for a in relation_asks(0, 0, one, OPTIONS)]
        assert all("<relation>" in text for text in texts)
        assert isinstance(relation_asks(0, 0, one, OPTIONS)[0], Ask)


class TestQuestions:
    def rows(self, sets=1, **arms):
        """One value for each seed of each set, one set after the other."""
        return [
            {"arm": arm, "group": "seen", "set": f"s{number % sets}", "seed": number // sets,
             "values": {"iou": value}}
            for arm, values in arms.items()
            for number, value in enumerate(values)
        ]  # fmt: skip

    def ask(self, rows, **check):
        told = experiment(
            Arm("a"), Arm("b"), Arm("c"), Arm("known", reference=True), checks=({"question": "?",
            "measures": ["iou"], **check},), columns={"iou": "IoU"},
        )  # fmt: skip
        return answers(told, rows)[0]

    def test_yes_no_and_not_shown(self):
        rows = self.rows(a=[0.5, 0.6, 0.7], b=[0.1, 0.2, 0.3], c=[0.5, 0.5, 0.8])
        assert self.ask(rows, better=["a"], than=["b"]).verdict == "yes, on these sets"
        assert self.ask(rows, better=["b"], than=["a"]).verdict == "no, on these sets"
        assert self.ask(rows, better=["a"], than=["c"]).verdict == "not shown"
        assert self.ask(self.rows(a=[1], b=[0]), better=["a"], than=["b"]).verdict == "too few runs"

    def test_what_holds_for_other_sets_holds_from_set_to_set(self):
        """Many seeds of few sets say much of these and little of others."""
        alike = self.rows(3, a=[0.5, 0.6, 0.7, 0.5, 0.6, 0.8], b=[0.1, 0.2, 0.3, 0.1, 0.2, 0.3])
        assert self.ask(alike, better=["a"], than=["b"]).verdict == "yes"
        split = self.rows(2, a=[0.9, 0.2, 0.8, 0.2], b=[0.1, 0.2, 0.1, 0.2])
        answer = self.ask(split, better=["a"], than=["b"])
        assert answer.verdict == "yes, on these sets"
        assert answer.elsewhere.interval > 4 * answer.difference.interval
        chance = self.rows(2, a=[0.3, 0.3, 0.1, 0.1], b=[0.1, 0.1, 0.1, 0.1])
        answer = self.ask(chance, better=["a"], than=["b"])
        assert answer.elsewhere.sign == 1
        assert answer.verdict == "not shown", "two sets that agree by chance show nothing"

    def test_pairs_share_their_pictures(self):
        """The spread between sets is no uncertainty of the difference."""
        rows = self.rows(a=[0.11, 0.52, 0.91], b=[0.1, 0.5, 0.9])
        assert self.ask(rows, better=["a"], than=["b"]).difference.interval < 0.05

    def test_first_is_first_among_those_that_are_given_as_little(self):
        rows = self.rows(a=[0.5, 0.6, 0.7], b=[0.1, 0.2, 0.3], known=[0.9, 0.9, 0.9])
        answer = self.ask(rows, best="a")
        assert (answer.verdict, answer.against) == ("yes, on these sets", "b")

    def test_to_come_first_takes_more_with_more_rivals(self):
        """The best of many is first by chance more often: its interval is wider."""
        arms = {"a": [0.5, 0.6, 0.7], "b": [0.1, 0.3, 0.4]}
        two = self.ask(self.rows(**arms), best="a")
        three = self.ask(self.rows(**arms, c=[0.1, 0.2, 0.3]), best="a")
        assert (two.against, three.against) == ("b", "b")
        assert three.difference.interval > 1.3 * two.difference.interval

    def test_rounding_is_no_difference(self):
        rows = self.rows(3, a=[0.1 + 0.2] * 6, b=[0.3] * 6)
        assert self.ask(rows, better=["a"], than=["b"]).verdict == "not shown"

    def test_what_prints_as_nothing_is_not_shown(self):
        rows = self.rows(3, a=[0.304, 0.303, 0.304, 0.303, 0.304, 0.303], b=[0.3] * 6)
        answer = self.ask(rows, better=["a"], than=["b"])
        assert answer.difference.sign == 1
        assert answer.verdict == "not shown"

    def test_seeds_that_all_agree_leave_the_answer_to_the_sets(self):
        agreed = self.rows(3, a=[1.0] * 6, b=[0.0] * 6)
        assert self.ask(agreed, better=["a"], than=["b"]).verdict == "yes"
        one_set = self.rows(3, a=[0.5, 0.1, 0.1, 0.5, 0.1, 0.1], b=[0.1] * 6)
        assert self.ask(one_set, better=["a"], than=["b"]).verdict == "not shown"

    def test_the_report_says_it(self, tmp_path):
        told = experiment(
            Arm("a", label="first"), Arm("b"), columns={"iou": "IoU"},
            checks=({"question": "Is a better?", "better": ["a"], "than": ["b"]},),
            paper={"a": {"Table 2": 40.5}},
        )  # fmt: skip
        rows = self.rows(a=[0.5, 0.6], b=[0.1, 0.2])
        page, data, picture = write_report(told, rows, tmp_path, {"model": "toy"})
        text = page.read_text()
        assert "| first | 2 | 0.55 ± 0.64 | 40.5 |" in text
        assert "**yes, on these sets**" in text
        assert json.loads(data.read_text())["answers"][0]["difference"]["count"] == 2
        with Image.open(picture) as image:
            assert min(image.size) > 100
        assert len(document(told, rows, {})["runs"]) == 4

    def test_a_page_keeps_what_is_around_its_tables(self, tmp_path):
        page, told = tmp_path / "results.md", experiment(Arm("a"), columns={"iou": "IoU"})
        page.write_text("# Results\n\n<!-- begin trial -->\nold\n<!-- end trial -->\n\nafter\n")
        for _ in range(2):
            fill_page(page, told, markdown(told, self.rows(a=[0.5]), {}))
        text = page.read_text()
        assert text.startswith("# Results")
        assert text.endswith("after\n")
        assert "old" not in text
        assert text.count("## Trial") == 1
        assert "(figures/trial.png)" in text
