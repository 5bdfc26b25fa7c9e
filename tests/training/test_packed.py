"""Many runs in one batch: what each leaves, how they stop, continue and are listed."""

import csv
import json
import math
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning import Callback

from ldm.checkpoint import read_embeddings
from ldm.training.cli import parse
from ldm.training.config import load_config
from ldm.training.jobs import job_config
from ldm.training.main import main
from ldm.training.packed import Job, learn_many
from tests.training.conftest import fresh_logging
from tests.training.toy import write_images

HERE = "lightning.callbacks.extra.target=tests.training.test_packed."


class Stop(Callback):
    """An error in the middle of training."""

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == 3:
            raise RuntimeError("the power is gone")


class Poison(Callback):
    """Makes the words of the second run no numbers."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 1:
            for vectors in pl_module.runs[1].embedding_manager.embedding_parameters():
                vectors.data.fill_(math.nan)


@pytest.fixture(scope="module")
def other_images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("others") / "others", count=3, size=24)


@pytest.fixture(scope="module")
def jobs(toy, other_images):
    return [
        Job("bear", str(toy.images), None, seed=5),
        Job("many", str(other_images), "a [brown] <cat:random> on a <mat|2> and a <ball>", seed=6),
        Job("drawn", "playroom:bear-skateboard", "a <teddy> on <board>", 7, strategy="all"),
    ]


def configured(toy, logs, *more):
    return load_config(parse(toy.arguments(logs, *more)))


@pytest.fixture(scope="module")
def learned(toy, jobs, tmp_path_factory):
    """The folder of three runs that nothing disturbed."""
    root = tmp_path_factory.mktemp("many")
    with fresh_logging():
        folders = learn_many(configured(toy, root), jobs, root)
    assert folders == [root / job.name for job in jobs]
    return root


def vectors(folder, name="embeddings.safetensors"):
    return read_embeddings(folder / "checkpoints" / name).vectors


def table(folder):
    with (folder / "csv/metrics.csv").open() as rows:
        return list(csv.DictReader(rows))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[word], b[word]) for word in a)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def alone(toy, jobs, tmp_path_factory):
    """The second run, started by itself as a user does."""
    root, job = tmp_path_factory.mktemp("alone"), jobs[1]
    line = ["--base", toy.method, toy.backbone, "--logdir", root, "--data_root", job.data_root,
            "--sentence", job.sentence, "--seed", job.seed]  # fmt: skip
    with fresh_logging():
        assert main([str(word) for word in line]) == 0
    return next(root.iterdir())


class TestWhatARunLeaves:
    def test_the_same_words_as_alone(self, learned, alone):
        folder = learned / "many"
        for name in ("embeddings.pt", "embeddings.safetensors", "embeddings_gs-2.pt"):
            close(vectors(folder, name), vectors(alone, name))
        moved = [row["moved"] for row in json.loads((folder / "summary.json").read_text())["words"]]
        assert min(moved) > 0

    def test_the_same_table_of_losses_as_alone(self, learned, alone):
        mine, theirs = table(learned / "many"), table(alone)
        assert [row["step"] for row in mine] == [row["step"] for row in theirs]
        for row, expected in zip(mine, theirs, strict=True):
            assert row.keys() == expected.keys()
            # Epochs are of no consequence: a pack's are those of its longest set.
            close(*({k: float(v) for k, v in r.items() if k != "epoch"} for r in (row, expected)))

    def test_the_same_files_but_for_numbered_checkpoints(self, learned, alone):
        def files(folder):
            names = (path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
            kept = {name for name in names if not name.startswith(("tensorboard", "configs"))}
            return {name for name in kept if "step-" not in name}

        assert files(learned / "many") - {"run.json"} == files(alone)
        (mine,) = (learned / "many/configs").glob("*-project.yaml")
        (theirs,) = (alone / "configs").glob("*-project.yaml")
        mine, theirs = OmegaConf.load(mine), OmegaConf.load(theirs)
        for part in ("model", "data", "concept", "seed"):
            assert mine[part] == theirs[part]

    @pytest.mark.slow
    def test_it_can_be_continued_alone(self, learned, alone, tmp_path):
        folders = [shutil.copytree(learned / "many", tmp_path / "packed"),
                   shutil.copytree(alone, tmp_path / "alone")]  # fmt: skip
        for folder in folders:
            with fresh_logging():
                assert main(["--resume", str(folder), "--max_steps", "8"]) == 0
        close(*(vectors(folder, "embeddings_gs-8.pt") for folder in folders))


def test_packs_of_another_size_give_the_same_words(toy, jobs, learned, tmp_path):
    learn_many(configured(toy, tmp_path), jobs, tmp_path, pack=2)
    assert len(list((tmp_path / "packs").iterdir())) == 2
    for job in jobs:
        close(vectors(tmp_path / job.name), vectors(learned / job.name))


def test_a_run_that_leaves_early_changes_nothing_for_the_others(toy, jobs, learned, tmp_path):
    early = [Job(**{**vars(job), "steps": 3 if job.name == "many" else None}) for job in jobs]
    learn_many(configured(toy, tmp_path), early, tmp_path)
    for name in ("bear", "drawn"):
        close(vectors(tmp_path / name), vectors(learned / name))
    close(vectors(tmp_path / "many", "embeddings_gs-2.pt"),
          vectors(learned / "many", "embeddings_gs-2.pt"))  # fmt: skip
    assert same(vectors(tmp_path / "many"), vectors(tmp_path / "many", "embeddings_gs-3.pt"))
    assert len(table(tmp_path / "many")) == 1
    assert json.loads((tmp_path / "many/run.json").read_text())["steps"] == 3
    assert (tmp_path / "many/summary.json").is_file()


def test_a_run_whose_loss_is_no_number_ends_alone(toy, jobs, learned, tmp_path, caplog):
    learn_many(configured(toy, tmp_path, HERE + "Poison"), jobs, tmp_path)
    assert "many ends: its loss at step 2 is not a number" in caplog.text
    for name in ("bear", "drawn"):
        close(vectors(tmp_path / name), vectors(learned / name))
    assert json.loads((tmp_path / "many/run.json").read_text())["steps"] == 0


def test_a_run_ends_when_its_evaluation_says_so(toy, jobs, learned, tmp_path):
    looks = "lightning.callbacks.evaluation.params={every_n_train_steps: 2, early_stop: {patience: "
    config = configured(toy, tmp_path, looks + "1, min_delta: 9}}")
    (folder,) = learn_many(config, jobs[:1], tmp_path)
    close(vectors(folder, "embeddings.pt"), vectors(learned / "bear", "embeddings_gs-2.pt"))
    assert json.loads((folder / "run.json").read_text())["stopped"]
    assert (folder / "checkpoints/embeddings_best.pt").is_file()
    assert "val/eval_loss" in (folder / "csv/metrics.csv").read_text()
    written = (folder / "summary.json").stat().st_mtime_ns
    learn_many(config, jobs[:1], tmp_path)
    assert (folder / "summary.json").stat().st_mtime_ns == written, "it is complete"


class TestContinuing:
    def test_an_interrupted_pack_goes_on_bit_for_bit(self, toy, jobs, learned, tmp_path):
        with pytest.raises(RuntimeError, match="power"):
            learn_many(configured(toy, tmp_path, HERE + "Stop"), jobs, tmp_path)
        assert not list(tmp_path.glob("*/summary.json"))
        learn_many(configured(toy, tmp_path), jobs, tmp_path)
        for job in jobs:
            assert same(vectors(tmp_path / job.name), vectors(learned / job.name))

    @pytest.mark.slow
    def test_also_when_a_run_has_left_it_before(self, toy, jobs, tmp_path):
        early = [Job(**{**vars(job), "steps": 2 if job.name == "bear" else None}) for job in jobs]
        learn_many(configured(toy, tmp_path), early, tmp_path / "through")
        with pytest.raises(RuntimeError, match="power"):
            learn_many(configured(toy, tmp_path, HERE + "Stop"), early, tmp_path / "again")
        learn_many(configured(toy, tmp_path), early, tmp_path / "again")
        for job in jobs:
            assert same(
                vectors(tmp_path / "again" / job.name), vectors(tmp_path / "through" / job.name)
            )

    def test_finished_runs_are_left_alone(self, toy, jobs, learned):
        before = {p: p.stat().st_mtime_ns for p in learned.rglob("*") if p.is_file()}
        assert learn_many(configured(toy, learned), jobs, learned)[0] == learned / "bear"
        assert {p: p.stat().st_mtime_ns for p in learned.rglob("*") if p.is_file()} == before

    @pytest.mark.slow
    def test_further_than_planned(self, toy, jobs, learned, tmp_path):
        root = shutil.copytree(learned, tmp_path / "copy")
        more = configured(toy, tmp_path, "--max_steps", "8")
        learn_many(more, jobs, root)
        learn_many(more, jobs, tmp_path / "through")
        for job in jobs:
            assert same(vectors(root / job.name), vectors(tmp_path / "through" / job.name))


class TestRefusals:
    def test_another_job_of_a_known_name(self, toy, jobs, learned):
        other = [Job(**{**vars(jobs[0]), "seed": 99})]
        with pytest.raises(ValueError, match=r"bear holds a run with another configuration"):
            learn_many(configured(toy, learned), other, learned)

    def test_two_jobs_of_one_name(self, toy, jobs, tmp_path):
        with pytest.raises(ValueError, match="two runs cannot have one name"):
            learn_many(configured(toy, tmp_path), [jobs[0], jobs[0]], tmp_path)

    def test_bad_pictures_before_anything_is_learned(self, toy, jobs, tmp_path):
        bad = Job("bad", str(tmp_path / "nowhere"), None, 1)
        with pytest.raises(FileNotFoundError, match="nowhere"):
            learn_many(configured(toy, tmp_path), [jobs[0], bad], tmp_path / "out", pack=1)
        assert not (tmp_path / "out").exists()

    def test_a_folder_of_something_else(self, toy, jobs, tmp_path):
        (tmp_path / "bear").mkdir()
        (tmp_path / "bear" / "notes.txt").write_text("mine")
        with pytest.raises(ValueError, match=r"without run\.json"):
            learn_many(configured(toy, tmp_path), jobs[:1], tmp_path)


def test_a_sentence_for_each_kind_of_picture_reaches_the_data(toy):
    wording = {"concept": "a <cube:toy> that is <burnt>", "subject": "a <cube:toy>"}
    config = job_config(configured(toy, "logs"), Job("x", "FOLDER", wording, 3))
    params = config.data.params.train.params
    assert (params.sentence, params.data_root, config.seed) == (wording, "FOLDER", 3)
    assert "sentence" not in config.concept


class TestTheCommandLine:
    def runs(self, toy, *more):
        return configured(toy, "logs", *more).get("runs")

    def test_one_folder_is_one_run(self, toy):
        assert self.runs(toy) is None

    def test_repeats_have_seeds_of_their_own(self, toy):
        runs = self.runs(toy, "--repeats", "3", "--seed", "10")
        assert [(run.name, run.seed) for run in runs] == [
            ("images-seed10", 10), ("images-seed11", 11), ("images-seed12", 12)
        ]  # fmt: skip
        assert {run.data_root for run in runs} == {str(toy.images)}

    @pytest.mark.parametrize("given", [("A", "x/B", "y/B"), ("A,x/B,y/B",)])
    def test_several_folders(self, toy, given):
        runs = self.runs(toy, "--data_root", *given, "seed=4")
        assert [(run.name, run.data_root, run.seed) for run in runs] == [
            ("A", "A", 4), ("B-1", "x/B", 4), ("B-2", "y/B", 4)
        ]  # fmt: skip

    def test_a_comma_in_the_name_of_a_folder(self, toy, tmp_path):
        folder = write_images(tmp_path / "a,b", 1)
        assert self.runs(toy, "--data_root", str(folder)) is None

    def test_no_repeats(self, toy, tmp_path, command):
        outcome = command(toy.arguments(tmp_path, "--repeats", "0"))
        assert "--repeats 0" in outcome.error

    def test_several_folders_in_one_batch_and_further(self, toy, other_images, tmp_path, command):
        roots = ("--data_root", toy.images, other_images, "--max_steps", "2")
        outcome = command(toy.arguments(tmp_path, *roots), tmp_path)
        assert outcome.code == 0
        assert sorted(p.name for p in outcome.folder.iterdir()) == [
            "configs", "images", "others", "overview.md", "packs"
        ]  # fmt: skip
        overview = (outcome.folder / "overview.md").read_text()
        assert "| images |" in overview
        assert "mean of 2 runs" in overview
        outcome = command(["--resume", outcome.folder, "--max_steps", "4"], tmp_path)
        assert outcome.code == 0, outcome.said
        command(toy.arguments(tmp_path / "one", "--max_steps", "4", "--data_root", other_images))
        (alone,) = (tmp_path / "one").iterdir()
        close(vectors(outcome.folder / "others"), vectors(alone))
