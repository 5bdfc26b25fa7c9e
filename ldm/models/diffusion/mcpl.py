"""MCPL: several words at once from one sentence and a few images (Multi-Concept Prompt Learning, sec. 3).

A preset: which terms the objective has. The strategies one, all and diverse are a matter of the sentences (``ldm/prompts``,
``ldm/data``), so nothing here asks which of them is running.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ldm.concepts.contrastive import PromptContrast
from ldm.concepts.masks import AttentionMask
from ldm.concepts.objective import LossTerm
from ldm.models.diffusion.ddpm import LatentDiffusion


class MCPL(LatentDiffusion):
    """`LatentDiffusion` that learns words with AttnMask, PromptCL and Bind adj., each optional.

    Args:
        mask: parameters of `AttentionMask` (sec. 3.4, eq. 2), or ``None``.
        contrast: parameters of `PromptContrast` (eqs. 3-6), or ``None``.
        mask_resolution: sizes of the attention maps that masks are made of.
        reference_quirks: the released code's PromptCL and AttnMask in place of the paper's.
        quirk_softmax_words: words of the released double softmax; without effect otherwise.
    """

    def __init__(
        self,
        *args: Any,
        mask: Mapping[str, Any] | None = None,
        contrast: Mapping[str, Any] | None = None,
        mask_resolution: Sequence[int] = (16,),
        reference_quirks: bool = False,
        quirk_softmax_words: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.mask_resolution = tuple(mask_resolution)
        self.attention_mask = None if mask is None else AttentionMask(**mask)
        self.prompt_contrast = None if contrast is None else PromptContrast(**contrast)
        self.reference_quirks = reference_quirks
        self.quirk_softmax_words = tuple(quirk_softmax_words)

    def terms(self) -> list[LossTerm]:
        """The paper's objective (eq. 7): masked diffusion loss plus weighted contrast."""
        denoising, *others = super().terms()
        if self.attention_mask is not None:
            denoising = self.denoising_term(self.attention_mask)
        contrast = [] if self.prompt_contrast is None else [self.prompt_contrast]
        return [denoising, *others, *contrast]
