"""The words of many runs in one model, so that they are looked at and drawn in the same batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.data.playroom.objects import OBJECTS
from ldm.data.playroom.splits import is_named
from ldm.evaluation.localisation import word_maps
from ldm.evaluation.samplers import batches
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.draws import noise_of
from ldm.modules.embedding_manager import EmbeddingManager, initial_vectors
from ldm.prompts.sentence import RANDOM, LearnableWord, Sentence
from ldm.prompts.spans import Caption
from ldm.prompts.templates import fill
from ldm.util import bfloat16_products, freeze

#: Pictures that go through the network at once.
BATCH = 32
#: What the text encoder's output of a word is averaged over.
TEMPLATES = ("a photo of a {}", "a picture of a {}", "an image of one {}", "a rendering of a {}")

Vectors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Drawing:
    """A picture to draw: the number of its run, what it is to show, and the seed of its noise."""

    run: int
    caption: Caption
    seed: int


class WordBank:
    """Several runs' words in one model, each run's under names of its own.

    `vectors` holds the words (k, d) of each run. The model keeps the words until another bank is
    made.
    """

    def __init__(self, model: Any, vectors: Sequence[Vectors]) -> None:
        self.model, self.vectors = model, vectors
        named = {
            self.name(run, word): value
            for run, words in enumerate(vectors)
            for word, value in words.items()
        }
        words = [LearnableWord(name, RANDOM, len(value)) for name, value in named.items()]
        manager = EmbeddingManager(model.cond_stage_model, words=words)
        for name, value in named.items():
            manager.string_to_param_dict[name].data.copy_(value)
        model.embedding_manager = freeze(manager).to(model.device)

    @staticmethod
    def name(run: int, word: str) -> str:
        """What a run's word is called here."""
        return f"{run}:{word}"

    def caption(self, run: int, caption: str | Caption) -> Caption:
        """A caption with the words of a run; in plain text, wherever they are found."""
        told = Caption.of(caption, self.vectors[run])
        spans = tuple(replace(s, word=self.name(run, s.word)) for s in told.learnable)
        return Caption(told.text, spans)

    @torch.no_grad()
    def maps(
        self,
        run: int,
        pictures: Tensor,
        captions: Sequence[Caption],
        words: Sequence[str],
        shares: Sequence[float],
    ) -> dict[str, Tensor]:
        """The attention (b, m, n) of a run's words in pictures (b, 3, h, w) in [-1, 1].

        Every run's pictures meet the same noise, whatever else is in the bank.
        """
        model = self.model
        latents = model.encode_images(pictures)
        told = [self.caption(run, caption) for caption in captions]
        names = [self.name(run, word) for word in words]
        maps = word_maps(model, latents, told, words=names, shares=shares)
        return {word: maps[name].cpu() for word, name in zip(words, names, strict=True)}

    @torch.no_grad()
    def draw(self, wanted: Sequence[Drawing], steps: int, scale: float) -> Tensor:
        """Pictures (b, 3, h, w) in [-1, 1]: DDIM with guidance, each from its own noise.

        As few steps as tables take lose colours with DPM-Solver++, and none with DDIM. In bfloat16
        where the device has it: precise enough, and tables ask for thousands.
        """
        parts = batches(len(wanted), BATCH)
        with bfloat16_products(self.model.device):
            return torch.cat([self._drawn(wanted[part], steps, scale) for part in parts])

    def _drawn(self, wanted: Sequence[Drawing], steps: int, scale: float) -> Tensor:
        """One batch of `draw`."""
        model, shape = self.model, self.model.latent_shape()
        captions = [self.caption(one.run, one.caption) for one in wanted]
        latents, _ = DDIMSampler(model).sample(
            steps,
            len(wanted),
            shape,
            model.get_learned_conditioning(captions),
            x_T=torch.stack([noise_of(shape, one.seed) for one in wanted]).to(model.device),
            verbose=False,
            unconditional_guidance_scale=scale,
            unconditional_conditioning=model.get_learned_conditioning([""] * len(wanted)),
        )
        return model.decode_first_stage(latents).float().clamp(-1, 1).cpu()

    @torch.no_grad()
    def meaning(self, word: str, run: int | None = None) -> Tensor:
        """What the text encoder makes of a word in a few plain captions: the mean, (d,).

        A word of a run, or without `run` any known one. What all nouns of the world have in common
        is taken away: it is nearly all there is, and would make any two words alike.
        """
        return self._outputs(word, run) - self._common

    @cached_property
    def _common(self) -> Tensor:
        nouns = [name for name in OBJECTS if is_named(name)]
        return torch.stack([self._outputs(noun, None) for noun in nouns]).mean(0)

    def _outputs(self, word: str, run: int | None) -> Tensor:
        """The mean output at a word's tokens, each of length one."""
        filled = [fill(text, Caption.of(word, [word])) for text in TEMPLATES]
        captions = filled if run is None else [self.caption(run, one) for one in filled]
        encoder = self.model.cond_stage_model
        tokens = encoder.tokenize(captions, self.model.embedding_manager.words)
        outputs = self.model.get_learned_conditioning(captions)
        spans = [caption.learnable[0] for caption in filled]
        places = [tokens.at(row, span.start, span.end) for row, span in enumerate(spans)]
        pairs = zip(outputs, places, strict=True)
        return torch.stack([F.normalize(o[at].mean(0), dim=0) for o, at in pairs]).mean(0).cpu()


def first_vectors(model: Any, sentence: Sentence) -> dict[str, Tensor]:
    """The words of a sentence as they start."""
    return {word.name: initial_vectors(model.cond_stage_model, word) for word in sentence.words}
