"""What a person can get wrong ends in one message, with nothing half-made left behind."""

import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from ldm.checkpoint import save_torch
from tests.training.toy import write_images, write_model


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Weights of a model twice as wide."""
    folder = tmp_path_factory.mktemp("wide")
    write_model(folder, "wide", width=64)
    return folder / "wide.safetensors"


@pytest.fixture
def broken(toy, wide, tmp_path):
    """Folders and files that are wrong in one way each."""
    write_images(tmp_path / "text", 1)
    (tmp_path / "text/notes.jpg").write_text("these are notes, not a picture")
    write_images(tmp_path / "cut", 1, size=64)
    picture = tmp_path / "cut/photo.jpg"
    Image.open(tmp_path / "cut/0.png").save(picture, quality=95)
    picture.write_bytes(picture.read_bytes()[:1500])
    (tmp_path / "empty").mkdir()
    (tmp_path / "nested/photos").mkdir(parents=True)
    write_images(tmp_path / "wordless", 2)
    (tmp_path / "wordless/1.txt").write_text("just some grass")
    write_images(tmp_path / "own", 1)
    (tmp_path / "own/0.txt").write_text("a <cat>")
    write_images(tmp_path / "relations", 2)
    (tmp_path / "bad.yaml").write_text("model:\n  target: [unclosed\ndata: {}\n")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "page.ckpt").write_text("<!DOCTYPE html><html>404 not found</html>")
    (tmp_path / "file").write_text("a file where a folder is wanted")
    save_torch({"string_to_param": {"<teddy>": torch.zeros(1, 7)}}, tmp_path / "narrow.pt")
    (tmp_path / "wide.safetensors").symlink_to(wide)
    (tmp_path / "unsaved/configs").mkdir(parents=True)
    (tmp_path / "unsaved/configs/a-project.yaml").write_text(toy.method.read_text())
    return tmp_path


#: What is wrong -> further arguments ({} is the folder of broken things), words of the message.
CASES = {
    "missing folder": ("--data_root {}/nowhere", ["no folder", "nowhere"]),
    "folder without images": ("--data_root {}/empty", ["no image", "empty"]),
    "folder of folders": ("--data_root {}/nested", ["no image", "photos", "give one of them"]),
    "file instead of a folder": ("--data_root {}/file", ["is a file", "folder"]),
    "text file called .jpg": ("--data_root {}/text", ["notes.jpg", "called like an image"]),
    "truncated JPEG": ("--data_root {}/cut", ["photo.jpg", "truncated"]),
    "sentence without a learnable word": (
        "--sentence 'a bear on a board'", ["no learnable word", "a bear on a board", "<name>"]),
    "bracket that is not closed": ("--sentence 'a <teddy on a board'", ["partner", "^"]),
    "picture whose own sentence has no word": (
        "--data_root {}/wordless", ["1.png", "just some grass", "<teddy>"]),
    "sentence that no picture uses": (
        "--data_root {}/own --sentence 'a <teddy>'", ["not used", "a <cat>"]),
    "unknown word in --pseudo_words": (
        "--placeholder_string 'green * and orange @' --pseudo_words '*,#'", ["#", "green * and"]),
    "no sentence at all": (
        "--data_root {}/relations concept=null", ["which words to learn", "--sentence"]),
    "word that does not fit into the text encoder": (
        "--sentence 'a <bear:toy|60>'", ["<bear> cannot be learned", "<bear> (60)", "fewer"]),
    "words for relations that no picture has": (
        "--data_root {}/relations --placeholder_string 'a * RELATE a @' "
        "--pseudo_words '*,@,on,under'", ["on, under", "name each picture", "on.jpg"]),
    "masks that are not there": (
        "--data_root {}/relations --sentence 'a <bear>' model.params.mask.kind=given "
        "data.params.train.params.given_masks=true", ["0-bear.png", "needs a mask"]),
    "unknown word in --attn_words": (
        "--placeholder_string 'green * and orange @' --pseudo_words '*,@' --attn_words '*,gren'",
        ["--attn_words", "'gren'", "did you mean 'green'?"]),
    "unknown word in --pseudo_words_infonce": (
        "--placeholder_string 'green *' --pseudo_words '*' --presudo_words_infonce '*,@'",
        ["--pseudo_words_infonce", "'@'"]),
    "unknown adjective": (
        "--placeholder_string 'green *' --pseudo_words '*' --adj_aug_infonce blue "
        "--presudo_words_infonce '*'", ["blue", "green *"]),
    "placeholder string without words": ("--placeholder_string 'a * b'", ["--pseudo_words"]),
    "words without a placeholder string": ("--pseudo_words '*'", ["--placeholder_string"]),
    "two sentences": ("--placeholder_string '*' --sentence 'a <b>'", ["--sentence", "one of them"]),
    "init word of a sentence": ("--init_word toy", ["--init_word", "<name:init word>"]),
    "unknown drawn set": ("--data_root playroom:nothing", ["nothing", "bear-skateboard"]),
    "checkpoint of another architecture": (
        "--actual_resume {}/wide.safetensors",
        ["wide.safetensors", "another architecture", "context_dim 32 here vs 64"]),
    "web page as a checkpoint": ("--actual_resume {}/page.ckpt", ["page.ckpt", "web page"]),
    "missing checkpoint": ("--actual_resume {}/none.ckpt", ["none.ckpt", "page.ckpt"]),
    "words of another width": ("--embedding_manager_ckpt {}/narrow.pt", ["7 wide", "32 wide"]),
    "unwritable log folder": ("--logdir {}/file/logs", ["cannot write", "--logdir"]),
    "YAML error": ("--base {}/bad.yaml", ["bad.yaml", "YAML", "line"]),
    "YAML that is a list": ("--base {}/list.yaml", ["list.yaml", "mapping"]),
    "missing configuration": ("--base {}/none.yaml", ["none.yaml", "bad.yaml"]),
    "unknown backbone": ("backbone=sd-v9", ["sd-v9", "playroom"]),
    "no data": ("data=null", ["nothing to do"]),
    "not to be trained": ("-t false", ["nothing to do"]),
    "override that is no YAML": ("model.params.x=[1", ["override", "model.params.x=[1"]),
    "misspelt parameter": ("model.params.mask.kindd=hard", ["model.params", "kindd"]),
    "misspelt parameter of the data": ("data.params.train.params.sise=3", ["data.params", "sise"]),
    "misspelt callback": (
        "lightning.callbacks.image_loger.params={}", ["callbacks.image_loger has no target"]),
    "value that the Trainer refuses": ("--precision 17", ["Trainer", "17"]),
    "unknown flag": ("--data_rot x", ["--data_rot", "--data_root"]),
    "value that is no number": ("--seed many", ["--seed", "many"]),
    "nothing to resume": ("--resume {}/nowhere", ["--resume", "nowhere: no such run"]),
    "resuming a run without a checkpoint": (
        "--resume {}/unsaved --logdir {}/", ["last.ckpt", "without --resume"]),
    "resuming under another name": (
        "--resume {}/unsaved --logdir {}/ -n other", ["--name other", "--resume"]),
    "resuming under another ending": (
        "--resume {}/unsaved --logdir {}/ -f _b", ["--postfix _b", "--resume"]),
    "resuming elsewhere": ("--resume {}/unsaved", ["does not lie in --logdir", "logs"]),
    "weights of the backbone that are not there": (
        "backbone.weights={}/none.ckpt",
        ["backbone toy", "models/ldm/text2img-large/README.md", "--actual_resume CKPT"]),
}  # fmt: skip


def arguments(toy, broken, logs, line):
    import shlex

    # Only the first {}-marks are places: braces of YAML stay.
    return toy.arguments(logs, *(part.replace("{}/", f"{broken}/") for part in shlex.split(line)))


@pytest.mark.parametrize("what", CASES)
def test_one_message_and_nothing_left(what, toy, broken, tmp_path, command):
    line, expected = CASES[what]
    before = sorted(tmp_path.rglob("*"))
    outcome = command(arguments(toy, broken, tmp_path / "logs", line))
    assert outcome.code == 1, outcome.said
    for words in expected:
        assert words in outcome.error, outcome.error
    assert "Traceback" not in outcome.said
    assert sorted(tmp_path.rglob("*")) == before, "something was left behind"


def test_no_configuration_at_all(command):
    assert "--base configs/mcpl.yaml" in command([]).error


def test_a_log_folder_that_was_there_stays(toy, broken, tmp_path, command):
    (tmp_path / "logs").mkdir()
    command(arguments(toy, broken, tmp_path / "logs", "--precision 17"))
    assert list((tmp_path / "logs").iterdir()) == []


def test_debug_shows_where(toy, broken, tmp_path, command):
    with pytest.raises(ValueError, match="no image"):
        command(arguments(toy, broken, tmp_path / "logs", "--data_root {}/empty --debug"))


def test_no_weights_are_pointed_out(toy, tmp_path, command):
    outcome = command(toy.arguments(tmp_path, "backbone.weights=null", "--max_steps", "1"))
    assert outcome.code == 0
    assert "network of random numbers" in outcome.said


def test_as_a_program(toy, broken, tmp_path, repo):
    """Exit code and stderr of a real process."""
    line = arguments(toy, broken, tmp_path / "logs", "--data_root {}/cut")
    done = subprocess.run(
        [sys.executable, "main.py", *line], cwd=repo, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "photo.jpg" in error
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "logs").exists()
