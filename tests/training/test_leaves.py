"""What runs of the toy leave: looks, the best words, a page; and that none of it disturbs them."""

import base64
import csv
import html
import io
import json
import re
import shlex
import shutil
import signal
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ldm.callbacks.watch import EVAL_LOSS, EarlyStop, WordWatch
from ldm.checkpoint import read_checkpoint, read_embeddings
from ldm.evaluation.looks import Shown, best_look, read_looks
from ldm.evaluation.report import write_report
from ldm.training.main import main
from scripts import txt2img
from scripts.report import main as report

EVERY = "lightning.callbacks.evaluation.params.every_n_train_steps=2"
PICTURES = "summary={steps: 1, every: 4, quick_steps: 1}"


@pytest.fixture(scope="module")
def watched(toy, tmp_path_factory):
    """The folder of a run of six steps that is looked at every second step."""
    logs = tmp_path_factory.mktemp("watched")
    assert main(toy.arguments(logs, EVERY, PICTURES)) == 0
    return next(logs.iterdir())


def vectors(folder, name="embeddings.pt"):
    return read_embeddings(folder / "checkpoints" / name).vectors


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[word], b[word]) for word in a)


def losses(folder):
    return [(look.step, look.loss) for look in read_looks(folder / "looks")]


class Page(HTMLParser):
    """The pictures and the links of a page, and whether its elements are closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.images += [values["src"]] if tag == "img" else []
        self.links += [v for k, v in attrs if k in ("href", "src") and tag != "img"]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


class TestLooking:
    def test_changes_nothing_in_what_is_learned(self, toy, watched, tmp_path):
        off = "lightning.callbacks.evaluation=null"
        assert main(toy.arguments(tmp_path, off)) == 0
        assert same(vectors(next(tmp_path.iterdir())), vectors(watched))

    def test_the_evaluation_loss_is_logged(self, watched):
        with (watched / "csv/metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row[EVAL_LOSS]]
        logged = [(int(row["step"]), float(row[EVAL_LOSS])) for row in rows]
        assert [step for step, _ in logged] == [0, 2, 4, 6]
        assert logged == losses(watched)
        events = EventAccumulator(str(watched / "tensorboard")).Reload()
        assert [event.step for event in events.Scalars(EVAL_LOSS)] == [0, 2, 4, 6]
        assert [event.step for event in events.Images("words/attention")] == [0, 2, 4, 6]
        assert [event.step for event in events.Images("words/samples")] == [0, 4, 6]

    def test_maps_and_samples_are_kept(self, watched):
        looks, shown = read_looks(watched / "looks"), Shown.read(watched / "looks")
        assert shown.pictures.shape == (4, 16, 16, 3)
        assert shown.sentences == ["a brown <teddy> on a <board>"] * 4
        assert all(set(look.maps) == {"<teddy>", "<board>"} for look in looks)
        assert looks[0].maps["<teddy>"].shape == (4, 8, 8)
        assert [look.samples is not None for look in looks] == [True, False, True, True]
        assert looks[0].samples.shape == (len(shown.prompts), 16, 16, 3)
        moved = [look.figures["words"][0]["moved"] for look in looks]
        assert moved[0] == 0
        assert moved == sorted(moved)

    def test_the_best_words_are_kept(self, watched):
        best = best_look(read_looks(watched / "looks"))
        kept = vectors(watched, "embeddings_best.pt")
        assert same(kept, vectors(watched, f"embeddings_gs-{best.step}.pt"))
        assert same(kept, vectors(watched, "embeddings_best.safetensors"))
        summary = json.loads((watched / "summary.json").read_text())
        assert summary["best"] == {"step": best.step, "loss": best.loss}

    def test_short_runs_without_pictures_are_not_looked_at(self):
        watch = WordWatch(every_n_train_steps=10)
        assert not any(watch.is_due(step, last=6) for step in range(7))
        assert [step for step in range(25) if watch.is_due(step, last=25)] == [0, 10, 20]


class TestContinuing:
    def test_looks_and_best_words_are_those_of_the_undisturbed_run(self, watched, tmp_path):
        folder = shutil.copytree(watched, tmp_path / "run")
        for file in (folder / "checkpoints").glob("embeddings*"):
            file.unlink()
        for file in (folder / "looks").glob("00000[246].*"):
            file.write_text("of another life")
        shutil.copytree(watched / "looks", folder / "looks", dirs_exist_ok=True)
        assert main(["--resume", str(folder / "checkpoints/step-000004.ckpt")]) == 0
        assert losses(folder) == losses(watched)
        best = "embeddings_best.pt"
        assert same(vectors(folder, best), vectors(watched, best))
        for again, once in zip(
            read_looks(folder / "looks"), read_looks(watched / "looks"), strict=True
        ):
            assert all(np.array_equal(again.maps[word], once.maps[word]) for word in once.maps)

    def test_what_came_after_the_checkpoint_is_forgotten(self, watched, tmp_path):
        folder = shutil.copytree(watched, tmp_path / "run")
        checkpoint = folder / "checkpoints/step-000002.ckpt"
        assert main(["--resume", str(checkpoint), "--max_steps", "4"]) == 0
        assert [step for step, _ in losses(folder)] == [0, 2, 4]
        best = best_look(read_looks(folder / "looks"))
        kept = vectors(folder, "embeddings_best.pt")
        assert same(kept, vectors(watched, f"embeddings_gs-{best.step}.pt"))

    def test_interrupted_by_hand(self, toy, tmp_path, command):
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        kill = ["lightning.callbacks.kill.target=tests.training.witness.Kill",
                "lightning.callbacks.kill.params={step: 5, with_signal: SIGINT}"]  # fmt: skip
        outcome = command(toy.arguments(tmp_path, EVERY, PICTURES, *kill), tmp_path)
        signal.signal(signal.SIGINT, before)
        assert outcome.code == 130
        state = read_checkpoint(outcome.folder / "checkpoints/last.ckpt")["state_dict"]
        prefix = "embedding_manager.string_to_param_dict."
        saved = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        assert same(vectors(outcome.folder), saved)
        assert same(vectors(outcome.folder, "embeddings_gs-5.safetensors"), saved)
        summary = json.loads((outcome.folder / "summary.json").read_text())
        assert not summary["finished"]
        page = (outcome.folder / "report.html").read_text()
        assert "interrupted" in page
        assert "&lt;teddy&gt;" in page
        assert len(Page(page).images) >= 3


class TestEarlyStop:
    def test_stops_when_the_loss_falls_no_more(self, toy, tmp_path):
        more = ("lightning.callbacks.evaluation.params.early_stop={patience: 1}",
                "model.base_learning_rate=0")  # fmt: skip
        assert main(toy.arguments(tmp_path, EVERY, *more)) == 0
        folder = next(tmp_path.iterdir())
        assert [step for step, _ in losses(folder)] == [0, 2]
        assert (folder / "checkpoints/embeddings_gs-2.pt").is_file()
        assert not (folder / "checkpoints/embeddings_gs-4.pt").exists()

    def test_goes_on_while_it_falls(self, toy, watched, tmp_path):
        falls = [loss for _, loss in losses(watched)]
        assert falls == sorted(falls, reverse=True), "the case this test is about"
        more = "lightning.callbacks.evaluation.params.early_stop={patience: 1}"
        assert main(toy.arguments(tmp_path, EVERY, more)) == 0
        assert same(vectors(next(tmp_path.iterdir())), vectors(watched))

    def test_counts_looks_since_the_last_lower_loss(self):
        stop = EarlyStop(patience=2, min_delta=0.1)
        assert not stop.is_due([1.0, 0.8, 0.75])
        assert stop.is_due([1.0, 0.8, 0.75, 0.72])
        assert not stop.is_due([1.0, 0.8, 0.75, 0.6])
        with pytest.raises(ValueError, match="patience=0"):
            EarlyStop(patience=0)

    @pytest.mark.parametrize(
        ("params", "said"),
        [("{patients: 3}", "evaluation"), ("{every_n_train_steps: 0}", "every_n_train_steps=0")],
    )
    def test_bad_settings_are_one_message(self, toy, tmp_path, command, params, said):
        outcome = command(
            toy.arguments(tmp_path, f"lightning.callbacks.evaluation.params={params}")
        )
        assert outcome.code == 1
        assert said in outcome.error


class TestThePage:
    def test_needs_nothing_else(self, watched):
        text = (watched / "report.html").read_text(encoding="utf-8")
        page = Page(text)
        assert page.open == []
        assert page.links == []
        assert not re.search(r"(?:https?:)?//", re.sub(r"data:[^\"]+", "", text))
        assert "@import" not in text
        for source in page.images:
            kind, _, content = source.partition(",")
            assert kind == "data:image/png;base64"
            with Image.open(io.BytesIO(base64.b64decode(content))) as image:
                image.verify()

    def test_tells_everything(self, watched):
        text = (watched / "report.html").read_text(encoding="utf-8")
        names = ("attention", "film-1", "film-2", "samples-over-time", "samples", "curves")
        assert len(Page(text).images) == len(names)
        assert all((watched / "images" / f"{name}.png").is_file() for name in names)
        for part in ("&lt;teddy&gt;", "skateboard", "--resume", "scripts/txt2img.py",
                     "every_n_train_steps", "evaluation loss"):  # fmt: skip
            assert part in text

    def test_its_commands_work(self, watched, tmp_path):
        """The words are of another model than the one that ships."""
        page = (watched / "report.html").read_text(encoding="utf-8")
        (told,) = re.findall(r"python scripts/txt2img.py ([^<]*)", page)
        given = [*shlex.split(html.unescape(told)), "--outdir", str(tmp_path), "--ddim_steps", "1"]
        assert txt2img.main([*given, "--n_samples", "1"]) == 0
        assert list(tmp_path.rglob("*.png"))

    def test_can_be_made_again_from_the_folder(self, watched, tmp_path):
        folder = shutil.copytree(watched, tmp_path / watched.name)
        first = (folder / "report.html").read_text()
        (folder / "report.html").unlink()
        for name in ("attention", "film-1", "samples-over-time", "curves"):
            (folder / "images" / f"{name}.png").unlink()
        assert report([str(folder)]) == 0
        again = (folder / "report.html").read_text()
        # The commands name the folder, which is another one.
        assert again.replace(str(folder), "") == first.replace(str(watched), "")

    def test_of_a_run_that_was_killed(self, watched, tmp_path):
        folder = shutil.copytree(watched, tmp_path / "killed")
        for name in ("summary.json", "report.html", "looks/000006.json", "images/samples.png"):
            (folder / name).unlink()
        page = write_report(folder).read_text()
        assert "interrupted" in page
        assert len(Page(page).images) == 5
        assert "&lt;board&gt;" in page

    def test_of_nothing(self, tmp_path, capsys):
        (tmp_path / "empty").mkdir()
        assert report([str(tmp_path / "empty")]) == 1
        assert report([str(tmp_path / "none")]) == 1
        said = capsys.readouterr().err
        assert "holds no run with learned words" in said
        assert "no such run folder" in said
        assert list((tmp_path / "empty").iterdir()) == []
