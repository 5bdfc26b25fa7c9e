"""Whole runs of the toy model: what changes, what is written, how they continue."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ldm.checkpoint import read_checkpoint, read_embeddings, save_torch
from ldm.evaluation.report import write_report
from ldm.training.folder import _make
from ldm.training.main import main
from tests.training.witness import Witness

WATCHED = "lightning.callbacks.witness.target=tests.training.witness.Witness"
WORDS = ("<teddy>", "<board>")


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    """A run of six steps that nothing disturbed; its folder, and what the witness saw."""
    logs = tmp_path_factory.mktemp("logs")
    assert main(toy.arguments(logs, WATCHED)) == 0
    return next(logs.iterdir()), Witness.latest


@pytest.fixture
def usual_interrupt():
    """Ctrl-C as Python has it, before and after."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def vectors(folder, name="embeddings.pt"):
    return read_embeddings(folder / "checkpoints" / name).vectors


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[word], b[word]) for word in a)


class TestOnlyTheWordsChange:
    def test_every_other_parameter_and_buffer_stays(self, finished):
        _, witness = finished
        learned = {f"embedding_manager.string_to_param_dict.{word}" for word in WORDS}
        assert witness.changed == learned
        assert len(witness.names) > 400, "and there are others"

    def test_nothing_else_has_a_gradient(self, finished):
        _, witness = finished
        learned = {f"embedding_manager.string_to_param_dict.{word}" for word in WORDS}
        assert witness.with_gradient == learned

    def test_the_frozen_network_is_in_evaluation_mode(self, finished):
        _, witness = finished
        parts = ("model.", "first_stage_model.", "cond_stage_model.")
        assert [name for name in witness.training if name.startswith(parts)] == []


class TestWhatIsWritten:
    def test_words_at_every_saved_step(self, finished):
        folder, _ = finished
        for step in (2, 4, 6):
            for suffix in ("pt", "safetensors"):
                assert (folder / "checkpoints" / f"embeddings_gs-{step}.{suffix}").is_file()
        assert same(vectors(folder), vectors(folder, "embeddings_gs-6.pt"))
        assert not same(vectors(folder), vectors(folder, "embeddings_gs-2.pt"))

    def test_the_original_code_can_read_the_words(self, finished):
        folder, _ = finished
        path = folder / "checkpoints/embeddings.pt"
        content = torch.load(path, map_location="cpu", weights_only=False)
        assert isinstance(content["string_to_param"], torch.nn.ParameterDict)
        assert set(content["string_to_token"]) == set(content["string_to_param"].keys())
        assert set(content["string_to_token"]) == set(WORDS)

    @pytest.mark.parametrize("name", ["last.ckpt", "step-000002.ckpt"])
    def test_checkpoints_hold_words_and_optimizer_only(self, finished, name):
        folder, _ = finished
        path = folder / "checkpoints" / name
        content = read_checkpoint(path)
        assert set(content["state_dict"]) == {
            f"embedding_manager.{kind}.{word}"
            for kind in ("string_to_param_dict", "initial_embeddings")
            for word in WORDS
        }
        (optimizer,) = content["optimizer_states"]
        assert len(optimizer["state"]) == len(WORDS)
        assert path.stat().st_size < 100_000

    def test_of_a_network_that_is_trained_too_only_the_last_is_kept(self, toy, tmp_path):
        free = ("model.params.unfreeze_model=true", "model.params.model_lr=1e-6")
        assert main(toy.arguments(tmp_path, "--max_steps", "3", *free)) == 0
        folder = next(tmp_path.iterdir()) / "checkpoints"
        assert [path.name for path in folder.glob("*.ckpt")] == ["last.ckpt"]
        last = read_checkpoint(folder / "last.ckpt")
        assert last["global_step"] == 3
        assert any(key.startswith("model.diffusion_model.") for key in last["state_dict"])

    def test_summary_and_losses(self, finished):
        folder, _ = finished
        summary = json.loads((folder / "summary.json").read_text())
        assert [row["word"] for row in summary["words"]] == list(WORDS)
        assert all(row["moved"] > 0 for row in summary["words"])
        assert "train/loss_simple" in (folder / "csv/metrics.csv").read_text()
        assert list((folder / "tensorboard").glob("events.*"))

    def test_a_trial_without_loggers_writes_to_its_own_folder_too(
        self, toy, tmp_path, command, monkeypatch
    ):
        elsewhere = tmp_path / "elsewhere"
        (elsewhere / "looks").mkdir(parents=True)
        old = elsewhere / "looks/000500.json"
        old.write_text("{}")
        monkeypatch.chdir(elsewhere)
        pictures = ("summary={every: 1, steps: 1, quick_steps: 1}", "--fast_dev_run")
        outcome = command(toy.arguments(tmp_path / "logs", *pictures), tmp_path / "logs")
        assert outcome.code == 0, outcome.said
        assert [path for path in elsewhere.rglob("*") if path.is_file()] == [old]
        assert (outcome.folder / "looks/start.json").is_file()

    def test_the_first_step_is_timed_from_the_start_of_the_program(self, toy, tmp_path, command):
        outcome = command(toy.arguments(tmp_path, "--max_steps", "1"))
        seconds = float(re.search(r"first step done after ([\d.]+) s", outcome.said)[1])
        # The program is the test run here: it has been running for longer than torch loads.
        assert seconds > 1


class TestRepeating:
    def test_same_seed_same_words(self, toy, finished, tmp_path):
        assert main(toy.arguments(tmp_path, "--seed", "23")) == 0
        assert same(vectors(next(tmp_path.iterdir())), vectors(finished[0]))

    def test_other_seed_other_words(self, toy, finished, tmp_path):
        assert main(toy.arguments(tmp_path, "--seed", "24", "--max_steps", "2")) == 0
        other = vectors(next(tmp_path.iterdir()), "embeddings_gs-2.pt")
        assert not same(other, vectors(finished[0], "embeddings_gs-2.pt"))

    def test_loader_processes_change_nothing(self, toy, finished, tmp_path):
        assert main(toy.arguments(tmp_path, "data.params.num_workers=1")) == 0
        assert same(vectors(next(tmp_path.iterdir())), vectors(finished[0]))


class TestContinuing:
    @pytest.fixture
    def copied(self, finished, tmp_path):
        """The folder of the finished run with nothing after its step 2, but for checkpoints."""
        folder = shutil.copytree(finished[0], tmp_path / "run")
        for file in (folder / "checkpoints").glob("embeddings*"):
            file.unlink()
        return folder

    @pytest.mark.parametrize("step", [2, 4])
    def test_from_any_saved_step(self, copied, finished, step):
        assert main(["--resume", str(copied / f"checkpoints/step-00000{step}.ckpt")]) == 0
        assert same(vectors(copied), vectors(finished[0]))

    def test_further_than_planned(self, toy, copied, tmp_path):
        assert main(["--resume", str(copied), "--max_steps", "8"]) == 0
        assert main(toy.arguments(tmp_path / "logs", "--max_steps", "8")) == 0
        whole = next((tmp_path / "logs").iterdir())
        assert same(vectors(copied), vectors(whole))

    def test_from_an_end_between_two_savings(self, toy, tmp_path):
        lines = [
            toy.arguments(tmp_path / name, "--max_steps", n) for name, n in (("a", "3"), ("b", "5"))
        ]
        for line in lines:
            assert main(line) == 0
        (short,), (whole,) = ((tmp_path / name).iterdir() for name in "ab")
        assert read_checkpoint(short / "checkpoints/last.ckpt")["global_step"] == 3
        assert main(["--resume", str(short), "--max_steps", "5"]) == 0
        assert read_checkpoint(short / "checkpoints/last.ckpt")["global_step"] == 5
        assert same(vectors(short), vectors(whole))

    def test_earlier_configurations_and_tables_stay(self, copied):
        before = {
            p: p.read_bytes() for p in [*copied.glob("configs/*"), copied / "csv/metrics.csv"]
        }
        assert main(["--resume", str(copied), "--max_steps", "8"]) == 0
        assert {p: p.read_bytes() for p in before} == before
        newest = sorted(copied.glob("configs/*-project.yaml"))[-1]
        assert newest not in before
        assert OmegaConf.load(newest).lightning.trainer.max_steps == 8
        assert (copied / "csv-2/metrics.csv").is_file()

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("embeddings.pt", {"string_to_param": {"<teddy>": torch.ones(1, 32)}}, "learned words"),
            ("last.ckpt", {}, "emptied checkpoint"),
            ("", {}, "emptied checkpoint"),
            ("model.ckpt", {"state_dict": {"w": torch.ones(1)}}, "no state of a training"),
        ],
    )
    def test_from_what_is_no_state_is_refused(self, copied, command, name, content, said):
        file = copied / "checkpoints" / (name or "last.ckpt")
        save_torch(content, file)
        outcome = command(["--resume", file if name else copied])
        assert outcome.code == 1
        for part in (f"--resume {file}: ", said, "step-*.ckpt", "--embedding_manager_ckpt"):
            assert part in outcome.error

    def test_with_all_steps_done_there_is_nothing_to_do(self, finished, tmp_path, command):
        run = shutil.copytree(finished[0], tmp_path / "run")
        drawn = (run / "summary.json").read_bytes()
        outcome = command(["--resume", run])
        assert outcome.code == 1
        assert f"all 6 steps of {run} are done" in outcome.error
        assert "--max_steps 12" in outcome.error
        assert (run / "summary.json").read_bytes() == drawn
        write_report(run)
        assert f"--resume {run} --max_steps 12" in (run / "report.html").read_text("utf-8")

    def test_the_time_of_all_starts_is_told(self, copied):
        path = copied / "summary.json"
        earlier = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps({**earlier, "seconds": 9000.0}), "utf-8")
        assert main(["--resume", str(copied), "--max_steps", "5"]) == 0
        assert 9000 < json.loads(path.read_text("utf-8"))["seconds"] < 9900

    def test_with_other_words_is_refused(self, copied, command):
        arguments = ["--resume", copied, "--sentence", "a <cat> on a <mat>"]
        outcome = command(arguments)
        assert outcome.code == 1
        assert "<board>" in outcome.error
        assert "<cat>" in outcome.error
        assert (copied / "checkpoints/last.ckpt").is_file()

    def test_words_of_an_earlier_run_as_the_start(self, toy, finished, tmp_path, command):
        words = finished[0] / "checkpoints/embeddings.pt"
        more = ("--embedding_manager_ckpt", words, "--max_steps", "1", "model.base_learning_rate=0")
        assert command(toy.arguments(tmp_path, *more)).code == 0
        assert same(vectors(next(tmp_path.iterdir())), vectors(finished[0]))

    def test_words_of_an_earlier_run_that_are_missing(self, toy, finished, tmp_path, command):
        words = finished[0] / "checkpoints/embeddings.pt"
        more = ("--embedding_manager_ckpt", words, "--sentence", "a <cat>")
        outcome = command(toy.arguments(tmp_path, *more), tmp_path)
        assert (outcome.code, outcome.folder) == (1, None)
        assert "<cat>" in outcome.error
        assert "<teddy>" in outcome.error


class TestEnding:
    KILL = ("lightning.callbacks.kill.target=tests.training.witness.Kill",)

    def test_killed_and_resumed_is_as_if_never_killed(self, toy, repo, finished, tmp_path):
        # In a process of its own: nothing of it is left but its files.
        kill = (*self.KILL, "lightning.callbacks.kill.params.step=4")
        done = subprocess.run(
            [sys.executable, "main.py", *toy.arguments(tmp_path, *kill)],
            cwd=repo, capture_output=True, text=True, check=False, timeout=300,
            env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        )  # fmt: skip
        folder = next(tmp_path.iterdir())
        assert done.returncode == -signal.SIGKILL, done.stderr
        names = {path.name for path in (folder / "checkpoints").iterdir()}
        assert "embeddings_gs-4.pt" in names
        assert "embeddings_gs-6.pt" not in names
        assert not [name for name in names if name.endswith(".tmp")]
        assert main(["--resume", str(folder), "lightning.callbacks.kill=null"]) == 0
        assert same(vectors(folder), vectors(finished[0]))

    def test_interrupted_by_hand(self, toy, finished, tmp_path, command, usual_interrupt):
        kill = (*self.KILL, "lightning.callbacks.kill.params={step: 5, with_signal: SIGINT}")
        outcome = command(toy.arguments(tmp_path, *kill), tmp_path)
        assert outcome.code == 130
        assert f"interrupted; continue with --resume {outcome.folder}" in outcome.said
        assert "Traceback" not in outcome.said
        # Saved on the way out, although no saving was due.
        assert read_checkpoint(outcome.folder / "checkpoints/last.ckpt")["global_step"] == 5
        assert main(["--resume", str(outcome.folder), "lightning.callbacks.kill=null"]) == 0
        assert same(vectors(outcome.folder), vectors(finished[0]))

    def test_interrupted_before_anything_was_saved(self, toy, tmp_path, command, usual_interrupt):
        kill = (*self.KILL, "lightning.callbacks.kill.params={step: 0, with_signal: SIGINT}")
        outcome = command(toy.arguments(tmp_path / "logs", *kill))
        assert outcome.code == 130
        assert "nothing had been saved yet" in outcome.said
        assert not (tmp_path / "logs").exists()


def test_runs_that_begin_together_have_folders_of_their_own(tmp_path, monkeypatch):
    """Both find that there is none yet."""
    monkeypatch.setattr(Path, "exists", lambda _: False)
    made = [_make(tmp_path / "run", str(tmp_path)).name for _ in range(3)]
    assert made == ["run", "run-1", "run-2"]
