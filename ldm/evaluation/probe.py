"""One fixed look at what the words have become: the evaluation loss, and where each word looks.

The training loss of a step is nearly all noise: it depends on the timesteps, the noise and the
templates of that step. Here all of these are fixed, so that two looks differ by the words alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.concepts.objective import TrainStep
from ldm.concepts.recorder import WordAttention
from ldm.evaluation.localisation import SHARES
from ldm.models.diffusion.draws import noise_at_level
from ldm.modules.attention_control import controlling


@dataclass(frozen=True)
class Look:
    """What a probe saw: `loss`, the mean diffusion loss, and each word's attention (b, m, n).

    A word's map is the mean over the noise levels, zero in pictures whose captions lack the word.
    """

    loss: float
    maps: dict[str, Tensor]


class Probe:
    """Pictures of a training set at fixed timesteps, noise and captions, not flipped.

    Each of the noise levels `shares` (of the schedule) is one forward pass over the first `images`
    pictures, in a template and with noise of its own. The network runs in evaluation mode without
    gradient, and nothing random is drawn from the global generators.

    Attributes:
        pictures: the pictures (b, 3, h, w) in [-1, 1].
        truths: for each picture the true mask of every word, if the data has them.
    """

    def __init__(
        self,
        model: Any,
        dataset: Any,
        *,
        images: int = 8,
        shares: Sequence[float] = SHARES,
        seed: int = 0,
    ) -> None:
        if images < 1:
            raise ValueError(f"a probe needs at least 1 picture, got images={images}")
        self.model, self.dataset, self.shares, self.seed = model, dataset, tuple(shares), seed
        self.resolutions: Sequence[int] = model.mask_resolution
        count = min(images, dataset.num_images)
        # The picture as it is where the dataset shows it so, else flipped: what comes first.
        shown: dict[int, tuple[bool, Any]] = {}
        for image_id, flipped, array in takewhile(lambda e: e[0] < count, dataset.images()):
            shown.setdefault(image_id, (flipped, array))
        arrays = [torch.from_numpy(array.copy()) for _, array in shown.values()]
        self.pictures = torch.stack(arrays).movedim(-1, 1).contiguous()
        flip = any(flipped for flipped, _ in shown.values())
        masks = None if flip else getattr(dataset, "masks", None)
        self.truths: list[Mapping[str, np.ndarray]] = [masks(i) for i in shown] if masks else []
        self._latents: Tensor | None = None

    @property
    def sentences(self) -> list[str]:
        """What each picture shows, without a template."""
        return [self.dataset.sentence_of(i).caption.text for i in range(len(self.pictures))]

    @property
    def words(self) -> list[str]:
        """The learnable words that the pictures' sentences contain, in the order of the words."""
        captions = [self.dataset.sentence_of(i).caption for i in range(len(self.pictures))]
        shown = {name for caption in captions for name in caption.names()}
        learnable = self.model.embedding_manager.learnable
        return [word.name for word in learnable if word.name in shown]

    @torch.no_grad()
    def __call__(self) -> Look:
        """Look now."""
        model, training = self.model, self.model.training
        model.eval()
        try:
            passes = [self._pass(number) for number in range(len(self.shares))]
        finally:
            model.train(training)
        losses, stacks = zip(*passes, strict=True)
        # One transfer at the end: nothing waits for the device in between.
        loss = torch.stack(losses).mean().item()
        maps = torch.stack(stacks).mean(0).cpu() if stacks[0] is not None else None
        found = {} if maps is None else {word: maps[:, k] for k, word in enumerate(self.words)}
        return Look(loss, found)

    def _pass(self, number: int) -> tuple[Tensor, Tensor | None]:
        """The loss at one noise level, and the words' maps (b, words, m, n)."""
        model, latents = self.model, self._encoded()
        captions = [self.dataset.caption_of(i, number) for i in range(len(latents))]
        words = model.embedding_manager.words
        tokens = model.cond_stage_model.tokenize(captions, words)
        context = model.cond_stage_model.encode_tokens(
            tokens.ids.to(latents.device), model.embedding_manager
        )
        recorder = WordAttention(tokens, self.resolutions, self.words)
        step = min(int(self.shares[number] * model.num_timesteps), model.num_timesteps - 1)
        t = torch.full((len(latents),), step, device=latents.device)
        noise = noise_at_level(latents, self.seed, number)
        with controlling(model.model.diffusion_model, recorder):
            prediction = model.apply_model(model.q_sample(latents, t, noise), t, context)
        if not recorder.sums and recorder.passed:
            # No layer has the size that the model's masks are made from: then all of them.
            self.resolutions = sorted({max(grid) for grid in recorder.passed})
            return self._pass(number)
        schedule = model.schedule
        target = schedule.target(model.parameterization, latents, noise, t)
        seen = TrainStep(prediction, target, t, schedule)
        loss = model.denoising_term().per_image(seen).mean()
        return loss, recorder.maps() if recorder.sums else None

    def _encoded(self) -> Tensor:
        """The pictures' latents: the modes of their posteriors, each encoded alone."""
        model = self.model
        if self._latents is None or self._latents.device != model.device:
            self._latents = torch.cat([model.encode_images(image[None]) for image in self.pictures])
        return self._latents
