"""A whole text-to-image model at toy size, written to a folder as a user would have it.

Its weights are those of the goldens' recipe: no layer is zero, so that gradients reach the words.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from ldm.checkpoint import save_safetensors
from ldm.util import instantiate_from_config
from tests.golden import fill

VOCAB = Path(__file__).resolve().parents[2] / "models/ldm/playroom/vocab.txt"
SENTENCE = "a [brown] <teddy:bear> on a <board:skateboard>"
PIXELS = 16


def backbone(vocab: Path, weights: Path, width: int = 32) -> dict[str, Any]:
    """What ``configs/backbones/*.yaml`` hold, for 16x16 pictures and 8x8 latents."""
    return {
        "name": "toy",
        "weights": str(weights),
        "size": PIXELS,
        "mask_resolution": [8, 4],
        "model": {
            "base_learning_rate": 2.5e-3,
            "params": {
                "linear_start": 0.00085,
                "linear_end": 0.012,
                "timesteps": 1000,
                "first_stage_key": "image",
                "cond_stage_key": "caption",
                "image_size": 8,
                "channels": 4,
                "cond_stage_trainable": True,
                "conditioning_key": "crossattn",
                "scale_factor": 0.5,
                "use_ema": False,
                "unet_config": _unet(width),
                "first_stage_config": _first_stage(),
                "cond_stage_config": _text(vocab, width),
            },
        },
    }


def _unet(width: int) -> dict[str, Any]:
    params = {
        "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32,
        "attention_resolutions": [1, 2], "num_res_blocks": 1, "channel_mult": [1, 1],
        "num_head_channels": 16, "use_spatial_transformer": True, "transformer_depth": 1,
        "context_dim": width, "legacy": False, "norm_groups": 8,
    }  # fmt: skip
    return {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": params}


def _first_stage() -> dict[str, Any]:
    ddconfig = {
        "double_z": True, "z_channels": 4, "resolution": PIXELS, "in_channels": 3, "out_ch": 3,
        "ch": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
        "norm_groups": 8,
    }  # fmt: skip
    params = {"embed_dim": 4, "ddconfig": ddconfig, "lossconfig": {"target": "torch.nn.Identity"}}
    return {"target": "ldm.models.autoencoder.AutoencoderKL", "params": params}


def _text(vocab: Path, width: int) -> dict[str, Any]:
    params = {"n_embed": width, "n_layer": 1, "vocab_file": str(vocab),
              "vocab_size": len(vocab.read_text().splitlines()), "max_seq_len": 24}  # fmt: skip
    return {"target": "ldm.modules.encoders.modules.BERTEmbedder", "params": params}


METHOD = {
    "model": {
        "target": "ldm.models.diffusion.mcpl.MCPL",
        "params": {
            "mask_resolution": "${backbone.mask_resolution}",
            "mask": {"kind": "hard", "threshold": 0.5, "average": "running"},
            "contrast": {"temperature": 0.3, "weight": 0.00075, "bind_adjectives": True},
        },
    },
    "data": {
        "target": "ldm.data.module.DataModuleFromConfig",
        "params": {
            "batch_size": 2,
            "num_workers": 0,
            "train": {
                "target": "ldm.data.personalized.PersonalizedBase",
                "params": {"data_root": "unset", "size": "${backbone.size}", "repeats": 3},
            },
        },
    },
    "concept": {"sentence": SENTENCE},
    "lightning": {
        "modelcheckpoint": {"params": {"every_n_train_steps": 2}},
        "callbacks": {"image_logger": None},
        "trainer": {
            "max_steps": 6, "log_every_n_steps": 2, "accelerator": "cpu", "devices": 1,
            "enable_progress_bar": False,
        },
    },
}  # fmt: skip


@dataclass(frozen=True)
class Toy:
    """Files of the toy: configurations, weights, pictures, and where its runs go."""

    root: Path

    @property
    def method(self) -> Path:
        """What is learned and how; merged before `backbone`."""
        return self.root / "method.yaml"

    @property
    def backbone(self) -> Path:
        """The model under the method."""
        return self.root / "backbone.yaml"

    @property
    def weights(self) -> Path:
        """The model's weights."""
        return self.root / "toy.safetensors"

    @property
    def images(self) -> Path:
        """Four pictures."""
        return self.root / "images"

    def arguments(self, logs: Path, *more: str) -> list[str]:
        """The command line of a run into `logs`."""
        return ["--base", str(self.method), str(self.backbone), "--logdir", str(logs),
                "--data_root", str(self.images), *more]  # fmt: skip


def write_images(folder: Path, count: int = 4, size: int = 20) -> Path:
    """`count` pictures, each different, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def write_model(root: Path, name: str = "toy", width: int = 32) -> Path:
    """The toy's backbone file and weights; returns the file."""
    weights, file = root / f"{name}.safetensors", root / "backbone.yaml"
    described = backbone(VOCAB, weights, width)
    target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    model = instantiate_from_config({"target": target, "params": described["model"]["params"]})
    save_safetensors(fill(model).state_dict(), weights)
    OmegaConf.save(OmegaConf.create({"backbone": described}), file)
    return file


def write_toy(root: Path) -> Toy:
    """Everything that a run of the toy needs, in `root`."""
    toy = Toy(root)
    write_model(root)
    OmegaConf.save(OmegaConf.create(METHOD), toy.method)
    write_images(toy.images)
    return toy
