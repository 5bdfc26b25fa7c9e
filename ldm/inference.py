"""Load a model with its learned words, and sample pictures from prompts."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ldm.checkpoint import load_with_report, read_state_dict
from ldm.config_files import over_backbone, read_yaml
from ldm.editing.attend_excite import ExcitedSampler, ExciteOptions
from ldm.models.diffusion.ancestral import sample_ddpm
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.models.diffusion.sampler import Sampler
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.modules.word_files import Renames, Word, read_words
from ldm.prompts.sentence import RANDOM, LearnableWord
from ldm.util import freeze, instantiate_from_config

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
#: The configuration that fits a checkpoint, by the width of its text context.
CONFIG_OF_WIDTH = {
    1280: "configs/latent-diffusion/txt2img-1p4B-eval.yaml",
    768: "configs/stable-diffusion/v1-inference.yaml",
    128: "configs/backbones/playroom.yaml",
}
SAMPLERS: dict[str, Callable[[Any], Sampler]] = {
    "ddim": DDIMSampler,
    "plms": PLMSSampler,
    "dpm": DPMSolverSampler,
}
AVERAGES = re.compile(r"model_ema\.diffusion_model")
CONTEXT_KEY = re.compile(r"model\.diffusion_model\..*\.attn2\.to_k\.weight$")


@dataclass(frozen=True)
class SamplingOptions:
    """How pictures are drawn.

    Each picture has a seed of its own, `seed` plus its number; after `fixed_code` pictures, where
    that is not 0, seeds begin again.
    Where drawing starts from a given picture, `strength` is the share of the way to pure noise that
    it goes back first.

    Raises:
        ValueError: for counts below one, an unknown sampler or a strength outside (0, 1].
    """

    sampler: str = "ddim"
    steps: int = 50
    scale: float = 5.0
    eta: float = 0.0
    height: int | None = None
    width: int | None = None
    seed: int = 42
    fixed_code: int = 0
    strength: float = 0.75

    def __post_init__(self) -> None:
        if self.sampler not in (*SAMPLERS, "ancestral"):
            raise ValueError(
                f"sampler {self.sampler!r} is unknown; accepted are {[*SAMPLERS, 'ancestral']}"
            )
        if self.steps < 1:
            raise ValueError(f"{self.steps} sampling steps: at least 1 is needed")
        if not 0 < self.strength <= 1:
            raise ValueError(
                f"strength {self.strength}: give more than 0 (the picture itself) and at most 1 "
                "(a new one)"
            )

    def seed_of(self, number: int) -> int:
        """The seed of one picture, by which it can be drawn again alone."""
        return self.seed + (number % self.fixed_code if self.fixed_code else number)


def rooted(path: str | Path) -> Path:
    """A file, looked for from the current folder and then from the project's root."""
    given = Path(path).expanduser()
    return ROOT / path if not given.exists() and (ROOT / path).exists() else given


def context_width(state: Mapping[str, Tensor]) -> int | None:
    """How wide the text context of a checkpoint's U-Net is, if it has text."""
    for key, value in state.items():
        if CONTEXT_KEY.search(key):
            return value.shape[1]
    return None


def read_model_config(path: str | Path) -> DictConfig:
    """The ``model`` part of a configuration file; of a backbone file, its model.

    Raises:
        ValueError: when there is no such file, or it is no YAML, or it describes no model or one
            without params.
    """
    path = rooted(path)
    config = over_backbone(read_yaml(path))
    if "model" not in config:
        raise ValueError(
            f"{path} describes no model: expected a top-level key 'model' or 'backbone'"
        )
    if not isinstance(config.model, DictConfig):
        raise ValueError(
            f"{path}: 'model' is {config.model!r}; expected a mapping with 'target' and 'params'"
        )
    if not isinstance(config.model.get("params"), DictConfig):
        raise ValueError(
            f"{path}: 'model' has no mapping 'params', which says what the model is made of; it "
            f"has {list(config.model)}"
        )
    if "target" not in config.model:
        config.model.target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    return config.model


def shipped_weights() -> str:
    """The weights that ship with the project, as a path from its root."""
    return str(OmegaConf.load(rooted(CONFIG_OF_WIDTH[128])).backbone.weights)


def load_model(
    weights: str | Path | None = None,
    config: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
) -> Any:
    """A frozen `LatentDiffusion` ready to sample.

    Without `weights`, the model that ships with the project; without `config`, the public
    configuration that fits the weights.

    Raises:
        ValueError: when no known configuration fits, or the weights are of another architecture.
        FileNotFoundError: when there is no such file.
    """
    if weights is None:
        weights, config = shipped_weights(), config or CONFIG_OF_WIDTH[128]
    state = read_state_dict(rooted(weights))
    if config is None:
        width = context_width(state)
        if width not in CONFIG_OF_WIDTH:
            raise ValueError(
                f"{weights}: no configuration is known for a text context {width} wide (known: "
                f"{sorted(CONFIG_OF_WIDTH)}); give one with --config"
            )
        config = CONFIG_OF_WIDTH[width]
        logger.info("%s is %d wide: using %s", weights, width, config)
    return load_model_from_config(read_model_config(config), state, source=weights, device=device)


def load_model_from_config(
    config: Any,
    state: Mapping[str, Tensor] | str | Path,
    *,
    source: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> Any:
    """Build the model of a configuration and fill it from a checkpoint or its state.

    With ``use_ema`` the network has the averaged weights, where the checkpoint holds them.

    Raises:
        ValueError: when the weights are of another architecture, or the class takes no such params.
    """
    if not isinstance(state, Mapping):
        source, state = state, read_state_dict(rooted(state))
    described: Any = OmegaConf.to_container(config.get("model", config), resolve=True)
    unused = ("personalization_config", "ckpt_path")
    params = described.get("params") or {}
    described["params"] = {name: params[name] for name in params if name not in unused}
    try:
        model = instantiate_from_config(described)
    except TypeError as error:
        raise ValueError(f"model.params do not fit {described['target']}: {error}") from error
    load_with_report(model, state, source=source or "the checkpoint")
    if getattr(model, "use_ema", False) and any(map(AVERAGES.match, state)):
        model.model_ema.copy_to(model.model)
    return freeze(model).to(device)


def load_words(
    model: Any, paths: Sequence[str | Path], renames: Renames | None = None
) -> list[str]:
    """Give `model` the words of embedding files; returns their names, after `renames`.

    Raises:
        ValueError: when a word is in two files, or is not as wide as the model's text encoder.
    """
    return put_words(model, read_words(paths, renames))


def put_words(model: Any, found: Mapping[str, Word]) -> list[str]:
    """Give `model` words that were read from files; returns their names.

    Raises:
        ValueError: when one is not as wide as the model's text encoder.
    """
    encoder = model.cond_stage_model
    for name, word in found.items():
        width = word.vectors.shape[-1]
        if width != encoder.width:
            needs = CONFIG_OF_WIDTH.get(width)
            raise ValueError(
                f"{word.source}: the word {name!r} is {width} wide, this model's text encoder "
                f"{encoder.width}" + (f"; it was learned for a model of {needs}" if needs else "")
            )
    words = [LearnableWord(name, RANDOM, len(word.vectors)) for name, word in found.items()]
    manager = EmbeddingManager(encoder, words=words)
    for name, word in found.items():
        manager.string_to_param_dict[name].data.copy_(word.vectors)
    model.embedding_manager = freeze(manager).to(model.device)
    return list(found)


def check_prompts(prompts: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a prompt with a ``<word>`` that was not loaded.

    Raises:
        ValueError: naming the word and the nearest known ones.
    """
    for prompt in prompts:
        for word in re.findall(r"<[^<>\s][^<>]*>", prompt):
            if word not in known:
                near = get_close_matches(word, known, n=3, cutoff=0.3) or list(known)
                hint = f"did you mean {', '.join(near)}?" if near else "no learned words are loaded"
                raise ValueError(
                    f"the prompt {prompt!r} has the word {word}, which is not among the learned "
                    f"words; {hint} Load a file that has it with --embedding_path"
                )


def latent_shape(model: Any, options: SamplingOptions) -> list[int]:
    """(channels, height, width) of the latents for pictures of the wanted size.

    Raises:
        ValueError: when a side is not a multiple of what the network needs.
    """
    factor = 2 ** (len(model.first_stage_model.encoder.down) - 1)
    multiple = factor * model.model.diffusion_model.shrinks_by
    sides = []
    for name, pixels in (("H", options.height), ("W", options.width)):
        if pixels is not None and (pixels < multiple or pixels % multiple):
            raise ValueError(f"--{name} {pixels}: must be a positive multiple of {multiple}")
        sides.append(pixels // factor if pixels else model.image_size)
    return [model.channels, *sides]


@torch.no_grad()
def sample_latents(
    model: Any,
    prompts: Sequence[str],
    options: SamplingOptions,
    *,
    first: int = 0,
    progress: bool = True,
    start: Tensor | None = None,
    excite: ExciteOptions | None = None,
    **sampler_options: Any,
) -> Tensor:
    """Latents (b, c, h, w), one per prompt.

    Picture number `first` + i has a random stream of its own (`SamplingOptions.seed_of`), so that
    it does not depend on how pictures are grouped into batches. `start` are clean latents (c, h, w)
    or (b, c, h, w) to begin with instead of noise, `excite` the words to be seen to (Attend-and-
    Excite). `sampler_options` go to the sampler.

    Raises:
        ValueError: for Attend-and-Excite with ancestral sampling.
    """
    shape = latent_shape(model, options) if start is None else list(start.shape[-3:])
    seeds = [options.seed_of(first + i) for i in range(len(prompts))]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    x_T = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(model.device)
    if start is not None:
        start = start.to(x_T).expand_as(x_T)
    cond = model.get_learned_conditioning(list(prompts))
    uncond = model.get_learned_conditioning([""] * len(prompts)) if options.scale != 1.0 else None
    common = {
        "generator": generators,
        "verbose": progress,
        "unconditional_guidance_scale": options.scale,
        "unconditional_conditioning": uncond,
        **sampler_options,
    }
    if options.sampler == "ancestral":
        if excite is not None:
            raise ValueError(f"Attend-and-Excite needs one of the samplers {list(SAMPLERS)}")
        return _sample_ancestral(model, cond, x_T, start, options.strength, common)
    sampler = SAMPLERS[options.sampler](model)
    if excite is not None:
        sampler = ExcitedSampler(sampler, prompts, excite)
    if start is None:
        return sampler.sample(
            options.steps, len(x_T), shape, cond, eta=options.eta, x_T=x_T, **common
        )[0]
    sampler.make_schedule(options.steps, ddim_eta=options.eta, verbose=False)
    # Where more steps are visited than asked for, the released script counts those asked for.
    back = max(1, int(options.strength * min(options.steps, sampler.steps)))
    noisy = sampler.stochastic_encode(start, back, noise=x_T)
    return sampler.decode(noisy, cond, back, **common)


def _sample_ancestral(
    model: Any,
    cond: Any,
    x_T: Tensor,
    start: Tensor | None,
    strength: float,
    common: dict[str, Any],
) -> Tensor:
    """Latents through every timestep, from noise or from `start` at the level of `strength`."""
    count = None
    if start is not None:
        count = max(1, int(strength * model.num_timesteps))
        times = torch.full((len(x_T),), count - 1, device=x_T.device)
        x_T = model.q_sample(start, times, x_T)
    return sample_ddpm(model, len(x_T), x_T.shape[1:], cond, x_T=x_T, timesteps=count, **common)[0]


def sample_images(
    model: Any,
    prompt: str,
    options: SamplingOptions,
    *,
    count: int = 4,
    batches: int = 1,
    **details: Any,
) -> Iterator[Tensor]:
    """Pictures (count, 3, H, W) in [-1, 1] of one prompt, batch by batch.

    `details` are those of `sample_latents`.
    """
    for batch in range(batches):
        latents = sample_latents(model, [prompt] * count, options, first=batch * count, **details)
        yield model.decode_first_stage(latents).clamp(-1, 1)
