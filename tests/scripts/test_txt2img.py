"""``scripts/txt2img.py`` with its original flags, on the toy model."""

import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.checkpoint import save_torch
from scripts.txt2img import build_parser, main
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


def test_concepts_learned_apart_compose_in_one_prompt(draw, embeddings, tmp_path):
    frozen = tmp_path / "frozen.pt"
    words = {"<frozen>": torch.linspace(1, -1, 32)[None], "<ice>": torch.ones(2, 32)}
    save_torch(words, frozen)
    prompt = "a photo of a <cat> that is <frozen> in <ice>"
    common = ("--n_samples", 1, "--skip_grid", "--scale", 400, "--prompt", prompt)
    files = ("--embedding_path", embeddings, "--embedding_path", frozen)
    code, said, out = draw(*files, *common)
    assert code == 0, said
    first = pictures(out / "samples")
    save_torch({**words, "<ice>": torch.linspace(-3, 3, 64).sin().view(2, 32)}, frozen)
    second = pictures(draw(*files, *common, out="b")[2] / "samples")
    assert not np.array_equal(first[0], second[0])
    code, said, _ = draw("--embedding_path", embeddings, *common)
    assert code == 1
    assert "<frozen>" in said


def test_a_picture_says_how_it_was_made(draw, embeddings):
    _, _, out = draw("--prompt", "a <cat>", "--embedding_path", embeddings, "--n_samples", 2,
                     "--seed", 8, "--plms", "--scale", 2)  # fmt: skip
    text = Image.open(out / "samples/0001.png").text
    assert text["prompt"] == "a <cat>"
    assert (text["seed"], text["sampler"], text["steps"]) == ("9", "plms", "3")
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


def test_learned_words_that_no_prompt_uses_are_named(draw, embeddings):
    code, said, _ = draw("--embedding_path", embeddings, "--prompt", "a cat", "--n_samples", 1)
    assert code == 0
    assert "<cat>" in said
    _, said, _ = draw("--embedding_path", embeddings, "--prompt", "a <cat>", "--n_samples", 1)
    assert "change nothing" not in said


def test_every_batch_starts_from_the_noise_of_the_first(draw):
    given = ("--prompt", "a cat", "--n_samples", 2, "--n_iter", 2, "--fixed_code", "--skip_grid")
    _, _, out = draw(*given)
    first, second, third, fourth = pictures(out / "samples")
    assert not np.array_equal(first, second)
    assert np.array_equal(first, third)
    assert np.array_equal(second, fourth)
    seeds = [Image.open(path).text["seed"] for path in sorted((out / "samples").iterdir())]
    assert seeds == ["42", "43", "42", "43"]


def test_only_the_grid(draw):
    _, said, out = draw("--prompt", "a bear", "--n_samples", 2, "--skip_save", "--n_rows", 1)
    assert list((out / "samples").iterdir()) == []
    assert pictures(out)[0].shape[0] > 2 * 16
    assert "1 pictures" in said


@pytest.mark.parametrize("sampler", ["dpm", "plms", "ddim"])
def test_samplers(draw, sampler):
    assert draw("--prompt", "a bear", "--n_samples", 1, "--sampler", sampler)[0] == 0


def test_a_picture_to_begin_with(draw, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)).save(photo)
    given = ["--prompt", "a bear", "--n_samples", 1, "--skip_grid", "--ddim_steps", 10]
    code, said, out = draw(*given, "--init-img", photo, "--strength", 0.3)
    assert code == 0, said
    (near,) = pictures(out / "samples")
    assert near.shape == (8, 16, 3), "the shape of the photograph"
    text = Image.open(out / "samples/0000.png").text
    assert (text["init_img"], text["strength"]) == ("photo.png", "0.3")
    (far,) = pictures(draw(*given, "--init_img", photo, "--strength", 1, out="far")[2] / "samples")
    assert not np.array_equal(near, far)
    _, _, large = draw(*given, "--init-img", photo, "--W", 32, out="large")
    assert pictures(large / "samples")[0].shape == (16, 32, 3)


def test_words_that_must_be_seen(draw, embeddings):
    given = ["--embedding_path", embeddings, "--prompt", "a <cat> and a dog", "--n_samples", 1]
    plain = pictures(draw(*given, out="plain")[2])
    code, said, out = draw(*given, "--attend_excite", "<cat>,dog", "--resolution", "8,4")
    assert code == 0, said
    assert not np.array_equal(pictures(out)[0], plain[0])
    assert Image.open(out / "samples/0000.png").text["attend_excite"] == "<cat>, dog"


def test_two_files_with_one_word(draw, embeddings, tmp_path):
    other = tmp_path / "other.pt"
    save_torch({"<cat>": torch.ones(1, 32)}, other)
    both = ["--embedding_path", embeddings, "--embedding_path", other, "--n_samples", 1]
    code, said, _ = draw(*both, "--prompt", "a <cat>")
    assert code == 1
    for words in ("'<cat>'", "embeddings.pt", "other.pt", "--rename"):
        assert words in said
    code, said, out = draw(*both, "--prompt", "a <cat> <tom>", "--rename", f"{other}:<cat>=<tom>")
    assert code == 0, said
    note = Image.open(out / "samples/0000.png").text["words"]
    assert note.startswith("embeddings.pt, other.pt, ")
    assert note.endswith("<cat>=<tom>")


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
        # Words are looked at first: a large model takes minutes to read.
        (["--prompt", "a <cta>", "--ckpt_path", "nowhere.ckpt"], ["<cta>", "did you mean <cat>"]),
        (["--prompt", "a", "--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--prompt", "a", "--init-img", "nowhere.png"], ["nowhere.png"]),
        (["--prompt", "a", "--init-img", "setup.py"], ["setup.py", "cannot be read"]),
        (["--prompt", "a", "--device", "gpu"], ["--device gpu", "cpu"]),
        (["--prompt", "a", "--device", "cuda:99"], ["--device cuda:99", "cpu"]),
        (["--prompt", "a", "--strength", "0"], ["strength 0.0", "more than 0"]),
        (["--prompt", "a <cat>", "--attend_excite", "dog"], ["['dog']", "'a <cat>'"]),
        (["--prompt", "a <cat>", "--attend_excite", "<cat>", "--resolution", "5"], ["[5] pixels"]),
        (["--prompt", "a <cat>", "--attend_excite", "<cat>", "--sampler", "ancestral"], ["ddim"]),
        (["--prompt", "a <cat>", "--rename", "<dog>=<x>"], ["<dog>", "<cat>"]),
        (["--prompt", "a <cat>", "--rename", "<dog>"], ["WORD=NEW"]),
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


def test_a_model_whose_code_is_missing_is_one_message(draw, tmp_path):
    config = tmp_path / "gone.yaml"
    config.write_text("model: {target: ldm.nowhere.Model, params: {}}")
    code, said, _ = draw("--prompt", "a cat", "--config", config)
    assert code == 1
    assert "error: No module named 'ldm.nowhere'" in said


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
