"""The public configurations have the published values, and say what they are for."""

import re

import pytest
import yaml
from omegaconf import OmegaConf

from tests.contracts.published import REPO, config_files, load, read_manifest

RECORDED = read_manifest("public-configs")


@pytest.mark.parametrize("path", sorted(RECORDED))
def test_the_values_are_those_published(path):
    assert load(path) == RECORDED[path]["values"]
    read = OmegaConf.to_container(OmegaConf.load(REPO / path))
    assert read == RECORDED[path]["values"]  # the reader that main.py uses


@pytest.mark.parametrize("path", sorted(RECORDED))
def test_the_header_says_what_it_is_for_and_whose_values_it_has(path):
    header = re.match(r"(?:#.*\n)+", (REPO / path).read_text())
    assert header, f"{path} begins without a comment"
    assert RECORDED[path]["source"] in header[0]
    assert len(header[0].splitlines()) >= 4
    assert path in header[0] or "models/" in header[0] or "model.ckpt" in header[0] or (
        "load_model_from_config" in header[0]
    )  # fmt: skip


@pytest.mark.parametrize("path", config_files(), ids=lambda p: str(p.relative_to(REPO)))
def test_every_config_begins_with_a_comment_and_parses(path):
    text = path.read_text()
    assert text.startswith("#"), "the first line should say what this file is for"
    assert isinstance(yaml.safe_load(text), dict)


def test_the_configs_that_released_commands_name_are_there():
    names = [
        "latent-diffusion/txt2img-1p4B-finetune.yaml",
        "latent-diffusion/txt2img-1p4B-finetune_small.yaml",
        "latent-diffusion/txt2img-1p4B-finetune_style.yaml",
        "latent-diffusion/txt2img-1p4B-eval.yaml",
        "latent-diffusion/txt2img-1p4B-eval_with_tokens.yaml",
        "stable-diffusion/v1-finetune.yaml",
        "stable-diffusion/v1-finetune_unfrozen.yaml",
        "stable-diffusion/v1-inference.yaml",
    ]
    assert {f"configs/{name}" for name in names} <= set(RECORDED)
