"""The first stage: the recorded figures, public names, and training with one and two optimizers."""

import gzip
import json
import subprocess
import sys
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ldm.models.autoencoder import (
    AutoencoderKL,
    IdentityFirstStage,
    VQModel,
    VQModelInterface,
    psnr,
)
from ldm.modules.losses import (
    LPIPSWithDiscriminator,
    ReconstructionLoss,
    VQLPIPSWithDiscriminator,
    contperceptual,
)
from tests.golden import FOLDER, fill, golden

IDENTITY = {"target": "torch.nn.Identity"}
TINY = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 16,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
}
PUBLIC = {
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
RECONSTRUCTION = {"target": "ldm.modules.losses.ReconstructionLoss"}


class Networks:
    """Tiny real networks in place of the pretrained ones."""

    def build_networks(self, in_channels: int, *_: Any) -> tuple[nn.Module, nn.Module]:
        return Distance(), nn.Sequential(
            nn.Conv2d(in_channels, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4, 2, 1)
        )


class Distance(nn.Module):
    """A perceptual distance: of the features of one frozen convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        difference = self.features(x) - self.features(y)
        return difference.square().mean((1, 2, 3), keepdim=True)


class TinyLPIPS(Networks, LPIPSWithDiscriminator):
    """The public loss of a KL autoencoder with tiny networks."""


class TinyVQLPIPS(Networks, VQLPIPSWithDiscriminator):
    """The public loss of a VQ autoencoder with tiny networks."""


def lossconfig(name: str, **params: Any) -> dict[str, Any]:
    """A config of one of the losses above."""
    return {"target": f"{__name__}.{name}", "params": params}


def images(count: int = 4) -> Tensor:
    """Pictures (count,16,16,3) of two colours in [-1,1]."""
    picture = torch.full((count, 16, 16, 3), -0.5)
    picture[:, 4:12, 2:9] = torch.tensor([0.8, 0.1, -0.9])
    return picture


def train(model: pl.LightningModule, steps: int, batch_size: int = 4, **trainer: Any) -> pl.Trainer:
    """Train on the same four pictures for `steps` epochs with the real trainer."""
    loader = DataLoader([{"image": image} for image in images(4)], batch_size=batch_size)
    runner = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        max_epochs=steps,
        **trainer,
    )
    runner.fit(model, loader, loader)
    return runner


def error(model: AutoencoderKL | VQModel) -> float:
    """The mean absolute error of reconstructions of the pictures."""
    with torch.no_grad():
        x = model.get_input({"image": images()}, "image")
        return (model.eval()(x)[0] - x).abs().mean().item()


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """The names whose values differ from those `before`."""
    return {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all values of `module`."""
    return {key: value.clone() for key, value in module.state_dict().items()}


@torch.no_grad()
def test_kl_autoencoder_gives_the_recorded_figures():
    recorded = golden("autoencoder_kl")
    model = fill(AutoencoderKL(**recorded.config))
    shapes = {name: list(value.shape) for name, value in model.named_parameters()}
    assert shapes == recorded.keys()["autoencoder"]
    posterior = model.encode(recorded["image"])
    for name in ("mean", "logvar", "std"):
        recorded.check(name, getattr(posterior, name))
    recorded.check("kl", posterior.kl())
    recorded.check("sample", posterior.mean + posterior.std * recorded["eps"])
    recorded.check("decoded", model.decode(recorded["z"]))
    recorded.check("reconstruction", model(recorded["image"], sample_posterior=False)[0])


@torch.no_grad()
def test_vq_autoencoder_gives_the_recorded_figures():
    recorded = golden("vq_model")
    model = fill(VQModelInterface(**recorded.config))
    shapes = {name: list(value.shape) for name, value in model.named_parameters()}
    assert shapes == recorded.keys()["vq"]
    encoded = model.encode(recorded["image"])
    recorded.check("encoded", encoded)
    quantized, loss, (_, _, indices) = model.quantize(encoded)
    recorded.check("quantized", quantized)
    recorded.check("quant_loss", loss)
    assert torch.equal(indices, recorded["indices"])
    recorded.check("decoded", model.decode(encoded))
    recorded.check("decoded_no_quant", model.decode(encoded, force_not_quantize=True))


@pytest.mark.parametrize(
    ("name", "prefix", "build"),
    [
        (
            "kl-f8",
            "",
            lambda: AutoencoderKL(
                {**PUBLIC, "ch_mult": [1, 2, 4, 4], "z_channels": 4, "double_z": True}, IDENTITY, 4
            ),
        ),
        (
            "celebahq-ldm-vq-4",
            "first_stage_model.",
            lambda: VQModelInterface(
                ddconfig={**PUBLIC, "ch_mult": [1, 2, 4], "z_channels": 3, "double_z": False},
                lossconfig=IDENTITY,
                embed_dim=3,
                n_embed=8192,
            ),
        ),
    ],
)
def test_keys_and_shapes_are_those_of_public_checkpoints(name, prefix, build):
    with gzip.open(FOLDER / "manifests" / f"{name}.json.gz", "rt") as file:
        keys = json.load(file)["keys"]
    keys = {key.removeprefix(prefix): v for key, v in keys.items() if key.startswith(prefix)}
    with torch.device("meta"):
        model = build()
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == keys


def test_latents_are_smaller_and_images_come_back_in_size():
    model = AutoencoderKL(TINY, IDENTITY, embed_dim=3)
    posterior = model.encode(torch.randn(2, 3, 16, 32))
    assert posterior.mode().shape == (2, 3, 8, 16)
    assert model.decode(posterior.sample()).shape == (2, 3, 16, 32)


def test_input_is_read_from_the_last_axis():
    model = AutoencoderKL(TINY, IDENTITY, embed_dim=3)
    picture = torch.randn(2, 16, 12, 3)
    assert torch.equal(model.get_input({"it": picture}, "it"), picture.permute(0, 3, 1, 2))
    assert model.get_input({"it": picture[..., 0]}, "it").shape == (2, 1, 16, 12)


def test_a_few_steps_lower_the_error_and_log_it():
    config = {**RECONSTRUCTION, "params": {"kl_weight": 0.0}}
    model = AutoencoderKL(TINY, config, embed_dim=4, monitor="val/rec_loss")
    model.learning_rate, before = 2e-3, error(model)
    runner = train(model, steps=20)
    assert error(model) < 0.7 * before
    assert runner.global_step == 20
    names = set(runner.callback_metrics)
    assert {"train/rec_loss", "train/kl_loss", "val/rec_loss", "val/psnr"} <= names


def test_training_in_half_precision_lowers_the_error():
    model = AutoencoderKL(TINY, RECONSTRUCTION, embed_dim=4)
    model.learning_rate, before = 2e-3, error(model)
    train(model, steps=20, precision="bf16-mixed")
    assert error(model) < 0.8 * before


def test_learning_rate_follows_the_schedule():
    params = {"warm_up_steps": [4], "cycle_lengths": [100], "f_start": [0.0]}
    schedule = {
        "target": "ldm.lr_scheduler.LambdaLinearScheduler",
        "params": {**params, "f_max": [1.0], "f_min": [1.0]},
    }
    model = AutoencoderKL(TINY, RECONSTRUCTION, embed_dim=4, scheduler_config=schedule)
    model.learning_rate = 8e-3
    runner = train(model, steps=2)
    assert runner.optimizers[0].param_groups[0]["lr"] == pytest.approx(4e-3)


def test_averaged_weights_are_used_for_validation_and_given_back():
    model = AutoencoderKL(TINY, RECONSTRUCTION, embed_dim=4, ema_decay=0.5)
    model.learning_rate = 1e-2
    train(model, steps=3)
    name = "decoder.conv_out.weight"
    own, average = model.get_parameter(name).clone(), model.model_ema.decoderconv_outweight
    assert not torch.equal(own, average)
    with model.ema_scope():
        assert torch.equal(model.get_parameter(name), average)
    assert torch.equal(model.get_parameter(name), own)


def test_discriminator_and_autoencoder_take_turns():
    config = lossconfig("TinyLPIPS", disc_start=0, kl_weight=1e-6, disc_weight=0.5)
    model = AutoencoderKL(TINY, config, embed_dim=4)
    model.learning_rate, before = 1e-3, snapshot(model)
    runner = train(model, steps=2)
    moved = changed(model, before)
    for part in ("encoder.", "decoder.", "quant_conv.", "loss.discriminator."):
        assert any(name.startswith(part) for name in moved), part
    assert not any(name.startswith("loss.perceptual_loss.") for name in moved)
    assert runner.global_step == 4
    assert {"train/disc_loss", "train/d_weight", "val/rec_loss"} <= set(runner.callback_metrics)


def test_discriminator_waits_for_its_start():
    config = lossconfig("TinyLPIPS", disc_start=2, kl_weight=1e-6)
    model = AutoencoderKL(TINY, config, embed_dim=4)
    model.learning_rate, before = 1e-3, snapshot(model.loss.discriminator)
    train(model, steps=2)
    assert not changed(model.loss.discriminator, before)
    train(model, steps=3)
    assert changed(model.loss.discriminator, before)


def test_batches_of_a_step_are_summed_before_two_optimizers_move():
    model = AutoencoderKL(TINY, lossconfig("TinyLPIPS", disc_start=0), embed_dim=4)
    model.learning_rate, model.accumulate_grad_batches = 1e-3, 4
    before = snapshot(model)
    assert train(model, steps=2, batch_size=1).global_step == 2 * 2, "one step of each an epoch"
    assert changed(model, before)


def test_the_last_batches_of_an_epoch_are_not_carried_over():
    model = AutoencoderKL(TINY, lossconfig("TinyLPIPS", disc_start=0), embed_dim=4)
    model.learning_rate, model.accumulate_grad_batches = 1e-3, 3
    runner = train(model, steps=1, batch_size=1)
    assert runner.global_step == 2 * 2, "of three batches and of one"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_vq_autoencoder_trains_its_codes():
    config = lossconfig("TinyVQLPIPS", disc_start=0, disc_weight=0.5)
    model = VQModel({**TINY, "double_z": False}, config, n_embed=16, embed_dim=4)
    model.learning_rate, before = 1e-3, snapshot(model)
    runner = train(model, steps=2)
    moved = changed(model, before)
    assert "quantize.embedding.weight" in moved
    assert any(name.startswith("loss.discriminator.") for name in moved)
    assert {"train/quant_loss", "val/psnr"} <= set(runner.callback_metrics)


def test_vq_codes_decode_to_the_reconstruction():
    config = {**TINY, "double_z": False}
    model = VQModel(config, IDENTITY, n_embed=16, embed_dim=4, sane_index_shape=True).eval()
    x = torch.randn(2, 3, 16, 16)
    reconstruction, _, indices = model(x, return_pred_indices=True)
    decoded = model.decode_code(indices)
    torch.testing.assert_close(decoded, reconstruction, atol=1e-4, rtol=1e-4)


def test_generator_gradients_balance_at_the_last_layer():
    loss = TinyLPIPS(disc_start=0, disc_weight=1.0, perceptual_weight=0.0)
    layer = nn.Conv2d(3, 3, 1)
    nll, fooled = layer(torch.randn(2, 3, 8, 8)).square().sum(), layer.weight.sum()
    weight = loss.adaptive_weight(nll, fooled, layer.weight)
    lengths = [torch.autograd.grad(x, layer.weight)[0].norm() for x in (nll, weight * fooled)]
    torch.testing.assert_close(*lengths, rtol=1e-3, atol=1e-3)


def test_perceptual_distance_never_trains():
    loss = TinyLPIPS(disc_start=0).train()
    assert not loss.perceptual_loss.training
    assert loss.discriminator.training
    assert not any(p.requires_grad for p in loss.perceptual_loss.parameters())


@pytest.mark.parametrize("name", ["hinge", "vanilla"])
def test_discriminator_losses_prefer_the_truth(name):
    judge = contperceptual.DISCRIMINATOR_LOSSES[name]
    real, fake = torch.tensor([2.0, 3.0]), torch.tensor([-2.0, -4.0])
    assert judge(real, fake) < judge(fake, real)


def test_losses_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="disc_loss is 'wgan'"):
        TinyLPIPS(disc_start=0, disc_loss="wgan")
    with pytest.raises(ValueError, match="kl_weight is -1"):
        ReconstructionLoss(kl_weight=-1)
    with pytest.raises(ValueError, match="disc_conditional"):
        TinyLPIPS(disc_start=0).judge(torch.randn(1, 3, 8, 8), torch.randn(1, 1, 8, 8))


def test_reconstruction_loss_sees_only_errors():
    posterior = AutoencoderKL(TINY, IDENTITY, embed_dim=4).encode(torch.randn(2, 3, 16, 16))
    x = torch.randn(2, 3, 16, 16)
    loss = ReconstructionLoss(kl_weight=0.0, scales=2)
    assert loss(x, x, posterior)[0] == 0
    # A constant error has no edges.
    total, log = loss(x, x + 0.25, posterior, split="val")
    assert total.item() == pytest.approx(0.25, abs=1e-6)
    assert log["val/edge_loss"].item() == pytest.approx(0.0, abs=1e-6)


def test_inference_only_model_says_so_when_trained():
    with pytest.raises(ValueError, match="lossconfig"):
        AutoencoderKL(TINY, IDENTITY, embed_dim=4).configure_optimizers()


def test_latent_without_variance_is_refused():
    with pytest.raises(ValueError, match="double_z"):
        AutoencoderKL({**TINY, "double_z": False}, IDENTITY, embed_dim=4)


def test_weights_come_from_a_file_but_for_those_ignored(tmp_path):
    source = fill(AutoencoderKL(TINY, IDENTITY, embed_dim=4))
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": source.state_dict()}, path)
    model = AutoencoderKL(TINY, IDENTITY, 4, ckpt_path=str(path), ignore_keys=["decoder.conv_out"])
    differing = changed(model, source.state_dict())
    assert differing == {"decoder.conv_out.weight", "decoder.conv_out.bias"}


def test_weights_come_out_of_those_of_a_whole_model(tmp_path):
    source = fill(AutoencoderKL(TINY, IDENTITY, embed_dim=4))
    state = {f"first_stage_model.{key}": value for key, value in source.state_dict().items()}
    path = tmp_path / "whole.ckpt"
    torch.save({"state_dict": {**state, "model.diffusion_model.out.2.bias": torch.ones(4)}}, path)
    model = AutoencoderKL(TINY, IDENTITY, 4, ckpt_path=str(path))
    assert not changed(model, source.state_dict())


def test_images_to_look_at():
    model, batch = AutoencoderKL(TINY, IDENTITY, embed_dim=4), {"image": images(2)}
    looks = model.log_images(batch)
    assert set(looks) == {"inputs", "reconstructions", "samples"}
    assert all(image.shape == (2, 3, 16, 16) for image in looks.values())
    assert set(model.log_images(batch, only_inputs=True)) == {"inputs"}


def test_psnr_of_a_known_error():
    x = torch.zeros(2, 3, 4, 4)
    assert psnr(x, x + 0.2).item() == pytest.approx(20.0, abs=1e-4)


def test_identity_first_stage_returns_what_it_is_given():
    x = torch.randn(1, 3, 4, 4)
    stage = IdentityFirstStage(vq_interface=True)
    assert stage.encode(x) is x
    assert stage.decode(x) is x
    assert stage(x) is x
    assert stage.quantize(x)[0] is x
    assert IdentityFirstStage().quantize(x) is x


def test_missing_networks_are_named_with_the_way_to_get_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "taming", None)
    with pytest.raises(ImportError, match="pip install taming-transformers-rom1504 torchvision"):
        LPIPSWithDiscriminator(disc_start=0)


def test_inference_needs_no_networks_of_others():
    # Lightning itself loads torchvision where it is installed.
    script = (
        "import sys, pytorch_lightning; before = set(sys.modules);"
        "from ldm.models.autoencoder import AutoencoderKL;"
        f"AutoencoderKL({TINY!r}, {IDENTITY!r}, embed_dim=4);"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "sys.exit(bool(new & {'taming', 'torchvision'}))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
