"""`LatentDiffusion`, and `DDPM` and `DiffusionWrapper` at their public path.

Diffusion in the latent space of a frozen first stage, conditioned on text. The same class trains a
model from scratch, learns words for a frozen one (textual inversion, MCPL, Lego), and samples.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ldm.concepts.anchor import EmbeddingAnchor
from ldm.concepts.objective import LossTerm
from ldm.concepts.recorder import WordAttention
from ldm.models.diffusion.base import DDPM, DiffusionWrapper
from ldm.models.diffusion.draws import Draws
from ldm.models.diffusion.optim import adamw, describe
from ldm.models.diffusion.posteriors import PosteriorCache
from ldm.models.diffusion.sampled import SampledDDPM
from ldm.modules.attention_control import AttentionController, controlling
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.prompts.sentence import LearnableWord
from ldm.util import freeze, instantiate_from_config

__all__ = ["DDPM", "DiffusionWrapper", "LatentDiffusion"]

logger = logging.getLogger(__name__)


class LatentDiffusion(SampledDDPM):
    """Text-conditional diffusion in latent space.

    Args beyond the public ones:
        first_stage_ckpt: weights of the first stage, alone or within those of a whole model.
        mask_resolution: sizes (pixels a side) of the cross-attention maps that are averaged when
            the words' attention is read.
    """

    def __init__(  # noqa: PLR0913, PLR0917 (the public signature)
        self,
        first_stage_config: Mapping[str, Any],
        cond_stage_config: Mapping[str, Any] | str,
        personalization_config: Mapping[str, Any] | None = None,
        num_timesteps_cond: int | None = None,
        cond_stage_key: str = "image",
        cond_stage_trainable: bool = False,
        concat_mode: bool = True,
        cond_stage_forward: str | None = None,
        conditioning_key: str | None = None,
        scale_factor: float = 1.0,
        scale_by_std: bool = False,
        *args: Any,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        first_stage_ckpt: str | None = None,
        mask_resolution: Sequence[int] = (16,),
        **kwargs: Any,
    ) -> None:
        if cond_stage_config == "__is_unconditional__":
            conditioning_key = None
        elif conditioning_key is None:
            conditioning_key = "concat" if concat_mode else "crossattn"
        if num_timesteps_cond not in (None, 1):
            raise ValueError(f"num_timesteps_cond {num_timesteps_cond}: only 1 is supported")
        super().__init__(*args, conditioning_key=conditioning_key, **kwargs)  # type: ignore[misc]
        self.cond_stage_key, self.cond_stage_trainable = cond_stage_key, cond_stage_trainable
        self.concat_mode, self.cond_stage_forward = concat_mode, cond_stage_forward
        self.scale_by_std, self.mask_resolution = scale_by_std, tuple(mask_resolution)
        #: Whether nothing was loaded but a first stage.
        self.from_scratch = True
        if scale_by_std:
            self.register_buffer("scale_factor", torch.tensor(float(scale_factor)))
        else:
            self.scale_factor: Any = scale_factor
        self.instantiate_first_stage(first_stage_config)
        self.instantiate_cond_stage(cond_stage_config)
        self.embedding_manager: EmbeddingManager | None = None
        self.posteriors: PosteriorCache | None = None
        if first_stage_ckpt is not None:
            self.first_stage_model.init_from_ckpt(first_stage_ckpt)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys)
        if personalization_config is not None:
            self.instantiate_embedding_manager(personalization_config, self.cond_stage_model)

    # -- parts

    def instantiate_first_stage(self, config: Mapping[str, Any]) -> None:
        """The autoencoder, frozen."""
        self.first_stage_model: Any = freeze(instantiate_from_config(config))
        logger.info("%s", describe(self.first_stage_model))

    def instantiate_cond_stage(self, config: Mapping[str, Any] | str) -> None:
        """The conditioning model: text encoder, class embedder, the first stage itself, or none."""
        if config == "__is_first_stage__":
            self.cond_stage_model = self.first_stage_model
            return
        if config == "__is_unconditional__":
            self.cond_stage_model = None
            return
        self.cond_stage_model = instantiate_from_config(config)
        if not self.cond_stage_trainable:
            freeze(self.cond_stage_model)

    def instantiate_embedding_manager(
        self, config: Mapping[str, Any], embedder: nn.Module
    ) -> EmbeddingManager:
        """The holder of the learnable words that a public ``personalization_config`` describes."""
        params = dict(config.get("params") or {})
        saved = params.pop("embedding_manager_ckpt", None)
        manager = instantiate_from_config(
            {"target": config["target"], "params": params}, embedder=embedder
        )
        if saved:
            manager.load(saved)
        self._hold(manager)
        return manager

    def learn(self, words: Sequence[LearnableWord], **options: Any) -> None:
        """Make `words` learnable and everything else fixed, as soon as the weights are loaded.

        The words start from the embeddings of their init words (Algorithms 2-4), which the loaded
        text encoder provides. `options` go to :class:`EmbeddingManager`. Nothing stays of words and
        pictures that were learned before.
        """
        self.posteriors = None
        self._hold(EmbeddingManager(self.cond_stage_model, words=words, **options))

    def twin(self) -> "LatentDiffusion":
        """A model around the same network, with terms, words and randomness of its own.

        For several independent runs of one frozen model, which has to be in memory only once.
        """
        network = [part for part in self.children() if part is not self.embedding_manager]
        return copy.deepcopy(self, {id(part): part for part in network})

    def _hold(self, manager: EmbeddingManager) -> None:
        self.embedding_manager = manager
        self._objective = None
        if not self.unfreeze_model:
            freeze(self.model)
            freeze(self.cond_stage_model)

    @property
    def learns_words(self) -> bool:
        """Whether only words are trained, the network being frozen."""
        return self.embedding_manager is not None and not self.unfreeze_model

    def train(self, mode: bool = True) -> "LatentDiffusion":
        """Training mode for what is trained; what is frozen stays in evaluation mode."""
        super().train(mode)
        self.first_stage_model.eval()
        for module in (self.model, self.cond_stage_model):
            if module is not None and not any(p.requires_grad for p in module.parameters()):
                module.eval()
        return self

    # -- first stage

    def encode_first_stage(self, x: Tensor) -> Any:
        """The posterior (or, for VQ models, the latent) of images x (b, 3, H, W)."""
        return self.first_stage_model.encode(x)

    def get_first_stage_encoding(
        self, posterior: DiagonalGaussianDistribution | Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """Scaled latents (b, c, h, w) drawn from a posterior, with `noise` if given."""
        if isinstance(posterior, Tensor):
            return self.scale_factor * posterior
        if noise is None:
            return self.scale_factor * posterior.sample()
        return self.scale_factor * (posterior.mean + posterior.std * noise)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Scaled latents (b, c, h, w) in the middle of the posteriors of images (b, 3, H, W)."""
        posterior = self.encode_first_stage(images.to(self.device))
        return self.get_first_stage_encoding(
            posterior if isinstance(posterior, Tensor) else posterior.mode()
        )

    def differentiable_decode_first_stage(self, z: Tensor, **kwargs: Any) -> Tensor:
        """Images (b, 3, H, W) in [-1, 1] of scaled latents z, with gradients."""
        return self.first_stage_model.decode(z / self.scale_factor, **kwargs)

    @torch.no_grad()
    def decode_first_stage(self, z: Tensor, **kwargs: Any) -> Tensor:
        """Images (b, 3, H, W) in [-1, 1] of scaled latents z (b, c, h, w)."""
        return self.differentiable_decode_first_stage(z, **kwargs)

    def cache_posteriors(self) -> None:
        """Encode each image (and its flip) once only; for datasets that can be enumerated."""
        self.posteriors = PosteriorCache(self.encode_first_stage)

    def latents(self, batch: Mapping[str, Any], k: str | None = None) -> tuple[Tensor, Draws]:
        """The latents of a batch (of its pictures `k`) and all that is random about them."""
        key = k or self.first_stage_key
        images = DDPM.get_input(self, batch, key)
        # Other sets, and other entries, have pictures of their own under the same numbers.
        known = self.training and key == self.first_stage_key and "image_id" in batch
        with torch.no_grad():
            if self.posteriors is not None and known:
                posterior = self.posteriors(images, batch["run"], batch["image_id"], batch["flip"])
            else:
                posterior = self.encode_first_stage(images)
        shape = posterior.shape if isinstance(posterior, Tensor) else posterior.mean.shape
        draws = self.draws(batch, shape)
        return self.get_first_stage_encoding(posterior, draws.posterior).detach(), draws

    # -- conditioning

    def get_learned_conditioning(self, c: Any) -> Any:
        """The context (b, n, d) of prompts `c`, learned words included."""
        if hasattr(self.cond_stage_model, "encode"):
            if self.embedding_manager is not None:
                return self.cond_stage_model.encode(c, embedding_manager=self.embedding_manager)
            encoded = self.cond_stage_model.encode(c)
            is_posterior = isinstance(encoded, DiagonalGaussianDistribution)
            return encoded.mode() if is_posterior else encoded
        return self.cond_stage_model(c)

    def get_input(
        self, batch: Mapping[str, Any], k: str, bs: int | None = None
    ) -> tuple[Tensor, Any]:
        """Latents of the pictures under `k` and the raw condition, of the first `bs` examples.

        A condition that is the batch itself (of classes) is left whole.
        """
        (z, _), condition = self.latents(batch, k), self._condition(batch)
        whole = condition is None or isinstance(condition, Mapping)
        return z[:bs], condition if whole else condition[:bs]

    def _condition(self, batch: Mapping[str, Any]) -> Any:
        if self.cond_stage_model is None:
            return None
        if self.cond_stage_key in ("caption", "txt", "coordinates_bbox"):
            return batch[self.cond_stage_key]
        if self.cond_stage_key == "class_label":
            return batch
        return DDPM.get_input(self, batch, self.cond_stage_key)

    def apply_model(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The network's raw output; `cond` is a tensor, a list, or the wrapper's keywords."""
        if cond is None:
            return self.model(x, t)
        if not isinstance(cond, Mapping):
            cond = cond if isinstance(cond, (list, tuple)) else [cond]
            key = "c_concat" if self.model.conditioning_key == "concat" else "c_crossattn"
            cond = {key: list(cond)}
        return self.model(x, t, **cond)

    # -- loss

    def terms(self) -> list[LossTerm]:
        """Textual inversion: the diffusion loss and, if weighted, the anchor."""
        return [self.denoising_term(), EmbeddingAnchor(self.embedding_reg_weight)]

    def recorder(self, tokens: Any, **details: Any) -> AttentionController:
        """What reads the words' attention while the network runs; `details` are the step's."""
        return WordAttention(tokens, self.mask_resolution)

    def predict(self, x: Tensor, t: Tensor, cond: Any, **details: Any) -> tuple[Tensor, Any]:
        """The network's output, with the words' attention beside it where a term reads it."""
        if not self.objective.attention_words or details.get("tokens") is None:
            return self.apply_model(x, t, cond), None
        recorder = self.recorder(**details)
        with controlling(self.model.diffusion_model, recorder):
            prediction = self.apply_model(x, t, cond)
        return prediction, recorder

    def shared_step(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of images with captions."""
        z, draws = self.latents(batch)
        condition = self._condition(batch)
        if self.cond_stage_model is None:
            return self.p_losses(z, None, draws.t, draws.noise)
        if self.embedding_manager is None:
            return self.p_losses(z, self.get_learned_conditioning(condition), draws.t, draws.noise)
        details = self.details(batch)
        context = self.cond_stage_model.encode_distinct(
            details["tokens"].ids, self.embedding_manager
        )
        return self.p_losses(z, context, draws.t, draws.noise, **details)

    def details(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What a batch tells the terms beside its pictures: the words, whose they are and where."""
        captions, manager = self._condition(batch), cast(EmbeddingManager, self.embedding_manager)
        return {
            "captions": captions,
            "tokens": self.cond_stage_model.tokenize(captions, manager.words),
            "embeddings": manager,
            "extras": {key: batch[key] for key in ("step", "mask") if key in batch},
            **{key: batch[key] for key in ("image_id", "flip", "run") if key in batch},
        }

    def p_losses(
        self, x_start: Tensor, cond: Any, t: Tensor, noise: Tensor | None = None, **details: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective for latents x_start (b, c, h, w) in context `cond` at t (b,)."""
        details.setdefault("embeddings", self.embedding_manager)
        return super().p_losses(x_start, cond, t, noise, **details)

    def forward(self, x: Tensor, c: Any = None, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of latents x with prompts `c` at random timesteps."""
        t = torch.randint(self.num_timesteps, (x.shape[0],), device=x.device)
        cond = None if c is None else self.get_learned_conditioning(c)
        return self.p_losses(x, cond, t, **kwargs)

    # -- training

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Before the first step of a run with ``scale_by_std``, make the latents' deviation one.

        Not where weights were loaded or are frozen: they belong to the scale that they have.
        """
        new = self.scale_by_std and self.from_scratch and not self.learns_words
        if not (new and self.global_step == 0 and batch_idx == 0):
            return
        self.scale_factor.fill_(1.0)
        z, _ = self.latents(batch)
        self.scale_factor.copy_(1.0 / z.flatten().std())
        logger.info("latents are scaled by %.5f", self.scale_factor.item())

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """A step of the optimizer; what was counted on the way to it counts from then on."""
        super().optimizer_step(*arguments, **options)
        self.commit()

    def commit(self) -> None:
        """Let checkpoints have what was counted in the step that has just been taken."""
        if self.embedding_manager is not None:
            self.embedding_manager.commit()

    def configure_optimizers(self) -> Any:
        """AdamW over the words alone, or what `optimizer` says over the network.

        Either has the model's `weight_decay` and, if `scheduler_config` says one, a schedule.
        A trained text encoder belongs to the network; words that are learned beside it keep AdamW.
        """
        words = self.embedding_manager
        if words is not None and self.learns_words:
            return adamw(
                list(words.embedding_parameters()),
                self.learning_rate,
                scheduler_config=self.scheduler_config,
                weight_decay=self.weight_decay,
            )
        parameters: list[Any] = list(self.model.parameters())
        if self.cond_stage_trainable and self.cond_stage_model is not None:
            parameters += list(self.cond_stage_model.parameters())
        if self.learn_logvar:
            parameters.append(self.logvar)
        return adamw(
            parameters,
            self.model_lr if words is not None else self.learning_rate,
            scheduler_config=self.scheduler_config,
            weight_decay=self.weight_decay,
            orthogonal=self.orthogonal(),
            extra_groups=[{"params": list(words.embedding_parameters()), "lr": self.learning_rate}]
            if words is not None
            else None,
        )

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Load weights, as any module; the model is then no longer one from scratch."""
        self.from_scratch = False
        return super().load_state_dict(*arguments, **options)

    @property  # type: ignore[misc]
    def strict_loading(self) -> bool:
        """A run that learns words keeps only the words in its checkpoints."""
        return not self.learns_words

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen network out of the checkpoints of a run that learns words."""
        if self.learns_words:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {
                key: value for key, value in state.items() if key.startswith("embedding_manager.")
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to continue from a checkpoint of other words, which would be left out in silence.

        Raises:
            ValueError: naming the words of both.
        """
        words = self.embedding_manager
        if words is not None and self.learns_words:
            prefix = "embedding_manager.string_to_param_dict."
            keys = [key for key in checkpoint["state_dict"] if key.startswith(prefix)]
            saved = sorted(key.removeprefix(prefix) for key in keys)
            own = sorted(words.string_to_param_dict)
            if saved != own:
                raise ValueError(
                    f"the checkpoint is of the words {saved}, this run learns {own}: continue with "
                    "the sentence of that run, or start a new run with --embedding_manager_ckpt"
                )
