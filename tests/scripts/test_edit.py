"""`scripts/edit.py`: from the command line to changed pictures."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.inference import SamplingOptions, load_model, load_words, sample_latents
from ldm.visual import to_uint8
from scripts import edit

PROMPT = "a <teddy> on a <board>"
FAST = ["--steps", "4", "--scale", "3", "--resolution", "8,4"]


def run(files, out: Path, *more: str, prompt: str = PROMPT) -> int:
    return edit.main([*files.learned, "--outdir", str(out), *FAST, "--prompt", prompt, *more])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_a_learned_word_is_replaced_where_it_was(files, tmp_path):
    assert run(files, tmp_path, "--replace", "<teddy>=a brown cat", "--threshold", "0.7") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0042-edited.png", "0042-mask.png", "0042-source.png", "edit-panel.png",
    ]  # fmt: skip
    note = Image.open(tmp_path / "0042-edited.png").text
    assert note["prompt"] == PROMPT
    assert note["target"] == "a brown cat on a <board>"
    assert (note["seed"], note["words"], note["model"]) == ("42", "words.pt", "toy.safetensors")
    assert (pixels(tmp_path / "0042-edited.png") != pixels(tmp_path / "0042-source.png")).any()


def test_the_source_is_what_txt2img_draws_from_that_seed(files, tmp_path):
    assert run(files, tmp_path, "--target", "a cat", "--seed", "7", "--n_samples", "2") == 0
    model = load_model(files.weights, files.config)
    load_words(model, [files.words])
    options = SamplingOptions(steps=4, scale=3.0, seed=7)
    latents = sample_latents(model, [PROMPT] * 2, options, progress=False)
    with torch.no_grad():
        expected = to_uint8(model.decode_first_stage(latents).clamp(-1, 1))
    for name, picture in zip(("0007", "0008"), expected, strict=True):
        gap = pixels(tmp_path / f"{name}-source.png") - picture.astype(int)
        assert np.abs(gap).max() <= 1
    assert not (tmp_path / "0007-mask.png").exists(), "blending is for replaced words"


def test_equal_prompts_give_equal_files(files, tmp_path):
    def edited_and_source(name, *more):
        assert run(files, tmp_path / name, *more) == 0
        return [pixels(tmp_path / name / f"0042-{kind}.png") for kind in ("edited", "source")]

    edited, source = edited_and_source("same", "--target", PROMPT, "--blend")
    assert (edited == source).all()
    edited, source = edited_and_source("one", "--reweight", "<teddy>=1")
    assert (edited == source).all()
    edited, source = edited_and_source(
        "other", "--reweight", "<teddy>=4", "--reweight", "<board>=0.5"
    )
    assert (edited != source).any()


def test_an_earlier_edit_is_not_overwritten(files, tmp_path):
    assert run(files, tmp_path, "--target", "a cat") == 0
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(files, tmp_path, "--target", "a dog") == 0
    assert {name: (tmp_path / name).read_bytes() for name in first} == first
    assert Image.open(tmp_path / "0042-2-edited.png").text["target"] == "a dog"
    assert len(list(tmp_path.iterdir())) == 2 * len(first)


def test_every_picture_says_how_it_is_made_again(files, tmp_path):
    assert run(files, tmp_path, "--target", "a cat", "--n_samples", "2", "--cross", "0.6") == 0
    told = Image.open(tmp_path / "0043-edited.png").text
    assert (told["seed"], told["cross"], "blend" in told) == ("43", "0.6", False)
    alone = tmp_path / "alone"
    assert run(files, alone, "--target", "a cat", "--seed", "43", "--cross", "0.6") == 0
    same, again = pixels(tmp_path / "0043-edited.png"), pixels(alone / "0043-edited.png")
    assert np.abs(same.astype(int) - again).max() <= 1


def test_blend_can_be_switched(files, tmp_path):
    assert run(files, tmp_path / "off", "--replace", "<teddy>=a cat", "--no-blend") == 0
    assert not (tmp_path / "off" / "0042-mask.png").exists()
    assert run(files, tmp_path / "on", "--target", "a cat on a <board>", "--blend") == 0
    assert (tmp_path / "on" / "0042-mask.png").exists()


@pytest.mark.parametrize("inversion", ["null", "ddim"])
def test_a_photograph_is_changed(files, tmp_path, inversion):
    given = ["--image", str(files.photo), "--replace", "<teddy>=a cat", "--inversion", inversion]
    assert run(files, tmp_path, *given) == 0
    source = pixels(tmp_path / "photo-source.png")
    assert source.shape == (8, 16, 3), "as oblong as the photograph"
    assert (pixels(tmp_path / "photo-edited.png") != source).any()
    assert (tmp_path / "photo-mask.png").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("<teddy>=a cat", ("<teddy>", "a cat")),
        ("<a=b> = c = d", ("<a=b>", "c = d")),
        ("cat=a dog", ("cat", "a dog")),
        ("*=a dog", ("*", "a dog")),
    ],
)
def test_assignments_are_read(given, expected):
    assert edit.assignment(given) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to change"),
        (["--target", "a cat", "--replace", "<teddy>=a cat"], "either --target or --replace"),
        (["--replace", "<bear>=a cat"], "'<bear>' to be replaced is not in"),
        (["--target", "a <teddi>"], "<teddi>.*did you mean <teddy>"),
        (["--reweight", "dog=2"], "'dog' is not in"),
        (["--target", "a cat", "--method", "replace"], "use 'refine'"),
        (["--target", "a cat", "--cross", "1.5"], "between 0 and 1"),
        (["--target", "a cat", "--threshold", "1"], "less than 1"),
        (["--target", "a cat", "--steps", "0"], "at least 1"),
        (["--target", "a cat", "--n_samples", "0"], "at least 1"),
        (["--target", "a cat", "--size", "18"], "multiple of 4"),
        (["--target", "a cat", "--image", "nowhere.png"], "nowhere.png.*cannot be read"),
        (["--target", "a cat", "--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_misuse_is_refused_with_the_remedy(files, tmp_path, caplog, arguments, message):
    assert run(files, tmp_path / "out", *arguments) == 1
    assert re.search(message, caplog.records[-1].getMessage())
    assert not list(tmp_path.rglob("*.png"))


def test_a_model_whose_code_is_missing_is_one_message(files, tmp_path, caplog):
    config = tmp_path / "gone.yaml"
    config.write_text("model: {target: ldm.nowhere.Model, params: {}}")
    assert run(files, tmp_path, "--target", "a cat", "--config", str(config)) == 1
    assert "'ldm.nowhere'" in caplog.records[-1].getMessage()


@pytest.mark.parametrize("more", [["--reweight", "dog=2"], ["--target", "a", "--cross", "1.5"]])
def test_a_slip_is_found_before_a_photograph_is_inverted(files, tmp_path, monkeypatch, more):
    monkeypatch.setattr(edit, "null_text_inversion", lambda *_, **__: pytest.fail("inverted"))
    assert run(files, tmp_path, "--image", str(files.photo), *more) == 1


@pytest.mark.parametrize(
    "flag", [["--replace", "cat"], ["--reweight", "cat=much"], ["--cross", "x"]]
)
def test_flags_are_read_strictly(flag, capsys):
    with pytest.raises(SystemExit):
        edit.build_parser().parse_args(["--prompt", "a cat", *flag])
    assert re.search("expected|not a number", capsys.readouterr().err)
