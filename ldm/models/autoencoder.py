"""The first stage: images to latents and back (latent diffusion, section 3.1).

Public names: ``AutoencoderKL``, ``VQModel``, ``VQModelInterface`` and ``IdentityFirstStage``. With
the loss ``torch.nn.Identity`` an autoencoder encodes and decodes only. It trains with one
optimizer, or with two if its loss brings a discriminator.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.checkpoint import load_with_report, read_state_dict
from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.ema import LitEma
from ldm.modules.vector_quantizer import VectorQuantizer
from ldm.util import instantiate_from_config

#: What a file has to have to be a first stage.
CORE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
#: Where the weights of a first stage are within those of a whole model.
INSIDE = "first_stage_model."


class FirstStage(pl.LightningModule):
    """What the autoencoders share: input, optimisation, averaged weights and images to look at.

    A subclass encodes and decodes; its ``forward`` returns a reconstruction and what the loss wants
    to know of the latent. `monitor` is the logged value that decides which checkpoint is best.
    `scheduler_config` describes an object whose ``schedule(step)`` is multiplied with the learning
    rate. With `ema_decay`, an average of the weights is kept and used for validation.
    """

    #: Set by whoever trains, from ``base_learning_rate``.
    learning_rate = 4.5e-6
    #: How many batches make a step if there is a discriminator; Lightning sees to it otherwise.
    accumulate_grad_batches = 1
    #: How much faster than the discriminator the autoencoder learns.
    lr_g_factor = 1.0
    #: Between the networks' channels and the latent's.
    quant_conv: nn.Conv2d
    post_quant_conv: nn.Conv2d
    #: The random colours of label maps, where there are some.
    colorize: Tensor

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        image_key: str,
        colorize_nlabels: int | None,
        monitor: str | None,
        scheduler_config: Mapping[str, Any] | None,
    ) -> None:
        super().__init__()
        self.image_key, self.scheduler_config = image_key, scheduler_config
        if monitor is not None:
            self.monitor = monitor
        self.encoder, self.decoder = Encoder(**ddconfig), Decoder(**ddconfig)
        self.loss = instantiate_from_config(lossconfig)
        # The published VQ loss says nothing of itself but has a discriminator.
        self.adversarial = getattr(self.loss, "adversarial", hasattr(self.loss, "discriminator"))
        self.automatic_optimization = not self.adversarial
        self.model_ema: LitEma | None = None
        if colorize_nlabels is not None:
            self.register_buffer("colorize", torch.randn(3, colorize_nlabels, 1, 1))

    def _finish(
        self, ema_decay: float | None, ckpt_path: str | None, ignore_keys: Sequence[str]
    ) -> None:
        """What can only follow once all weights exist: their average, and values from a file."""
        if ema_decay is not None:
            self.model_ema = LitEma(self, decay=ema_decay)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys)

    def init_from_ckpt(self, path: str, ignore_keys: Sequence[str] = ()) -> None:
        """Load weights from file `path`, but none whose name begins with one of `ignore_keys`.

        The file may be of a whole latent diffusion model; then its first stage is taken.
        """
        state = read_state_dict(path)
        inner = {k.removeprefix(INSIDE): v for k, v in state.items() if k.startswith(INSIDE)}
        load_with_report(self, inner or state, ignore=ignore_keys, core=CORE, source=path)

    def loss_arguments(self, inputs: Tensor, reconstructions: Tensor, latent: Any) -> tuple:
        """What the loss is given, in its order."""
        raise NotImplementedError

    def autoencoder_parameters(self) -> Iterator[nn.Parameter]:
        """All weights but those of the loss."""
        return chain(
            self.encoder.parameters(),
            self.decoder.parameters(),
            self.quant_conv.parameters(),
            self.post_quant_conv.parameters(),
        )

    def get_last_layer(self) -> Tensor:
        """The weights that make the image, by which losses are balanced."""
        return self.decoder.conv_out.weight

    def get_input(self, batch: Mapping[str, Any], key: str) -> Tensor:
        """The images of a batch: (b,h,w,c) or (b,h,w) -> (b,c,h,w), channels last in memory."""
        images = batch[key]
        images = images if images.ndim == 4 else images[..., None]
        return rearrange(images, "b h w c -> b c h w").float()

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor | None:
        """One step of the autoencoder, and of the discriminator if there is one.

        The last batches of an epoch make a step of their own, however few they are.
        """
        inputs = self.get_input(batch, self.image_key)
        output = self(inputs)
        if not self.adversarial:
            return self._logged_loss(inputs, output, "train")
        accumulate = self.accumulate_grad_batches
        update = (batch_idx + 1) % accumulate == 0 or self.trainer.is_last_batch
        for turn, optimizer in enumerate(self.optimizers()):
            with optimizer.toggle_model(sync_grad=update):
                loss = self._logged_loss(inputs, output, "train", turn)
                self.manual_backward(loss / accumulate)
                if update:
                    optimizer.step()
                    optimizer.zero_grad()
        if update and self.scheduler_config is not None:
            for scheduler in cast(list[Any], self.lr_schedulers()):
                scheduler.step()
        return None

    def on_train_batch_end(self, *_: Any) -> None:
        """Move the averaged weights along."""
        if self.model_ema is not None:
            self.model_ema(self)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log the losses and the quality in decibels, of the averaged weights if they are kept."""
        inputs = self.get_input(batch, self.image_key)
        with self.ema_scope():
            output = self(inputs)
            for turn in range(1 + self.adversarial):
                self._logged_loss(inputs, output, "val", turn)
        self.log("val/psnr", psnr(inputs, output[0]), batch_size=len(inputs), prog_bar=True)

    def _logged_loss(
        self, inputs: Tensor, output: tuple[Tensor, Any], split: str, turn: int = 0
    ) -> Tensor:
        """The loss of the autoencoder (turn 0) or discriminator (turn 1); its parts are logged."""
        arguments = self.loss_arguments(inputs, *output)
        if self.adversarial:
            # Lightning counts a step for each of the two optimizers.
            arguments += (turn, self.global_step // 2, self.get_last_layer())
        loss, log = self.loss(*arguments, split=split)
        self.log_dict(log, batch_size=len(inputs))
        return loss

    def configure_optimizers(self) -> Any:
        """Adam for the autoencoder, and another for the discriminator if there is one.

        Raises:
            ValueError: when the loss is ``torch.nn.Identity``, which trains nothing.
        """
        if isinstance(self.loss, nn.Identity):
            raise ValueError(
                "an autoencoder with the loss torch.nn.Identity cannot be trained; give lossconfig "
                "a target such as ldm.modules.losses.ReconstructionLoss"
            )
        betas = (0.5, 0.9) if self.adversarial else (0.9, 0.99)
        rate = self.learning_rate * self.lr_g_factor
        optimizers = [torch.optim.Adam(self.autoencoder_parameters(), lr=rate, betas=betas)]
        if self.adversarial:
            judge = self.loss.discriminator.parameters()
            optimizers.append(torch.optim.Adam(judge, lr=self.learning_rate, betas=betas))
        if self.scheduler_config is None:
            return optimizers
        schedule = instantiate_from_config(self.scheduler_config).schedule
        schedulers = [torch.optim.lr_scheduler.LambdaLR(each, schedule) for each in optimizers]
        return optimizers, [{"scheduler": each, "interval": "step"} for each in schedulers]

    def ema_scope(self) -> AbstractContextManager[None]:
        """Use the averaged weights within the block, if they are kept."""
        return nullcontext() if self.model_ema is None else self.model_ema.scope(self)

    @torch.no_grad()
    def log_images(
        self,
        batch: Mapping[str, Any],
        only_inputs: bool = False,
        **_: Any,
    ) -> dict[str, Tensor]:
        """Images (b,3,h,w) to look at: inputs and, unless `only_inputs`, their reconstructions."""
        inputs = self.get_input(batch, self.image_key).to(self.device)
        images = {"inputs": inputs}
        if not only_inputs:
            with self.ema_scope():
                images.update(self._look(inputs))
        return {name: self.to_rgb(image) for name, image in images.items()}

    def _look(self, inputs: Tensor) -> dict[str, Tensor]:
        """What the model makes of `inputs`."""
        return {"reconstructions": self(inputs)[0]}

    def to_rgb(self, x: Tensor) -> Tensor:
        """An image to look at: label maps get random colours, anything else stays as it is."""
        if not hasattr(self, "colorize") or x.shape[1] <= 3:
            return x
        x = F.conv2d(x, self.colorize)
        return 2.0 * (x - x.min()) / (x.max() - x.min()) - 1.0


class AutoencoderKL(FirstStage):
    """The first stage with a continuous latent: every image becomes a Gaussian.

    The latent has `embed_dim` channels; see :class:`FirstStage` for the other arguments.
    """

    def __init__(  # noqa: PLR0913 (public keywords)
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        embed_dim: int,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        colorize_nlabels: int | None = None,
        monitor: str | None = None,
        *,
        scheduler_config: Mapping[str, Any] | None = None,
        ema_decay: float | None = None,
        train_encoder: bool = True,
    ) -> None:
        super().__init__(
            ddconfig, lossconfig, image_key, colorize_nlabels, monitor, scheduler_config
        )
        if not ddconfig.get("double_z", True):
            raise ValueError("AutoencoderKL needs a mean and a log-variance: set double_z to true")
        z_channels = ddconfig["z_channels"]
        self.embed_dim = embed_dim
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self._finish(ema_decay, ckpt_path, ignore_keys)
        if not train_encoder:
            self.encoder.requires_grad_(False)
            self.quant_conv.requires_grad_(False)

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        """The Gaussian of image `x` (b,c,H,W), over latents (b,embed_dim,h,w)."""
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """The image (b,c,H,W) of latent `z` (b,embed_dim,h,w)."""
        return self.decoder(self.post_quant_conv(z))

    def forward(
        self, input: Tensor, sample_posterior: bool = True
    ) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """A reconstruction of image `input` from a sample, or from the mode, and the Gaussian."""
        posterior = self.encode(input)
        return self.decode(posterior.sample() if sample_posterior else posterior.mode()), posterior

    def loss_arguments(self, inputs: Tensor, reconstructions: Tensor, latent: Any) -> tuple:
        """Inputs, reconstructions, Gaussian."""
        return inputs, reconstructions, latent

    def _look(self, inputs: Tensor) -> dict[str, Tensor]:
        """Reconstructions, and images of latents drawn from the standard normal."""
        reconstructions, posterior = self(inputs)
        samples = self.decode(torch.randn_like(posterior.mode()))
        return {"samples": samples, "reconstructions": reconstructions}


class VQModel(FirstStage):
    """The first stage with a discrete latent: every latent pixel is one of `n_embed` codes.

    `use_ema` keeps an average of the weights as `ema_decay` does, with the usual decay.
    """

    def __init__(  # noqa: PLR0913, PLR0917 (public keywords)
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        n_embed: int,
        embed_dim: int,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        colorize_nlabels: int | None = None,
        monitor: str | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        lr_g_factor: float = 1.0,
        sane_index_shape: bool = False,
        use_ema: bool = False,
        *,
        ema_decay: float | None = None,
    ) -> None:
        super().__init__(
            ddconfig, lossconfig, image_key, colorize_nlabels, monitor, scheduler_config
        )
        self.n_embed, self.embed_dim, self.lr_g_factor = n_embed, embed_dim, lr_g_factor
        self.quantize = VectorQuantizer(n_embed, embed_dim, sane_index_shape=sane_index_shape)
        self.quant_conv = nn.Conv2d(ddconfig["z_channels"], embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], 1)
        self._finish(0.9999 if use_ema and ema_decay is None else ema_decay, ckpt_path, ignore_keys)

    def autoencoder_parameters(self) -> Iterator[nn.Parameter]:
        """All weights but those of the loss, the codes included."""
        return chain(super().autoencoder_parameters(), self.quantize.parameters())

    def encode_to_prequant(self, x: Tensor) -> Tensor:
        """The latent (b,embed_dim,h,w) of image `x` (b,c,H,W) before it becomes codes."""
        return self.quant_conv(self.encoder(x))

    def encode(self, x: Tensor) -> Any:
        """The codes (b,embed_dim,h,w) of image `x`, the codebook loss, the indices in a triple."""
        return self.quantize(self.encode_to_prequant(x))

    def decode(self, quant: Tensor) -> Tensor:
        """The image (b,c,H,W) of the codes `quant` (b,embed_dim,h,w)."""
        return self.decoder(self.post_quant_conv(quant))

    def decode_code(self, code_b: Tensor) -> Tensor:
        """The image (b,c,H,W) of the code indices `code_b` (b,h,w)."""
        return VQModel.decode(self, self.quantize.get_codebook_entry(code_b))

    def forward(self, input: Tensor, return_pred_indices: bool = False) -> tuple[Tensor, ...]:
        """A reconstruction of image `input`, the codebook loss and, if wanted, the indices."""
        quant, codebook_loss, (_, _, indices) = VQModel.encode(self, input)
        reconstruction = VQModel.decode(self, quant)
        if return_pred_indices:
            return reconstruction, codebook_loss, indices
        return reconstruction, codebook_loss

    def loss_arguments(self, inputs: Tensor, reconstructions: Tensor, latent: Any) -> tuple:
        """Codebook loss, inputs, reconstructions."""
        return latent, inputs, reconstructions


class VQModelInterface(VQModel):
    """A VQ first stage whose latent is taken before quantisation, as diffusion models use it."""

    def __init__(self, embed_dim: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, embed_dim=embed_dim, **kwargs)  # type: ignore[misc]

    def encode(self, x: Tensor) -> Tensor:
        """The latent (b,embed_dim,h,w) of image `x` before it becomes codes."""
        return self.encode_to_prequant(x)

    def decode(self, h: Tensor, force_not_quantize: bool = False) -> Tensor:
        """The image (b,c,H,W) of latent `h`, quantised first unless `force_not_quantize`."""
        return super().decode(h if force_not_quantize else self.quantize(h)[0])


class IdentityFirstStage(nn.Module):
    """No first stage: diffusion in pixels."""

    def __init__(self, *_: Any, vq_interface: bool = False, **__: Any) -> None:
        super().__init__()
        self.vq_interface = vq_interface

    def encode(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """`x` itself."""
        return x

    def decode(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """`x` itself."""
        return x

    def quantize(self, x: Tensor, *_: Any, **__: Any) -> Any:
        """`x` itself, in the form a quantiser answers if `vq_interface`."""
        return (x, None, (None, None, None)) if self.vq_interface else x

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """`x` itself."""
        return x


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """The mean peak signal-to-noise ratio, in decibels, of reconstructed `images` in [-1,1]."""
    error = (images - reconstructions.clamp(-1.0, 1.0)).float().square().flatten(1).mean(1)
    return 10.0 * torch.log10(4.0 / error.clamp_min(1e-10)).mean()
