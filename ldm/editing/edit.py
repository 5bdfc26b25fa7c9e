"""Change a picture by changing its prompt: prompt-to-prompt over drawn and over real pictures."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ldm.editing.align import (
    PromptTokens,
    Windows,
    changed_words,
    equalizer,
    mapper_matrix,
    read_prompt,
    refinement_mapper,
    replacement_mapper,
    replacement_windows,
    window_steps,
)
from ldm.editing.blend import LocalBlend, WordWatch
from ldm.editing.controllers import SELF_PIXELS, CrossEdit, Moved, PromptToPrompt, Reweighted
from ldm.editing.inversion import Inversion, draw, sampling_plan
from ldm.models.diffusion.sampler import start_latent
from ldm.models.diffusion.sampling import Generators
from ldm.modules.attention_control import controlling
from ldm.prompts.spans import find_words

METHODS = ("auto", "replace", "refine")
_ARTICLE_BEFORE = re.compile(r"(?<!\S)(a|an|the)\s+$", re.IGNORECASE)
_ADJECTIVE_BEFORE = re.compile(r"(?<!\S)(a|an|the)\s+\S+\s+$", re.IGNORECASE)
_ARTICLE_FIRST = re.compile(r"(a|an|the)\s+", re.IGNORECASE)


@dataclass(frozen=True)
class EditOptions:
    """How a picture is changed.

    Attributes:
        steps, scale: of DDIM sampling.
        method: ``replace`` pairs the words of both prompts, ``refine`` finds what they have in
            common, ``auto`` replaces where the prompts have equally many words.
        cross: while what share of the sampling cross-attention is taken over (a window, or one for
            each word: see `replacement_windows`).
        self_attention: the same for self-attention, which holds the layout.
        reweight: words of the target and what the attention to them is multiplied by.
        blend: keep the source wherever the changed words do not look.
        blend_words: take the masks of these words rather than of those that changed.
        threshold: share of the highest attention above which a place may change.
        blend_from: share of the sampling after which blending begins.
        resolutions: sizes of the maps that masks are made of; by default those of the model.

    Raises:
        ValueError: for a value outside its range, naming the accepted ones.
    """

    steps: int = 50
    scale: float = 5.0
    method: str = "auto"
    cross: Windows = 0.8
    self_attention: float | Sequence[float] = 0.4
    reweight: Mapping[str, float] = field(default_factory=dict)
    blend: bool = False
    blend_words: Sequence[str] = ()
    threshold: float = 0.3
    blend_from: float = 0.2
    resolutions: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r} is unknown; accepted are {METHODS}")
        if self.steps < 1:
            raise ValueError(f"{self.steps} sampling steps: at least 1 is needed")
        for name in ("threshold", "blend_from"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: give 0 or more and less than 1")


@dataclass(frozen=True)
class Edited:
    """Source and edited pictures (b, 3, H, W) in [-1, 1], their latents, and where they may differ.

    `mask` is bool (b, 1, h, w) over the latents, or ``None`` without local blend.
    """

    source: Tensor
    edited: Tensor
    source_latents: Tensor
    edited_latents: Tensor
    mask: Tensor | None = None


@torch.no_grad()
def edit(
    model: Any,
    source: str | Sequence[str],
    target: str | Sequence[str],
    options: EditOptions | None = None,
    *,
    x_T: Tensor | None = None,
    generator: Generators = None,
    inversion: Inversion | None = None,
    progress: bool = False,
) -> Edited:
    """Draw each `source` prompt, and the same picture as its `target` prompt describes it.

    Pictures start from `x_T` (b, c, h, w), from noise of `generator`, or from the `inversion` of
    real ones, of which the source is then the reconstruction. Where nothing changes (equal prompts
    and no weight but 1) the source is drawn once and is the result, bit for bit.

    Raises:
        ValueError: for prompts that cannot be paired, or an inversion that was made with other
            settings.
    """
    options = options or EditOptions()
    sources = [source] if isinstance(source, str) else list(source)
    targets = [target] * len(sources) if isinstance(target, str) else list(target)
    if len(sources) != len(targets):
        raise ValueError(f"{len(sources)} source prompts for {len(targets)} targets: give pairs")
    if inversion is not None:
        _check_inversion(inversion, sources, options)
        x_T = inversion.noise
    shape = model.latent_shape() if x_T is None else x_T.shape[1:]
    x_T = start_latent(model, (len(sources), *shape), x_T, generator)
    common: dict[str, Any] = {
        "steps": options.steps,
        "scale": options.scale,
        "nulls": () if inversion is None else inversion.nulls,
        "progress": progress,
    }
    if _nothing_changes(sources, targets, options):
        latents = draw(model, sources, x_T, **common)
        images = model.decode_first_stage(latents).clamp(-1, 1)
        return Edited(images, images.clone(), latents, latents.clone())
    controller, blend = make_controller(model, sources, targets, options, shape[-2] * shape[-1])
    with controlling(model.model.diffusion_model, controller):
        latents = draw(
            model,
            [*sources, *targets],
            torch.cat([x_T, x_T]),
            on_step=controller.begin_step,
            revise=blend,
            **common,
        )
    images = model.decode_first_stage(latents).clamp(-1, 1)
    (drawn, changed), (before, after) = images.chunk(2), latents.chunk(2)
    return Edited(drawn, changed, before, after, None if blend is None else blend.mask)


def _nothing_changes(sources: Sequence[str], targets: Sequence[str], options: EditOptions) -> bool:
    return list(sources) == list(targets) and all(f == 1 for f in options.reweight.values())


def check_edit(model: Any, source: str, target: str, options: EditOptions) -> None:
    """Raise now what `edit` would raise after a picture was inverted."""
    if not _nothing_changes([source], [target], options):
        make_controller(model, [source], [target], options)


def _check_inversion(inversion: Inversion, sources: Sequence[str], options: EditOptions) -> None:
    made = {"prompts": list(inversion.prompts), "steps": inversion.steps}
    asked = {"prompts": list(sources), "steps": options.steps}
    if inversion.nulls:
        made, asked = {**made, "scale": inversion.scale}, {**asked, "scale": options.scale}
    if made != asked:
        raise ValueError(f"the inversion was made with {made}, the edit asks for {asked}")


# From prompts to a controller --------------------------------------------------------------------


def make_controller(
    model: Any,
    sources: Sequence[str],
    targets: Sequence[str],
    options: EditOptions,
    pixels: int = 0,
) -> tuple[PromptToPrompt, LocalBlend | None]:
    """What rewrites attention for these pairs of prompts, and the local blend if one is wanted.

    Latents have so many `pixels`: their self-attention is taken over from a quarter of their sides
    down, and from 16x16 down in any case.
    """
    encoder, manager = model.cond_stage_model, model.embedding_manager
    before = [read_prompt(encoder, prompt, manager) for prompt in sources]
    after = [read_prompt(encoder, prompt, manager) for prompt in targets]
    steps = len(sampling_plan(model, options.steps))
    watch = blend = None
    if options.blend:
        watch = WordWatch(
            _blend_positions(before, after, options), options.resolutions or model.mask_resolution
        )
        blend = LocalBlend(watch, options.threshold, int(options.blend_from * steps))
    controller = PromptToPrompt(
        make_cross_edit(before, after, options),
        replacement_windows(after, steps, options.cross),
        window_steps(options.self_attention, steps),
        self_pixels=max(SELF_PIXELS, pixels // 16),
        watch=watch,
    )
    return controller, blend


def make_cross_edit(
    sources: Sequence[PromptTokens], targets: Sequence[PromptTokens], options: EditOptions
) -> CrossEdit:
    """The edit of the cross-attention of these pairs."""
    mappers, kept = [], []
    for source, target in zip(sources, targets, strict=True):
        equally_long = len(source.words) == len(target.words)
        if options.method == "replace" or (options.method == "auto" and equally_long):
            mappers.append(replacement_mapper(source, target))
            kept.append(torch.ones(target.size))
        else:
            mapper, has_source = refinement_mapper(source, target)
            mappers.append(mapper_matrix(mapper))
            kept.append(has_source)
    moved = Moved(torch.stack(mappers), torch.stack(kept)[:, None, None])
    if not options.reweight:
        return moved
    factors = torch.stack([equalizer(target, options.reweight) for target in targets])
    return Reweighted(factors[:, None, None], moved)


def _blend_positions(
    sources: Sequence[PromptTokens], targets: Sequence[PromptTokens], options: EditOptions
) -> list[list[int]]:
    """The tokens whose attention makes the mask: of every source row, then of every target row."""
    rows: list[tuple[list[int], list[int]]] = []
    for pair in zip(sources, targets, strict=True):
        if options.blend_words:
            places = [_places(prompt, options.blend_words) for prompt in pair]
        else:
            places = list(changed_words(*pair))
            places[1] = sorted({*places[1], *_places(pair[1], options.reweight)})
        if not any(places):
            raise ValueError(
                f"nothing to blend by: none of {list(options.blend_words) or 'the words'} differs "
                f"between, or is in, {pair[0].text!r} and {pair[1].text!r}; name blend_words that "
                "one of them has, or switch the blend off"
            )
        rows.append((places[0], places[1]))
    return [row[0] for row in rows] + [row[1] for row in rows]


def _places(prompt: PromptTokens, words: Sequence[str] | Mapping[str, float]) -> list[int]:
    return sorted({at for word in words for at in prompt.positions(word)})


def replace_word(prompt: str, word: str, text: str) -> str:
    """`prompt` with every `word` replaced by `text`, which may bring its own article.

    It takes the place of the article before the word; where an adjective stands in between, the
    article before that stays.

    Raises:
        ValueError: when the prompt does not have the word, or `text` is empty.
    """
    spans = find_words(prompt, [word])
    if not spans:
        raise ValueError(f"the word {word!r} to be replaced is not in the prompt {prompt!r}")
    if not text.strip():
        raise ValueError(f"nothing is given to put in the place of {word!r}")
    article = _ARTICLE_FIRST.match(text)
    for span in reversed(spans):
        head, put = prompt[: span.start], text
        if article and _ADJECTIVE_BEFORE.search(head):
            put = text[article.end() :]
        elif article:
            head = _ARTICLE_BEFORE.sub("", head)
        prompt = head + put + prompt[span.end :]
    return prompt
