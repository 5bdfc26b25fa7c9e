"""``scripts/reproduce.py``: what it lists, what it refuses, and an experiment from end to end."""

import json

import pytest
import yaml
from omegaconf import OmegaConf

from ldm.checkpoint import save_safetensors
from ldm.concepts.contrastive import PromptContrast
from ldm.concepts.masks import AttentionMask
from ldm.evaluation import judge
from ldm.evaluation.judge_network import JudgeNetwork
from ldm.evaluation.tables.grid import arm_config, read_experiment
from scripts import reproduce
from tests.training.conftest import fresh_logging
from tests.training.toy import METHOD, PIXELS, write_toy


@pytest.fixture
def call(capsys):
    def run(*arguments) -> tuple[int, str, str]:
        with fresh_logging():
            code = reproduce.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """A judge that has learned nothing."""
    save_safetensors(JudgeNetwork().state_dict(), tmp_path / "judge.safetensors")
    monkeypatch.setattr(judge, "WEIGHTS", tmp_path / "judge.safetensors")


@pytest.fixture
def small(tmp_path, monkeypatch, judged):
    """An experiment called "small" on the toy model."""
    toy = write_toy(tmp_path / "toy")
    method = {**METHOD, "backbone": str(toy.backbone)}
    method["model"]["params"]["mask_resolution"] = [8, 4]
    (tmp_path / "method.yaml").write_text(yaml.safe_dump(method))
    told = {
        "title": "Small", "about": "Small.", "base": str(tmp_path / "method.yaml"), "steps": 2,
        "family": "ldm.evaluation.tables.mcpl.MCPLFamily", "seeds": 2,
        "groups": {"seen": ["bear-skateboard", "chair-dog"]},
        "overrides": ["data.params.train.params.flip_p=0",
                      "data.params.train.params.own_sentences=false"],
        "arms": {
            "untrained": {"learned": False},
            "masked": {"wording": "alone", "reference": True, "overrides": [
                "model.params.mask.kind=given", "data.params.train.params.given_masks=true"]},
            "all": {"strategy": "all"},
        },
        "columns": {"iou_held": "IoU", "rendered": "rendered", "similarity": "similarity"},
        "checks": [{"question": "Does learning help?", "better": ["all"], "than": ["untrained"]}],
        "options": {"pictures": 2, "held": 1, "size": PIXELS, "shares": [0.5], "samples": 1,
                    "steps": 2, "scale": 2.0, "prompts": ["a photo of a {adjective} {word}"]},
        "quick": {"steps": 1},
    }  # fmt: skip
    folder = tmp_path / "paper"
    folder.mkdir()
    (folder / "small.yaml").write_text(yaml.safe_dump(told))
    monkeypatch.setattr(reproduce, "EXPERIMENTS", folder)


def test_the_list_names_every_experiment(call):
    code, out, _ = call("--list")
    assert code == 0
    assert all(name[:8] in out for name in reproduce.known())


@pytest.mark.parametrize("names", [["mcpl-amrs"], []])
def test_an_unknown_experiment_is_refused(call, judged, names):
    code, _, err = call(*names)
    assert code == 1
    assert "mcpl-arms" in err
    assert "mcpl-amrs" in err if names else "no experiment given" in err


def test_a_missing_judge_is_said_before_anything_is_done(call, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "WEIGHTS", tmp_path / "none.safetensors")
    code, _, err = call("mcpl-arms", "--out", tmp_path / "out")
    assert code == 1
    assert "none.safetensors" in err
    assert not (tmp_path / "out").exists()


def test_a_set_that_is_not_in_it(call, judged, tmp_path):
    code, _, err = call("mcpl-arms", "--sets", "nowhere", "--out", tmp_path / "out")
    assert code == 1
    assert "nowhere" in err
    assert "bear-skateboard" in err


@pytest.mark.parametrize("steps", ["0", "-3", "many"])
def test_a_bad_number(call, steps):
    with pytest.raises(SystemExit):
        call("mcpl-arms", "--steps", steps)


def test_from_runs_to_tables(call, small, tmp_path):
    out, page = tmp_path / "out", tmp_path / "docs" / "results.md"
    arguments = ["small", "--sets", "chair-dog", "--seeds", 1, "--out", out, "--page", page]
    code, said, err = call(*arguments)
    assert code == 0, err
    assert str(out / "small.md") in said
    found = json.loads((out / "small.json").read_text())
    assert {run["arm"] for run in found["runs"]} == {"untrained", "masked", "all"}
    assert [answer["verdict"] for answer in found["answers"]] == ["too few runs"] * 3
    assert "## Small" in page.read_text()
    assert (page.parent / "figures" / "small.png").is_file()
    assert len(list(out.glob("samples/*/*.png"))) == 4
    again = call(*arguments)
    assert again[0] == 0
    assert "1 runs, 0 of them new" in again[2]


@pytest.mark.parametrize("name", [n for n in reproduce.known() if n.startswith("mcpl-")])
def test_every_arm_is_a_configuration_of_mcpl(name):
    experiment = read_experiment(reproduce.known()[name])
    for arm in experiment.arms:
        config = arm_config(experiment, arm, reproduce.Workshop(1))
        params = OmegaConf.to_container(config.model.params, resolve=True)
        mask, contrast = params["mask"], params["contrast"]
        assert mask is None or AttentionMask(**mask).kind in ("hard", "given")
        assert contrast is None or PromptContrast(**contrast).weight > 0
        assert config.lightning.trainer.max_steps == experiment.steps
        assert config.summary is None
        assert params["mask_resolution"]
