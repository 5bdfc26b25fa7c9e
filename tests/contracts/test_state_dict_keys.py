"""Models built from the public configurations have the keys and shapes of public checkpoints."""

import functools
from pathlib import Path

import pytest
import torch

from ldm.training.cli import parse
from ldm.training.config import load_config
from ldm.util import instantiate_from_config
from tests.contracts.published import load, read_manifest

MODELS = {
    "txt2img-1p4B": ("configs/latent-diffusion/txt2img-1p4B-eval.yaml", 1368),
    "sd-v1": ("configs/stable-diffusion/v1-inference.yaml", 1143),
    "celebahq-ldm-vq-4": ("configs/latent-diffusion/celebahq-ldm-vq-4.yaml", 955),
    "kl-f8": ("configs/autoencoder/autoencoder_kl_32x32x4.yaml", 248),
}


#: Where the text encoders of configurations with words find their tokenizers: BERT's, CLIP's.
Vocabularies = tuple[Path, Path]


def _without_files(config: dict, vocabularies: Vocabularies | None = None) -> dict:
    """The model part of a configuration, with no checkpoint to read and no loss that needs one."""
    config = config["model"]
    if vocabularies is not None and config["params"].get("personalization_config"):
        text = config["params"]["cond_stage_config"]
        clip = "CLIP" in text["target"]
        given = {"tokenizer" if clip else "vocab_file": str(vocabularies[clip])}
        text["params"] = {**(text.get("params") or {}), **given}
    first_stage = config["params"].get("first_stage_config", config)["params"]
    first_stage.pop("ckpt_path", None)
    first_stage["lossconfig"] = {"target": "torch.nn.Identity"}
    return config


@functools.lru_cache(maxsize=4)
def _build(path: str, vocabularies: Vocabularies | None = None) -> torch.nn.Module:
    """The full-size model, without its memory."""
    with torch.device("meta"):
        return instantiate_from_config(_without_files(load(path), vocabularies))


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory, clip_folder) -> Vocabularies:
    """Small ones in which the init words of the public configurations are found."""
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n*\nsculpture\npainting\n")
    return path, clip_folder


@pytest.mark.parametrize("name", MODELS)
def test_state_dict_keys_match_public_checkpoints(name):
    path, count = MODELS[name]
    recorded = {key: tuple(shape) for key, shape in read_manifest(name)["keys"].items()}
    ours = {key: tuple(value.shape) for key, value in _build(path).state_dict().items()}
    assert len(recorded) == count
    assert sorted(recorded.keys() - ours.keys()) == []
    assert sorted(ours.keys() - recorded.keys()) == []
    assert {key: shape for key, shape in ours.items() if recorded[key] != shape} == {}


@pytest.mark.parametrize(
    ("backbone", "name"), [("text2img-large", "txt2img-1p4B"), ("sd-v1", "sd-v1")]
)
def test_a_method_on_a_public_backbone_has_the_keys_of_its_checkpoints(backbone, name):
    files = ["configs/mcpl.yaml", f"configs/backbones/{backbone}.yaml"]
    config = load_config(parse(["--base", *files]))
    with torch.device("meta"):
        state = instantiate_from_config(config.model).state_dict()
    recorded = {key: tuple(shape) for key, shape in read_manifest(name)["keys"].items()}
    recorded = {key: shape for key, shape in recorded.items() if not key.startswith("model_ema.")}
    ours = {key: tuple(value.shape) for key, value in state.items()}
    assert {key: shape for key, shape in ours.items() if recorded.get(key) != shape} == {}
    assert sorted(recorded.keys() - ours.keys()) == []


def test_stable_diffusion_2_has_the_shapes_of_its_kind():
    """Linear ends of its transformers, 64 channels a head, 1024 wide text; 865.9 M parameters."""
    config = load_config(parse(["--base", "configs/mcpl.yaml", "configs/backbones/sd-v2.yaml"]))
    with torch.device("meta"):
        unet = instantiate_from_config(config.model.params.unet_config)
    state = {key: tuple(value.shape) for key, value in unet.state_dict().items()}
    assert state["input_blocks.1.1.proj_in.weight"] == (320, 320)
    assert state["input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"] == (320, 1024)
    assert unet.input_blocks[8][1].transformer_blocks[0].attn1.heads == 20
    assert sum(parameter.numel() for parameter in unet.parameters()) == 865_910_724


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(read_manifest("public-configs")))
def test_every_public_model_builds(path, vocabularies):
    """At full size: every constructor takes what the published files give it."""
    model = _build(path, vocabularies)
    assert sum(parameter.numel() for parameter in model.parameters()) > 5e7


@pytest.mark.parametrize("name", ["finetune", "finetune_small", "eval_with_tokens"])
def test_learned_words_only_add_their_own_keys(name, vocabularies):
    """A personalised model is the plain one and the vectors of the words."""
    plain = set(_build(MODELS["txt2img-1p4B"][0]).state_dict())
    config = _without_files(
        load(f"configs/latent-diffusion/txt2img-1p4B-{name}.yaml"), vocabularies
    )
    with torch.device("meta"):
        keys = set(instantiate_from_config(config).state_dict())
    assert plain <= keys
    extra = {key.rsplit(".", 1)[0] for key in keys - plain}
    assert extra <= {
        "embedding_manager.string_to_param_dict",
        "embedding_manager.initial_embeddings",
    }
    assert "embedding_manager.string_to_param_dict.*" in keys
