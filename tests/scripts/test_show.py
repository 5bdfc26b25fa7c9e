"""The scripts that show and measure what words are good for, on the model that ships."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm.checkpoint import save_safetensors
from ldm.data.playroom import PlayroomConcepts, get_concept_set
from ldm.evaluation.judge_network import JudgeNetwork
from ldm.training.cli import parse
from ldm.training.config import load_config
from ldm.training.run import build_data
from ldm.training.sets import data_of, set_of, words_of
from scripts import gallery, measure_sampling, minimal

NAME = "bear-skateboard"


def write_run(root: Path, name: str = NAME) -> Path:
    """A run's folder as far as the scripts look: its configuration and its words."""
    (root / "configs").mkdir(parents=True)
    (root / "checkpoints").mkdir()
    (root / "configs/now-project.yaml").write_text(
        f"seed: 0\ndata: {{params: {{train: {{params: {{name: {name}}}}}}}}}\n"
    )
    generator = torch.Generator().manual_seed(0)
    shows = get_concept_set(name).shows
    words = {word: 0.1 * torch.randn(1, 128, generator=generator) for word in shows}
    save_safetensors(words, root / "checkpoints/embeddings.safetensors", {})
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("logs") / "run")


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> list[str]:
    """Small numbers, and a judge that has learned nothing: what it says does not matter here."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    save_safetensors(JudgeNetwork().state_dict(), path, {})
    return ["--judge", str(path), "--scenes", "2", "--steps", "1", "--reference", "2",
            "--edits", "1", "--edit_steps", "2", "--inversion_steps", "2", "--pictures", "1",
            "--train_steps", "1", "--excite_steps", "2"]  # fmt: skip


def test_the_page_is_a_page(repo):
    text = (repo / "scripts/minimal.py").read_text()
    assert text.count("\n") <= 100
    for forbidden in ("pytorch_lightning", "ldm.training", "import main"):
        assert forbidden not in text


def test_the_page_learns_two_words(tmp_path, capsys):
    minimal.main(["--steps", "3", "--out", str(tmp_path / "a.png")])
    said = capsys.readouterr().out
    assert "step    0  loss" in said
    for word in ("<bear>", "<skateboard>"):
        assert f"{word}: IoU with the true mask" in said
    assert Image.open(tmp_path / "a.png").width > 600


def test_a_run_knows_its_set_and_its_words(run, tmp_path):
    assert set_of(run) == NAME
    assert words_of(run).is_file()
    with pytest.raises(ValueError, match="holds no learned words"):
        words_of(tmp_path)
    with pytest.raises(ValueError, match="did not learn from a set"):
        set_of(tmp_path)


class TestGallery:
    @pytest.mark.slow
    def test_the_teaser(self, run, tmp_path):
        out = tmp_path / "docs" / "teaser.png"
        code = gallery.main(["--run", str(run), "--steps", "1", "--out", str(out)])
        assert code == 0
        picture = Image.open(out)
        assert picture.width == 2 * gallery.MARGIN + 6 * gallery.TILE + 5 * gallery.GAP
        assert out.stat().st_size <= gallery.MOST_BYTES

    @pytest.mark.parametrize(
        "given", [["--seed", "7"], ["n_images=6"], ["--seed", "7", "seed=3", "n_images=2"]]
    )
    def test_it_shows_the_pictures_that_were_learned_from(self, given, tmp_path):
        told = [f"data.params.train.params.{one}" if "=" in one else one for one in given]
        config = load_config(parse(["--base", "configs/mcpl.yaml", *told]))
        (tmp_path / "configs").mkdir()
        OmegaConf.save(config, tmp_path / "configs/now-project.yaml")
        learned, shown = build_data(config, None).datasets["train"], data_of(tmp_path)
        assert [one.image.tobytes() for one in shown.scenes] == [
            one.image.tobytes() for one in learned.scenes
        ]

    @pytest.mark.parametrize(
        ("count", "heading", "look"),
        [
            (1, "Learned from one picture and one sentence", 2),
            (2, "Learned from two pictures and one sentence", 2),
            (4, "Learned from four pictures and one sentence", 4),
            (9, "Learned from 9 pictures (here the first four) and one sentence", 4),
        ],
    )
    def test_it_says_how_many_there_were(self, count, heading, look, monkeypatch):
        monkeypatch.setattr(gallery, "maps_of", lambda *_: dict.fromkeys("ab", torch.ones(1, 8, 8)))
        row = gallery.learned_from(None, PlayroomConcepts(NAME, n_images=count))
        assert row.headings == {0: heading, look: "Where words look"}
        assert len(row.tiles) == min(count, 4) + 2 <= gallery.COLUMNS

    def test_a_folder_that_is_no_run(self, tmp_path, caplog):
        assert gallery.main(["--run", str(tmp_path), "--out", str(tmp_path / "a.png")]) == 1
        assert "did not learn from a set" in caplog.text
        assert not (tmp_path / "a.png").exists()

    def test_a_large_page_loses_colours_and_not_its_size(self, tmp_path):
        page = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
        gallery.save(tmp_path / "a.png", page)
        assert (tmp_path / "a.png").stat().st_size <= gallery.MOST_BYTES
        assert Image.open(tmp_path / "a.png").size == (600, 600)

    def test_a_word_has_its_colour_wherever_it_stands(self):
        tile = gallery.Tile(np.full((192, 192, 3), 128, np.uint8), "a <b> on <a>")
        page = gallery.sheet("title", [gallery.Row([tile], {0: "heading"})], ["<a>", "<b>"])
        for colour in gallery.WORD_COLOURS[:2]:
            assert (page == colour).all(-1).any()
        assert not (page == gallery.WORD_COLOURS[2]).all(-1).any()

    def test_masks_are_tinted_and_the_rest_fades(self):
        labels = np.array([[0, 1], [2, 2]])
        tinted = gallery.tinted(np.zeros((2, 2, 3), np.uint8), labels)
        assert len({tuple(pixel) for pixel in tinted.reshape(-1, 3)}) == 3
        assert tinted[0, 0].min() > 100


class TestMeasures:
    @pytest.mark.slow
    def test_everything_is_measured_and_kept(self, quick, run, files, tmp_path):
        photos = tmp_path / "photos" / "cat_dog"
        photos.mkdir(parents=True)
        Image.open(files.photo).save(photos / "a.png")
        more = ["--run", str(run), "--images", str(photos.parent), "--outdir", str(tmp_path)]
        assert measure_sampling.main([*quick, *more]) == 0
        kept = json.loads((tmp_path / "sampling.json").read_text())
        assert list(kept) == ["samplers", "excited", "edits", "inversion", "attention"]
        assert len(kept["samplers"]["figures"]) == 1 + 3
        rows = [(row["words"], row["blend"]) for row in kept["edits"]["figures"]["settings"]]
        assert rows == [(w, b) for w in ("learned", "plain") for b in ("0.3", "no")]
        assert list(kept["inversion"]["figures"]) == ["own samples", "given pictures"]
        assert {row["word"] for row in kept["attention"]["figures"]} == {"<bear>", "<skateboard>"}
        page = (tmp_path / "sampling.md").read_text()
        assert list(kept["excited"]["figures"]) == ["no", "all nouns", "difference"]
        assert page.count("## ") == 5
        assert str(tmp_path) not in json.dumps(kept["edits"]["settings"]["outdir"])

    def test_edits_are_measured_with_local_blend_and_without(self):
        options = measure_sampling.build_parser().parse_args(["--thresholds", "0.4", "0.2"])
        settings = measure_sampling.edit_settings(options)
        assert {name: (s.blend, s.threshold) for name, s in settings.items() if s.blend} == {
            "0.4": (True, 0.4), "0.2": (True, 0.2),
        }  # fmt: skip
        assert not settings["no"].blend

    def test_one_measurement_does_not_lose_the_others(self, tmp_path):
        for name, value in (("attention", 1), ("samplers", 2), ("attention", 3)):
            measure_sampling.keep(tmp_path, name, (value, [["a"], [str(value)]]), {})
        kept = json.loads((tmp_path / "sampling.json").read_text())
        assert {name: entry["figures"] for name, entry in kept.items()} == {
            "samplers": 2, "attention": 3,
        }  # fmt: skip
        assert "| 3 |" in (tmp_path / "sampling.md").read_text()

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["speed"], "'speed'"),
            (["attention", "--run", "nowhere"], "nowhere did not learn"),
            (["edits", "--thresholds", "3"], "threshold"),
            (["samplers", "--judge", "nowhere.safetensors"], "nowhere.safetensors"),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_mistakes_are_one_message(self, tmp_path, caplog, arguments, expected):
        assert measure_sampling.main([*arguments, "--outdir", str(tmp_path), "--scenes", "2"]) == 1
        assert expected in caplog.records[-1].getMessage()
        assert not (tmp_path / "sampling.json").exists()
