"""Fast samplers against one that takes its time, and how much of a picture inversion loses."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.data.playroom import SceneSpec
from ldm.editing.inversion import ddim_inversion, null_text_inversion, reconstruct
from ldm.evaluation.fidelity import fidelity
from ldm.evaluation.intervals import Mean
from ldm.evaluation.judge import Reading
from ldm.models.autoencoder import psnr
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.draws import noise_of
from ldm.models.diffusion.sampler import Sampler
from ldm.util import progress_bar


class Reader(Protocol):
    """What looks at pictures: the judge."""

    def read(self, images: Tensor) -> Sequence[Reading]:
        """What is in each picture (b, 3, h, w) in [-1, 1]."""


@dataclass(frozen=True)
class Setting:
    """Guidance, the seed of the first picture, and how many are drawn at once."""

    scale: float = 5.0
    seed: int = 0
    batch: int = 16


@dataclass(frozen=True)
class Drawings:
    """Latents (b, c, h, w), and the seconds that each took."""

    latents: Tensor
    seconds: float


@torch.no_grad()
def draw(
    model: Any,
    sampler: Sampler,
    prompts: Sequence[str],
    steps: int,
    setting: Setting,
    *,
    label: str | None = None,
) -> Drawings:
    """The latents of `prompts`, each from noise of its own; progress is shown under `label`."""
    shape, found, spent = model.latent_shape(), [], 0.0
    for part in progress_bar(list(batches(len(prompts), setting.batch)), label):
        texts, numbers = list(prompts[part]), range(len(prompts))[part]
        noise = torch.stack([noise_of(shape, setting.seed + number) for number in numbers])
        began = time.perf_counter()
        latents, _ = sampler.sample(
            steps,
            len(texts),
            shape,
            model.get_learned_conditioning(texts),
            x_T=noise,
            verbose=False,
            unconditional_guidance_scale=setting.scale,
            unconditional_conditioning=model.get_learned_conditioning([""] * len(texts)),
        )
        found.append(latents.cpu())
        spent += time.perf_counter() - began
    return Drawings(torch.cat(found), spent / len(prompts))


def batches(count: int, size: int) -> Iterator[slice]:
    """The slices of at most `size` that `count` things are taken in."""
    return (slice(first, first + size) for first in range(0, count, size))


@torch.no_grad()
def decoded(model: Any, latents: Tensor, batch: int = 16) -> Tensor:
    """The pictures (b, 3, h, w) in [-1, 1] of latents (b, c, h, w), on the host."""
    parts = [
        model.decode_first_stage(latents[part].to(model.device)).clamp(-1, 1).cpu()
        for part in batches(len(latents), batch)
    ]
    return torch.cat(parts)


@dataclass(frozen=True)
class SamplerFigures:
    """One sampler at one number of steps.

    `distance` is the root mean square between its latents and those of the reference, `objects` and
    `colours` the shares of pictures in which the judge sees all that was asked for, and so
    coloured.
    """

    sampler: str
    steps: int
    distance: Mean
    objects: Mean
    colours: Mean
    seconds: float


def compare_samplers(
    model: Any,
    judge: Reader,
    scenes: Sequence[tuple[str, SceneSpec]],
    samplers: Mapping[str, Callable[[Any], Sampler]],
    steps: Sequence[int] = (10, 20, 50),
    setting: Setting | None = None,
    *,
    reference: int = 1000,
    progress: bool = False,
) -> list[SamplerFigures]:
    """Every sampler at every number of steps, and first DDIM at `reference` steps.

    All begin at the same noise, so that without an error of theirs they would end at the same
    latent: that of the probability flow. `scenes` are captions and what they ask for.
    """
    setting = setting or Setting()
    captions, specs = [caption for caption, _ in scenes], [spec for _, spec in scenes]
    wanted: list[tuple[str, Callable[[Any], Sampler], int]] = [("ddim", DDIMSampler, reference)]
    wanted += [(name, make, n) for name, make in samplers.items() for n in steps]
    figures, goal = [], None
    for name, make, number in wanted:
        label = f"{name} {number}" if progress else None
        drawn = draw(model, make(model), captions, number, setting, label=label)
        goal = drawn.latents if goal is None else goal
        gaps = (drawn.latents - goal).square().flatten(1).mean(1).sqrt()
        seen = judge.read(decoded(model, drawn.latents, setting.batch))
        right = [fidelity(spec, reading) for spec, reading in zip(specs, seen, strict=True)]
        objects = Mean.share(one.objects for one in right)
        colours = Mean.share(one.colours for one in right)
        distance = Mean.of(gaps.tolist())
        figures.append(SamplerFigures(name, number, distance, objects, colours, drawn.seconds))
    return figures


def measure_inversion(
    model: Any,
    images: Tensor,
    prompts: Sequence[str],
    *,
    steps: int = 50,
    scale: float = 5.0,
    rounds: int = 10,
    batch: int = 8,
    progress: bool = False,
) -> dict[str, dict[str, Mean]]:
    """How well pictures (b, 3, h, w) in [-1, 1] come back: way -> {psnr, latent error}.

    The first row is the first stage alone, which no inversion can beat; the others are measured
    against the picture too. Latent errors are root mean squares.
    """
    found: dict[str, dict[str, list[float]]] = {}
    parts = list(batches(len(images), batch))
    for part in progress_bar(parts, "inversion" if progress else None):
        pictures, texts = images[part], list(prompts[part])
        latents = model.encode_images(pictures)
        plain = ddim_inversion(model, latents, texts, steps)
        exact = ddim_inversion(model, latents, texts, steps, rounds=rounds)
        fitted = null_text_inversion(model, latents, texts, steps, scale, rounds=rounds)
        ways = {
            "first stage only": latents,
            "DDIM, no guidance": reconstruct(model, plain, 1.0),
            f"DDIM with {rounds} fixed-point rounds, no guidance": reconstruct(model, exact, 1.0),
            f"DDIM, guidance {scale:g}": reconstruct(model, plain, scale),
            f"null-text, guidance {scale:g}": reconstruct(model, fitted),
        }
        for name, back in ways.items():
            gaps = (back - latents).square().flatten(1).mean(1).sqrt()
            shown = decoded(model, back, batch)
            ratios = [
                float(psnr(one[None], other[None]))
                for one, other in zip(pictures.cpu(), shown, strict=True)
            ]
            row = found.setdefault(name, {"psnr": [], "latent error": []})
            row["psnr"] += ratios
            row["latent error"] += gaps.tolist()
    return {
        name: {measure: Mean.of(values) for measure, values in row.items()}
        for name, row in found.items()
    }
