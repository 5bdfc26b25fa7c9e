import json

import pytest
import torch

from ldm.checkpoint import save_safetensors
from ldm.evaluation.judge_network import JudgeNetwork
from scripts.check_playroom import main


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    state = {name: value.half() if value.is_floating_point() else value
             for name, value in JudgeNetwork().state_dict().items()}  # fmt: skip
    save_safetensors({f"network.{name}": value for name, value in state.items()}, path)
    return str(path)


@pytest.fixture
def quick(files, judge, tmp_path):
    return ["--config", str(files.config), "--ckpt_path", str(files.weights), "--judge", judge,
            "--out", str(tmp_path), "--scenes", "4", "--judged", "6", "--things", "1", "2",
            "--maps", "8", "4", "--captions", "4", "--steps", "2", "--samples", "1",
            "--device", "cpu"]  # fmt: skip


def test_the_quick_stages_leave_figures_and_compare_with_themselves(quick, tmp_path, capsys):
    stages = ["--stages", "judge", "renders", "samples"]
    assert main([*quick, *stages]) == 0
    written = json.loads((tmp_path / "figures.json").read_text())
    assert {stage: told["steps"] for stage, told in written["measured"].items()} == {
        "judge": 2,
        "renders": 2,
        "samples": 2,
    }
    for kind in ("samples", "renders"):
        assert written["figures"][f"{kind}/objects/2"]["count"] == 2
    assert "judge autoencoded/places" in written["figures"]
    card = tmp_path / "card.json"
    card.write_text(json.dumps(written))
    assert main([*quick, *stages, "--against", str(card)]) == 0
    written["figures"]["judge/places"] = {"value": 5.0, "interval": 0.1, "count": 9}
    card.write_text(json.dumps(written))
    capsys.readouterr()
    assert main([*quick, "--stages", "judge", "--against", str(card)]) == 1
    assert "judge/places" in capsys.readouterr().out


def test_renders_are_read_as_what_they_show(tmp_path):
    given = ["--stages", "renders", "--things", "1", "--captions", "24", "--device", "cpu"]
    assert main([*given, "--out", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    for aspect in ("objects", "colours", "place"):
        assert figures[f"renders/{aspect}/1"]["value"] >= 0.8


def test_a_card_is_filled_in(quick, tmp_path):
    page = tmp_path / "card" / "README.md"
    page.parent.mkdir()
    page.write_text("# Card\n\n<!-- begin judge -->\n<!-- end judge -->\n")
    assert main([*quick, "--stages", "judge", "--card", str(page)]) == 0
    assert "| fresh renders | " in page.read_text()
    assert "judge/objects" in json.loads(page.with_name("figures.json").read_text())["figures"]


def test_nonsense_is_refused(quick, tmp_path):
    with pytest.raises(SystemExit):
        main([*quick, "--card", str(tmp_path / "nowhere.md")])
    with pytest.raises(SystemExit):
        main([*quick, "--scenes", "0"])
    with pytest.raises(SystemExit):
        main([*quick, "--stages", "everything"])
