"""What is drawn with the learned words, during a run and at its end."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from ldm.errors import UserError
from ldm.inference import SamplingOptions, sample_latents
from ldm.prompts.sentence import CONCEPT, LearnableWord
from ldm.prompts.spans import Caption
from ldm.visual import Picture, to_uint8


@dataclass(frozen=True)
class Pictures:
    """Which pictures a run is summed up with: the part ``summary`` of a configuration.

    `prompts` are drawn with the learned words at fixed noise: ``{sentence}`` stands for the run's
    sentence, ``{word}`` for each learned noun in turn, ``{concept}`` for Lego's concept words.

    Args:
        steps: sampling steps of the pictures at the end.
        scale: classifier-free guidance.
        every: training steps between the samples over time; 0 for none.
        quick_steps: sampling steps of the samples over time.
        transfer: subjects never seen with Lego's concept, that are drawn with it.
    """

    prompts: Sequence[str] = ("{sentence}", "a photo of a {word}")
    steps: int = 25
    scale: float = 5.0
    every: int = 0
    quick_steps: int = 8
    transfer: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.every < 0 or min(self.steps, self.quick_steps) < 1:
            raise ValueError(
                f"summary: every={self.every}, steps={self.steps}, quick_steps={self.quick_steps}: "
                "numbers of steps are at least 1, and every is 0 for no samples over time"
            )

    @classmethod
    def of(cls, wanted: Any) -> "Pictures | None":
        """What the part ``summary`` asks for; ``None`` if there is no such part.

        Raises:
            UserError: for an option that there is not.
        """
        if wanted is None:
            return None
        wanted = OmegaConf.to_container(OmegaConf.create(wanted), resolve=True)
        unknown = sorted(set(wanted) - set(cls.__dataclass_fields__))
        if unknown:
            raise UserError(
                f"summary has {', '.join(unknown)}; accepted are "
                f"{', '.join(cls.__dataclass_fields__)}"
            )
        return cls(**wanted)

    def filled(self, caption: Caption, words: Sequence[LearnableWord]) -> list[str]:
        """The prompts of a run."""
        nouns = [word.name for word in words if word.role == "noun"]
        concept = concept_phrase(caption, words)
        once = [text for text in self.prompts if "{word}" not in text]
        return [
            text.format(sentence=caption.text, concept=concept)
            for text in once
            if concept or "{concept}" not in text
        ] + [text.format(word=noun) for noun in nouns for text in self.prompts if text not in once]

    def over_time(self, caption: Caption, words: Sequence[LearnableWord]) -> list[str]:
        """What is drawn again and again: the sentence, and the first nouns alone."""
        nouns = [word.name for word in words if word.role == "noun"]
        return list(dict.fromkeys([caption.text, *(f"a photo of a {noun}" for noun in nouns[:2])]))

    def transferred(
        self, caption: Caption, words: Sequence[LearnableWord]
    ) -> list[tuple[str, str, str]]:
        """Subject, prompt with the learned concept, and the same prompt in plain words, for each.

        Empty where there is no concept (see `ldm/data/subjects.py`).
        """
        concepts = [word.name for word in words if word.role == CONCEPT]
        phrase = concept_phrase(caption, words)
        subjects = [word.name for word in words if word.role == "noun"]
        found = []
        for thing in self.transfer if phrase else ():
            text = caption.text
            for subject in subjects:
                text = put(text, subject, thing)
            if text == caption.text:
                text = put("a photo of a <> that is ", "<>", thing) + phrase
            plain = text
            for name in concepts:
                plain = plain.replace(name, name.strip("<>"))
            found.append((thing, text, plain))
        return found


def concept_phrase(caption: Caption, words: Sequence[LearnableWord]) -> str:
    """The text of a caption from its first concept word to its last: "<frozen> in <ice>"."""
    names = {word.name for word in words if word.role == CONCEPT}
    spans = [span for span in caption.learnable if span.word in names]
    if not spans:
        return ""
    return caption.text[min(s.start for s in spans) : max(s.end for s in spans)]


def put(text: str, word: str, thing: str) -> str:
    """`text` with `thing` for `word`, and the article that suits it."""
    article = "an " if thing[:1].lower() in tuple("aeiou") else "a "
    return re.sub(rf"\ban? (?={re.escape(word)})", article, text).replace(word, thing)


def draw(model: Any, prompts: Sequence[str], options: SamplingOptions) -> Picture:
    """One picture (n, h, w, 3) of each prompt; picture i always starts from the same noise."""
    latents = sample_latents(model, prompts, options, progress=False)
    return to_uint8(model.decode_first_stage(latents).clamp(-1, 1).cpu())
