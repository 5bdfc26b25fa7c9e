"""`scripts/attend.py`: segmenting a photograph by words, and looking while a picture is drawn."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.images import load_image
from ldm.editing.inversion import fit_image
from ldm.evaluation.localisation import word_maps
from ldm.inference import load_model, load_words
from scripts import attend

SENTENCE = "a <teddy> on a <board>"
LEVELS = ["--resolution", "8,4"]


def run(files, out: Path, *more: str) -> int:
    return attend.main([*files.learned, "--outdir", str(out), *more])


def on_photo(files, out: Path, *more: str) -> int:
    # The toy's maps are nearly even: a mask that is neither empty nor full needs a high threshold.
    given = ["--image", str(files.photo), "--sentence", SENTENCE, *LEVELS, "--threshold", "0.8"]
    return run(files, out, *given, *more)


def read(out: Path, name: str = "photo") -> tuple[dict, dict]:
    with np.load(out / f"{name}.npz") as arrays:
        return json.loads((out / f"{name}.json").read_text()), dict(arrays)


@pytest.fixture(scope="module")
def photo(files, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("photo")
    assert on_photo(files, out) == 0
    return out


def test_a_photograph_is_segmented_whole_and_at_its_own_size(photo):
    assert sorted(path.name for path in photo.iterdir()) == [
        "photo-board-mask.png", "photo-board.png", "photo-labels.png", "photo-panel.png",
        "photo-teddy-mask.png", "photo-teddy.png", "photo.json", "photo.npz",
    ]  # fmt: skip
    summary, arrays = read(photo)
    assert summary["size"] == {"width": 80, "height": 40}
    for word, name in (("<teddy>", "teddy"), ("<board>", "board")):
        mask = arrays[f"mask/{word}"]
        assert mask.shape == (40, 80)
        assert 0 < mask.mean() < 1
        drawn = np.asarray(Image.open(photo / f"photo-{name}-mask.png"))
        assert (drawn == mask[..., None] * 255).all()
        assert arrays[f"map/{word}"].shape == (4, 8), "the shape of the photograph"
        found = summary["words"][word]
        left, top, right, bottom = found["box"]
        assert (mask[top:bottom, left:right].sum(), found["area"]) == (mask.sum(), mask.sum())
        assert mask[top].any()
        assert mask[bottom - 1].any()
        assert mask[:, left].any()
        assert mask[:, right - 1].any()
        assert found["share"] == pytest.approx(mask.mean(), abs=1e-6)
    assert Image.open(photo / "photo-panel.png").text["sentence"] == SENTENCE
    assert Image.open(photo / "photo-teddy.png").size == (512, 256)


def test_what_an_earlier_call_found_stays(files, tmp_path):
    assert on_photo(files, tmp_path) == 0
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert on_photo(files, tmp_path, "--seed", "7") == 0
    assert {name: (tmp_path / name).read_bytes() for name in first} == first
    assert len(list(tmp_path.iterdir())) == 2 * len(first)
    told = Image.open(tmp_path / "photo-2-panel.png").text
    assert (told["seed"], told["words"]) == ("7", Path(files.words).name)
    assert read(tmp_path, "photo-2")[0]["picture"] == "photo"


def test_maps_are_those_of_the_library(files, photo):
    model = load_model(files.weights, files.config)
    load_words(model, [files.words])
    latents = model.encode_images(fit_image(load_image(files.photo), 16, 4))
    expected = word_maps(model, latents, [SENTENCE], resolutions=[8, 4], seed=42)
    _, arrays = read(photo)
    for word, maps in expected.items():
        np.testing.assert_allclose(arrays[f"map/{word}"], maps[0].numpy(), rtol=1e-5)


def test_words_compete_for_every_pixel(photo):
    summary, arrays = read(photo)
    labels = arrays["labels"]
    assert summary["labels"] == {"<teddy>": 1, "<board>": 2}
    assert set(np.unique(labels)) <= {0, 1, 2}
    for number, word in enumerate(summary["labels"], 1):
        assert arrays[f"mask/{word}"][labels == number].all(), "who wins is above the threshold"
    claimed = arrays["mask/<teddy>"] | arrays["mask/<board>"]
    assert ((labels > 0) == claimed).all()
    contested = arrays["mask/<teddy>"] & arrays["mask/<board>"]
    assert contested.any()


def test_the_strongest_word_wins():
    maps = {"a": torch.tensor([[4.0, 1.0]]), "b": torch.tensor([[0.1, 0.2]])}
    assert attend.compete(maps, (1, 2), 0.3).tolist() == [[1, 2]]
    assert attend.compete(maps, (1, 2), 0.0).tolist() == [[1, 2]]
    maps["b"] = torch.zeros(1, 2)
    assert attend.compete(maps, (1, 2), 0.3).tolist() == [[1, 0]]


def test_plain_words_and_markup_work_too(files, tmp_path):
    sentence = "a [brown] <teddy:bear> on a <board> on the grass"
    code = run(
        files, tmp_path, "--image", str(files.photo), "--sentence", sentence, *LEVELS,
        "--words", "brown,grass,<teddy>", "--threshold", "0.7",
    )  # fmt: skip
    assert code == 0
    summary, _ = read(tmp_path)
    assert summary["sentence"] == "a brown <teddy> on a <board> on the grass"
    assert list(summary["words"]) == ["brown", "grass", "<teddy>"]
    assert summary["threshold"] == 0.7


@pytest.mark.parametrize(
    "choice",
    [["--heads", "0"], ["--places", "up"], ["--shares", "0.9"], ["--resolution", "4"]],
    ids=" ".join,
)
def test_heads_places_levels_and_sizes_are_chosen(files, photo, tmp_path, choice):
    assert on_photo(files, tmp_path, *choice) == 0
    (_, before), (_, after) = read(photo), read(tmp_path)
    one, other = before["map/<teddy>"], after["map/<teddy>"]
    assert one.shape != other.shape or not np.allclose(one, other)


def test_all_heads_are_the_mean_of_each(files, tmp_path):
    maps = []
    for heads in (["--heads", "0"], ["--heads", "1"], []):
        out = tmp_path / str(len(maps))
        assert on_photo(files, out, "--resolution", "8", *heads) == 0
        maps.append(read(out)[1]["map/<teddy>"])
    np.testing.assert_allclose((maps[0] + maps[1]) / 2, maps[2], rtol=1e-4)


def test_true_masks_give_the_overlap(files, photo, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.open(photo / "photo-teddy-mask.png").save(masks / "photo-teddy.png")
    assert on_photo(files, tmp_path / "out", "--masks", str(masks)) == 0
    words = read(tmp_path / "out")[0]["words"]
    assert words["<teddy>"]["iou"] == 1.0
    assert "iou" not in words["<board>"]


def test_a_drawing_is_watched(files, tmp_path):
    prompt = ["--prompt", "a photo of a <teddy> on grass", "--ddim_steps", "4", *LEVELS]
    assert run(files, tmp_path / "all", *prompt, "--n_samples", "2") == 0
    assert run(files, tmp_path / "late", *prompt, "--window", "0.5,1") == 0
    (whole, first), (_, second) = read(tmp_path / "all", "0042"), read(tmp_path / "all", "0043")
    late = read(tmp_path / "late", "0042")[1]
    assert whole["size"] == {"width": 16, "height": 16}
    assert not np.allclose(first["map/<teddy>"], second["map/<teddy>"])
    assert not np.allclose(first["map/<teddy>"], late["map/<teddy>"])


def test_a_window_takes_apart_what_all_steps_average(files, tmp_path):
    prompt = ["--prompt", "a photo of a <teddy>", "--ddim_steps", "4", "--resolution", "8"]
    maps = []
    for part in ("0,0.5", "0.5,1", "0,1"):
        assert run(files, tmp_path / part, *prompt, "--window", part) == 0
        maps.append(read(tmp_path / part, "0042")[1]["map/<teddy>"])
    np.testing.assert_allclose((maps[0] + maps[1]) / 2, maps[2], rtol=1e-4)


def test_pictures_of_one_name_have_files_of_their_own(files, tmp_path):
    other = tmp_path / "other" / files.photo.name
    other.parent.mkdir()
    Image.open(files.photo).rotate(180).save(other)
    assert on_photo(files, tmp_path / "out", "--image", str(other)) == 0
    first, second = (read(tmp_path / "out", name)[1] for name in ("photo", "photo-2"))
    assert (first["map/<teddy>"] != second["map/<teddy>"]).any()


def test_a_model_whose_code_is_missing_is_one_message(files, tmp_path, caplog):
    config = tmp_path / "gone.yaml"
    config.write_text("model: {target: ldm.nowhere.Model, params: {}}")
    assert run(files, tmp_path, "--prompt", "a <teddy>", "--config", str(config)) == 1
    assert "'ldm.nowhere'" in caplog.records[-1].getMessage()


def test_sizes_that_are_not_there_are_found_in_the_second_step(files, tmp_path, monkeypatch):
    steps, begin = [], attend.ChosenAttention.begin_step
    monkeypatch.setattr(
        attend.ChosenAttention, "begin_step", lambda s, *a: steps.append(1) or begin(s, *a)
    )
    given = ["--prompt", "a <teddy>", "--resolution", "5", "--ddim_steps", "10"]
    assert run(files, tmp_path, *given) == 1
    assert len(steps) == 2


@pytest.mark.parametrize(
    ("window", "steps"),
    [((0, 0.005), (0, 1)), ((0.999, 1), (9, 10)), ((0.2, 0.8), (2, 8)), ((0, 1), (0, 10))],
)
def test_a_window_is_never_empty(window, steps):
    assert attend.chosen_steps(window, 10) == steps


def test_file_names_are_never_shared():
    names = attend.file_names(["<a>", "a", "*", "@", "ein bär"])
    assert list(names.values()) == ["a", "a-1", "word2", "word3", "ein-bär"]


def test_an_empty_mask_has_no_box():
    assert attend.describe(np.zeros((2, 3), bool), None) == {"box": None, "area": 0, "share": 0.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either pictures"),
        (["--image", "{photo}", "--prompt", "a cat"], "give either pictures"),
        (["--image", "{photo}"], "needs a --sentence"),
        (["--image", "nowhere.png", "--sentence", "a <teddy>"], "nowhere.png.*cannot be read"),
        (["--image", "{photo}", "--sentence", "a <tedy>"], "<tedy>.*did you mean <teddy>"),
        (["--image", "{photo}", "--sentence", "a cat"], "'a cat' has no learned word"),
        (["--image", "{photo}", "--sentence", "a cat", "--words", "dog"], "dog: not in"),
        (["--image", "{photo}", "--sentence", "a <teddy>", "--resolution", "5"], r"\[5\] pixels"),
        (["--image", "{photo}", "--sentence", "a <teddy>", "--resolution", "8", "--heads", "7"],
         "have 2 heads"),
        (["--image", "{photo}", "--sentence", "a <teddy>", "--size", "18"], "multiple of 4"),
        (["--image", "{photo}", "--sentence", "a <teddy>", "--places", "top"], "top.*down, mid"),
        (["--image", "{photo}", "--sentence", "a <teddy>", "--resolution", "8", "--masks", "."],
         "photo-teddy.png is there"),
        (["--prompt", "a <teddy>", "--window", "0.9,0.1"], "two rising shares"),
        (["--prompt", "a <teddy>", "--n_samples", "0"], "at least 1"),
        (["--prompt", "a <teddy>", "--threshold", "1"], "less than 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_misuse_is_refused_with_the_remedy(files, tmp_path, caplog, arguments, message):
    given = [part.format(photo=files.photo) for part in arguments]
    assert run(files, tmp_path / "out", *given) == 1
    assert re.search(message, caplog.records[-1].getMessage())
    assert not (tmp_path / "out" / "photo.json").exists()


@pytest.mark.parametrize("flag", [["--shares", "2"], ["--heads", "a"], ["--window", "x,1"]])
def test_flags_are_read_strictly(flag, capsys):
    with pytest.raises(SystemExit):
        attend.build_parser().parse_args(flag)
    assert "expected" in capsys.readouterr().err
