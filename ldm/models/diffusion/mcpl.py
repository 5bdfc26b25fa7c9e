"""MCPL: several words at once from one sentence and a few images (Multi-Concept Prompt Learning).

A preset: which terms the objective has (sec. 3.4). The strategies one, all and diverse are a matter
of the sentences (``ldm/prompts``, ``ldm/data``), so nothing here asks which of them is running.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ldm.concepts.contrastive import PromptContrast
from ldm.concepts.masks import AttentionMask
from ldm.concepts.objective import LossTerm
from ldm.concepts.quirks import ReleasedAttention, ReleasedContrast, ReleasedMask
from ldm.concepts.recorder import WordAttention, named_positions
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.attention_control import AttentionController
from ldm.prompts.sentence import LearnableWord


class MCPL(LatentDiffusion):
    """`LatentDiffusion` that learns words with AttnMask, PromptCL and Bind adj., each optional.

    Args:
        mask: parameters of `AttentionMask` (sec. 3.4, eq. 2), or ``None``.
        contrast: parameters of `PromptContrast` (eqs. 3-6), or ``None``.
        reference_quirks: the released code's PromptCL and AttnMask in place of the paper's.
        quirk_softmax_words: words of the released double softmax; without effect otherwise.
    """

    def __init__(
        self,
        *args: Any,
        mask: Mapping[str, Any] | None = None,
        contrast: Mapping[str, Any] | None = None,
        reference_quirks: bool = False,
        quirk_softmax_words: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.reference_quirks = reference_quirks
        self.quirk_softmax_words = tuple(quirk_softmax_words)
        make_mask: Callable[..., AttentionMask] = AttentionMask
        make_contrast: Callable[..., PromptContrast] = PromptContrast
        if reference_quirks:
            make_contrast = ReleasedContrast
            make_mask = partial(ReleasedMask, softmax_words=self.quirk_softmax_words)
        self.attention_mask = None if mask is None else make_mask(**mask)
        self.prompt_contrast = None if contrast is None else make_contrast(**contrast)

    def learn(self, words: Sequence[LearnableWord], **options: Any) -> None:
        """Make `words` learnable (see the base class), with masks that remember nothing."""
        super().learn(words, **options)
        if self.attention_mask is not None:
            self.attention_mask.forget()

    def terms(self) -> list[LossTerm]:
        """The paper's objective (eq. 7): masked diffusion loss plus weighted contrast."""
        denoising, *others = super().terms()
        if self.attention_mask is not None:
            denoising = self.denoising_term(self.attention_mask)
        contrast = [] if self.prompt_contrast is None else [self.prompt_contrast]
        return [denoising, *others, *contrast]

    def recorder(self, tokens: Any, captions: Sequence[Any] = (), **_: Any) -> AttentionController:
        """Records the words, the adjectives bound to them, and what else the mask is made of."""
        named = () if self.attention_mask is None else self.attention_mask.words
        positions = named_positions(tokens, captions, (*named, *self.quirk_softmax_words))
        if self.reference_quirks:
            return ReleasedAttention(positions)
        return WordAttention(positions, self.mask_resolution)

    def commit(self) -> None:
        """Let checkpoints have the attention maps of the step that has just been taken, too."""
        super().commit()
        if self.attention_mask is not None:
            self.attention_mask.commit()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the running means of the attention maps beside the words."""
        super().on_save_checkpoint(checkpoint)
        if self.attention_mask is not None:
            checkpoint["attention_mask"] = self.attention_mask.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue from the running means of the checkpoint, if it has any."""
        super().on_load_checkpoint(checkpoint)
        if self.attention_mask is not None and "attention_mask" in checkpoint:
            self.attention_mask.load_state_dict(checkpoint["attention_mask"])
