"""Attend-and-Excite (Chefer et al. 2023): no word of the prompt is left without a place.

Before a step of the early sampling, the latent is moved so that the chosen word that is looked at
least is looked at more. The network is not changed and nothing is learned.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.concepts.recorder import WordAttention, named_positions, to_device
from ldm.models.diffusion.sampler import Sampler
from ldm.models.diffusion.sampling import Condition, Guide, Jump, Rule
from ldm.modules.attention import AttentionSite, Grid
from ldm.modules.attention_control import controlling


@dataclass(frozen=True)
class ExciteOptions:
    """How hard the chosen words are pushed.

    Attributes:
        words: the words that must be seen, learned or plain, as the prompt spells them.
        step_sizes: how far the latent moves along the gradient in the first step of the sampling,
            and in the last one; their squares fall linearly in between.
        until: share of the sampling after which the latent is left alone.
        thresholds: share of the sampling -> the sharpened attention that every word must have
            reached there, if need be by several moves (iterative refinement).
        rounds: at most how many moves such a refinement takes.
        resolutions: sizes of the maps that are read; by default those of the model.
        sigma: of the Gaussian (3x3) that maps are smoothed by, in their pixels; 0 for none.

    Raises:
        ValueError: for a value outside its range.
    """

    words: Sequence[str]
    step_sizes: tuple[float, float] = (20.0, 200**0.5)
    until: float = 0.5
    thresholds: Mapping[float, float] = field(
        default_factory=lambda: {0.0: 0.05, 0.2: 0.5, 0.4: 0.8}
    )
    rounds: int = 20
    resolutions: Sequence[int] | None = None
    sigma: float = 0.5

    def __post_init__(self) -> None:
        shares = {"until": self.until, **{f"thresholds at {k}": k for k in self.thresholds}}
        shares |= {f"the threshold at {k}": v for k, v in self.thresholds.items()}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: {share} is no share; give 0 to 1")
        for name, value in (("rounds", self.rounds), ("sigma", self.sigma)):
            if value < 0:
                raise ValueError(f"{name} {value}: give 0 or more")


#: What attention is multiplied by before the second softmax, as published.
SHARPNESS = 100.0


class ExcitedAttention(WordAttention):
    """The sharpened attention of words, with its gradient.

    All tokens are kept, because the mean over heads, layers and sizes goes through a second softmax
    over those between the first and the last position of the text.
    """

    differentiable = True

    def observe(
        self, q: Tensor, k: Tensor, scale: float, site: AttentionSite | None, grid: Grid | None
    ) -> None:
        """Add one layer's maps; q (b, heads, pixels, d), k (b, heads, tokens, d)."""
        self._add(q, k, scale, grid)

    def _kept(self, probabilities: Tensor) -> Tensor:
        """All tokens: (b, tokens, pixels)."""
        return probabilities.transpose(1, 2)

    def sharpened(self) -> Tensor:
        """The maps of the words (b, words, h, w), in which words compete for every pixel.

        Raises:
            ValueError: as `maps`.
        """
        probabilities = self.maps(equal_peaks=False)
        competing = (SHARPNESS * probabilities[:, 1:-1]).softmax(1)
        everywhere = F.pad(competing, (0, 0, 0, 0, 1, 1)).flatten(2).transpose(1, 2)
        return self._of_words(everywhere).unflatten(2, probabilities.shape[2:])


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Maps (b, words, h, w) under a Gaussian of 3x3 pixels; edges are mirrored."""
    if sigma == 0:
        return maps
    line = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / (2 * sigma**2))
    kernel = torch.outer(line, line).to(maps)
    kernel = (kernel / kernel.sum()).expand(maps.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(maps, (1, 1, 1, 1), "reflect"), kernel, groups=maps.shape[1])


def neglect(maps: Tensor, present: Tensor, sigma: float = 0.5) -> Tensor:
    """How far the most neglected word of each picture is from being seen (b,): eq. 1.

    ``max over words of 1 - max of its smoothed map``, of maps (b, words, h, w); words that are not
    `present` (b, words) do not count.
    """
    missing = 1 - smooth(maps, sigma).amax((-2, -1))
    return missing.masked_fill(~present, 0).amax(1)


class Excitement:
    """Moves latents towards attention for the chosen words.

    Raises:
        ValueError: when a prompt has none of the words.
    """

    def __init__(self, model: Any, prompts: Sequence[str], options: ExciteOptions) -> None:
        self.model, self.options = model, options
        manager = model.embedding_manager
        tokens = model.cond_stage_model.tokenize(list(prompts), manager.words if manager else {})
        self.positions = named_positions(tokens, list(prompts), options.words)
        for prompt, row in zip(prompts, self.positions, strict=True):
            if absent := [word for word in options.words if word not in row]:
                raise ValueError(
                    f"the words {absent} to be attended to are not in the prompt {prompt!r}: "
                    "name words as it spells them"
                )

    def slope(self, cond: Condition, x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """The `neglect` of latents x (b, c, h, w) at timestep t, (b,), and its gradient there."""
        sizes = self.options.resolutions or self.model.mask_resolution
        recorder = ExcitedAttention(self.positions, sizes, list(self.options.words))
        times = torch.full((len(x),), t, dtype=torch.long, device=x.device)
        with torch.enable_grad(), controlling(self.model.model.diffusion_model, recorder):
            x = x.detach().requires_grad_(True)
            self.model.apply_model(x, times, cond)
            loss = neglect(
                recorder.sharpened(), to_device(recorder.present, x.device), self.options.sigma
            )
            (gradient,) = torch.autograd.grad(loss.sum(), [x])
        return loss.detach(), gradient

    def __call__(self, cond: Condition, x: Tensor, jump: Jump, steps: int) -> Tensor:
        """The latents (b, c, h, w) to make `jump` from, of a sampling in `steps` steps."""
        options, share = self.options, jump.index / max(steps - 1, 1)
        first, last = options.step_sizes
        size = (first**2 + (last**2 - first**2) * share) ** 0.5
        if not options.words or size == 0 or jump.index >= options.until * steps:
            return x
        wanted = {int(at * steps): value for at, value in options.thresholds.items()}
        rounds = options.rounds if jump.index in wanted else 0
        for _ in range(rounds):
            loss, gradient = self.slope(cond, x, jump.t)
            short = loss > 1 - wanted[jump.index]
            if not short.any():
                break
            x = x - size * gradient * short[:, None, None, None]
        return x - size * self.slope(cond, x, jump.t)[1]


class ExcitedSampler(Sampler):
    """Another sampler, of which every step begins where `Excitement` moves the latent."""

    def __init__(self, sampler: Sampler, prompts: Sequence[str], options: ExciteOptions) -> None:
        super().__init__(sampler.model)
        self.sampler = sampler
        self.discretize, self.deterministic = sampler.discretize, sampler.deterministic
        self.excitement = Excitement(sampler.model, prompts, options)

    def rule(self) -> Rule:
        """The other sampler's jump, from the moved latent."""
        jump_from, steps = self.sampler.rule(), self.steps

        def rule(
            guide: Guide, x: Tensor, jump: Jump, noise: Callable[[], Tensor]
        ) -> tuple[Tensor, Tensor]:
            return jump_from(guide, self.excitement(guide.cond, x, jump, steps), jump, noise)

        return rule
