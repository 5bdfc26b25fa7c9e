"""Two processes learn what one does, and can train the network."""

import os
import subprocess
import sys

import pytest
import torch

from ldm.checkpoint import read_checkpoint, read_embeddings
from ldm.training.main import main

#: PromptCL compares the captions of the whole batch, and running masks remember all of its images.
#: The contrast weighs enough to be seen.
TERMS = ("model.params.contrast.weight=1", "model.params.mask={kind: soft, average: running}")
SHORT = ("--max_steps", "4", "lightning.modelcheckpoint.params.every_n_train_steps=4")
BOTH = ("--devices", "2", "lightning.trainer.strategy=ddp")


def run_main(repo, arguments) -> str:
    """Carry out a command that starts a second process; what it says on standard error."""
    done = subprocess.run(
        [sys.executable, "main.py", *arguments], cwd=repo, capture_output=True, text=True,
        check=False, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_two_processes_equal_one_at_the_same_whole_batch(toy, repo, tmp_path):
    more = (*TERMS, *SHORT, "summary={steps: 1}")
    said = run_main(repo, toy.arguments(tmp_path / "two", *more, *BOTH, "data.params.batch_size=2"))
    assert said.count("Words to learn") == 1, "the second process says nothing"
    (folder,) = (tmp_path / "two").iterdir()
    assert main(toy.arguments(tmp_path / "one", *more, "data.params.batch_size=4")) == 0
    (alone,) = (tmp_path / "one").iterdir()
    two, one = (
        read_embeddings(run / "checkpoints/embeddings.pt").vectors for run in (folder, alone)
    )
    assert two.keys() == one.keys()
    for word, vectors in one.items():
        torch.testing.assert_close(two[word], vectors, rtol=1e-4, atol=1e-5)
    two, one = (
        read_checkpoint(run / "checkpoints/last.ckpt")["attention_mask"]["tables"][0]
        for run in (folder, alone)
    )
    assert (two["keys"], two["counts"]) == (one["keys"], one["counts"])
    torch.testing.assert_close(two["sums"], one["sums"], rtol=1e-4, atol=1e-5)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"checkpoints/last.ckpt", "summary.json", "images/samples.png"} <= names


@pytest.mark.slow
def test_two_processes_share_every_run_of_a_pack(toy, repo, tmp_path):
    more = ("--repeats", "2", *TERMS[:1], *SHORT, "summary=null")
    run_main(repo, toy.arguments(tmp_path / "two", *more, *BOTH, "data.params.batch_size=2"))
    (both,) = (tmp_path / "two").iterdir()
    assert main(toy.arguments(tmp_path / "one", *more, "data.params.batch_size=4")) == 0
    (alone,) = (tmp_path / "one").iterdir()
    names = sorted(path.parents[1].name for path in alone.glob("*/checkpoints/embeddings.pt"))
    assert len(names) == 2
    for name in names:
        two, one = (
            read_embeddings(run / name / "checkpoints/embeddings.pt").vectors
            for run in (both, alone)
        )
        for word, vectors in one.items():
            torch.testing.assert_close(two[word], vectors, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_the_default_model(repo, tmp_path):
    given = [
        "--base", "configs/playroom/ldm.yaml", "--logdir", str(tmp_path), *BOTH,
        "--max_steps", "2", "lightning.trainer.precision=32", "lightning.trainer.accelerator=cpu",
        "model.params.scheduler_config.params.max_decay_steps=200",
        "lightning.trainer.val_check_interval=2", "lightning.callbacks.image_logger=null",
        "lightning.modelcheckpoint.params.every_n_train_steps=2", "data.params.batch_size=2",
        "data.params.num_workers=0", "data.params.validation.params.length=2",
        "model.params.first_stage_ckpt=models/ldm/playroom/model.safetensors",
    ]  # fmt: skip
    run_main(repo, given)
    (folder,) = tmp_path.iterdir()
    assert read_checkpoint(folder / "checkpoints/last.ckpt")["global_step"] == 2
