"""``scripts/txt2img.py`` with its original flags, on the toy model."""

import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.checkpoint import save_torch
from scripts.txt2img import build_parser, main
from tests.training.conftest import fresh_logging
from tests.training.toy import write_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def embeddings(tmp_path):
    """A file with one learned word as wide as the toy's text encoder."""
    path = tmp_path / "embeddings.pt"
    save_torch({"<cat>": torch.linspace(-1, 1, 32)[None]}, path)
    return path


@pytest.fixture
def calling(capsys):
    """Calls a script's main; returns its exit code and what it wrote to stderr."""

    def call(main, *arguments) -> tuple[int, str]:
        with fresh_logging():
            code = main([str(argument) for argument in arguments])
        return code, capsys.readouterr().err

    return call


@pytest.fixture
def draw(toy, tmp_path, calling):
    """Draws into a folder and returns exit code, stderr and the folder."""

    def call(*arguments, out="out"):
        code, said = calling(
            main, "--ckpt_path", toy.weights, "--config", toy.backbone, "--ddim_steps", 3,
            "--outdir", tmp_path / out, *arguments,
        )  # fmt: skip
        return code, said, tmp_path / out

    return call


def pictures(folder):
    return [np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("*.png"))]


def test_original_flags(draw, embeddings):
    code, said, out = draw(
        "--ddim_eta", "0.0", "--n_samples", 2, "--n_iter", 2, "--scale", "10.0", "--seed", 3,
        "--H", 16, "--W", 32, "--embedding_path", embeddings, "--prompt", "a photo of a <cat>",
    )  # fmt: skip
    assert code == 0, said
    assert "5 pictures" in said
    single = pictures(out / "samples")
    assert [picture.shape for picture in single] == [(16, 32, 3)] * 4
    assert not np.array_equal(single[0], single[1])
    (grid,) = pictures(out)
    assert grid.shape[0] > 2 * 16
    assert grid.shape[1] > 2 * 32


def test_a_picture_says_how_it_was_made(draw, embeddings):
    _, _, out = draw("--prompt", "a <cat>", "--embedding_path", embeddings, "--n_samples", 2,
                     "--seed", 8, "--plms", "--scale", 2)  # fmt: skip
    text = Image.open(out / "samples/0001.png").text
    assert text["prompt"] == "a <cat>"
    assert (text["seed"], text["number"], text["sampler"], text["steps"]) == ("8", "1", "plms", "3")
    assert (text["scale"], text["words"]) == ("2.0", "embeddings.pt")
    assert text["model"] == "toy.safetensors"
    assert Image.open(out / "a--cat.png").text["prompt"] == "a <cat>"


def test_same_seed_same_pictures_whatever_the_batch(draw):
    for out, count, batches in (("a", 4, 1), ("b", 1, 4), ("c", 2, 2)):
        draw("--prompt", "a bear", "--n_samples", count, "--n_iter", batches, out=out)
    first = pictures(draw("--prompt", "a bear", "--n_samples", 4, out="a2")[2] / "samples")
    root = draw("--prompt", "a bear", "--n_samples", 1, "--seed", 99, out="other")[2]
    for name in ("a", "b", "c"):
        for one, two in zip(first, pictures(root.parent / name / "samples"), strict=True):
            # Batches of other sizes add in other orders: one grey level at most.
            assert np.abs(one - two).max() <= (0 if name == "a" else 1)
    assert np.abs(first[0] - pictures(root / "samples")[0]).max() > 1


def test_nothing_is_overwritten(draw):
    _, _, out = draw("--prompt", "a bear", "--n_samples", 2)
    (out / "samples/0000.png").unlink()
    kept = (out / "samples/0001.png").read_bytes()
    draw("--prompt", "a bear", "--prompt", "A Bear!", "--n_samples", 1)
    assert (out / "samples/0001.png").read_bytes() == kept
    names = sorted(path.name for path in (out / "samples").iterdir())
    assert names == ["0001.png", "0002.png", "0003.png"]
    assert len(list(out.glob("*.png"))) == 3


def test_prompts_from_a_file(draw, tmp_path):
    (tmp_path / "prompts.txt").write_text("a bear\n\n a dog \n")
    code, _, out = draw("--from-file", tmp_path / "prompts.txt", "--n_samples", 1, "--skip_grid")
    assert code == 0
    prompts = [Image.open(path).text["prompt"] for path in sorted((out / "samples").iterdir())]
    assert prompts == ["a bear", "a dog"]
    assert list(out.glob("*.png")) == []


def test_only_the_grid(draw):
    _, said, out = draw("--prompt", "a bear", "--n_samples", 2, "--skip_save", "--n_rows", 1)
    assert list((out / "samples").iterdir()) == []
    assert pictures(out)[0].shape[0] > 2 * 16
    assert "1 pictures" in said


@pytest.mark.parametrize("sampler", ["dpm", "plms", "ddim"])
def test_samplers(draw, sampler):
    assert draw("--prompt", "a bear", "--n_samples", 1, "--sampler", sampler)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--prompt", "a <cta>"], ["<cta>", "did you mean <cat>"]),
        (["--prompt", "a <cat>", "--n_samples", "0"], ["--n_samples", "at least 1"]),
        (["--prompt", "a <cat>", "--n_iter", "-1"], ["--n_iter", "at least 1"]),
        (["--prompt", "a <cat>", "--ddim_steps", "x"], ["--ddim_steps", "'x'"]),
        (["--prompt", "a <cat>", "--H", "17"], ["--H 17", "multiple of"]),
        (["--prompt", "a <cat>", "--promt", "b"], ["--promt"]),
        ([], ["nothing to draw", "--prompt"]),
        (["--from-file", "nowhere.txt"], ["nowhere.txt", "no such file"]),
        (["--prompt", "a", "--embedding_path", "nowhere.pt"], ["nowhere.pt"]),
        (["--prompt", "a", "--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt"]),
        (["--prompt", "a", "--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--prompt", "a", "--config", "configs/backbones/playroom.yaml"],
         ["toy.safetensors", "another architecture"]),
    ],
)  # fmt: skip
def test_mistakes_are_one_message(draw, embeddings, tmp_path, arguments, expected):
    before = sorted(tmp_path.rglob("*"))
    code, said, _ = draw("--embedding_path", embeddings, *arguments)
    assert code == 1
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    for words in expected:
        assert words in error
    assert "Traceback" not in said
    assert [path for path in sorted(tmp_path.rglob("*.png")) if path not in before] == []


def test_words_of_another_width(draw, tmp_path):
    save_torch({"<cat>": torch.ones(1, 1280)}, tmp_path / "large.pt")
    code, said, _ = draw("--prompt", "a <cat>", "--embedding_path", tmp_path / "large.pt")
    assert code == 1
    assert "1280 wide" in said
    assert "txt2img-1p4B-eval.yaml" in said


def test_every_option_says_what_it_does():
    assert [a.option_strings for a in build_parser()._actions if not a.help] == []


def test_stable_diffusion_preset(toy, repo, tmp_path, monkeypatch):
    """The preset is the same script with other defaults, which flags replace."""
    monkeypatch.syspath_prepend(repo / "scripts")
    arguments = [
        "--ckpt", toy.weights, "--config", toy.backbone, "--H", 16, "--W", 16, "--ddim_steps", 1,
        "--n_samples", 1, "--n_iter", 1, "--prompt", "a bear", "--outdir", tmp_path,
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["stable_txt2img.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(repo / "scripts/stable_txt2img.py"), run_name="__main__")
    assert ended.value.code == 0
    assert Image.open(tmp_path / "samples/0000.png").text["scale"] == "7.5"
