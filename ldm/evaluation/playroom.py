"""The default model measured on its own drawn world, where the truth is exact."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.concepts.recorder import Positions, WordAttention, named_positions
from ldm.data.playroom import Scene, SceneSpec, scene
from ldm.data.playroom.dataset import to_float
from ldm.evaluation.fidelity import Fidelity, said, score
from ldm.evaluation.intervals import Mean
from ldm.evaluation.judge import Judge
from ldm.evaluation.localisation import SHARES, binary_mask, iou, record_noised
from ldm.models.autoencoder import psnr
from ldm.modules.attention_control import controlling
from ldm.modules.encoders.tokens import NOWHERE

#: Far from the seeds of training and its validation.
SEED = 77
#: What the start, end and padding tokens of a caption go by: those that are no word of it.
PADDING = "padding"
#: ``sample(captions, first, on_step)``: latents of captions, the first of which has that number.
Sample = Callable[[Sequence[str], int, Callable[[int, slice], None]], Tensor]


def fresh_scenes(
    count: int, n_objects: int, size: int = 64, *, seed: int = SEED, masks: bool = True
) -> list[Scene]:
    """Scenes of named objects that training has not drawn, captioned by their true names."""
    found = (
        scene(seed, index, size, "named", n_objects=n_objects, templates=False, masks=masks)
        for index in range(10 * count)
    )
    plain = (one for one in found if len(one.objects) == n_objects and one.spec.scan is None)
    return [one for one, _ in zip(plain, range(count), strict=False)]


def pictures(scenes: Sequence[Scene]) -> Tensor:
    """Their images, (b, 3, size, size) in [-1, 1]."""
    arrays = [torch.from_numpy(to_float(one.image)) for one in scenes]
    return torch.stack(arrays).movedim(-1, 1).contiguous()


def words_of(one: Scene) -> dict[str, str]:
    """The words of a caption that belong to one object: "noun 0", "colour 0", "adjective 1", ...

    A colour or an adjective that is said of two things is left out.
    """
    words = {f"noun {k}": thing.word for k, thing in enumerate(one.objects)}
    colours = [*(thing.colour for thing in one.objects), one.spec.ground_colour]
    adjectives = [thing.adjective for thing in one.objects]
    for kind, values in (("colour", colours), ("adjective", adjectives)):
        for k in range(len(one.objects)):
            value = values[k]
            if value is not None and values.count(value) == 1:
                words[f"{kind} {k}"] = value
    return words


def word_positions(model: Any, scenes: Sequence[Scene]) -> Positions:
    """Where the words of `words_of` stand in the captions of scenes.

    With them, as `PADDING` of each object, the tokens that are no word of the caption.
    """
    captions, words = [one.caption for one in scenes], [words_of(one) for one in scenes]
    spellings = sorted({word for row in words for word in row.values()})
    tokens = model.cond_stage_model.tokenize(captions)
    found = named_positions(tokens, captions, spellings)
    padding = [[k for k, at in enumerate(row) if at == NOWHERE] for row in tokens.offsets]
    return [
        {name: at[word] for name, word in row.items() if word in at}
        | {f"{PADDING} {k}": empty for k in range(len(one.objects))}
        for one, row, at, empty in zip(scenes, words, found, padding, strict=True)
    ]


def _recorder(positions: Positions, resolutions: Sequence[int]) -> WordAttention:
    names = sorted({name for row in positions for name in row})
    return WordAttention(positions, resolutions, names)


@dataclass(frozen=True)
class Overlap:
    """A word's attention and the mask of the thing that it is said of: their IoU, `value`.

    `kind` is that of the word, "noun", "colour" or "adjective", or `PADDING`; `thing` the thing's
    name. `share` is what the word gets of all the attention that the thing's pixels pay.
    """

    kind: str
    thing: str
    value: float
    share: float


def _overlaps(
    recorder: WordAttention,
    positions: Positions,
    scenes: Sequence[Scene],
    truths: Sequence[Mapping[int, np.ndarray]],
    threshold: float,
) -> list[Overlap]:
    """Of each word of captions of `scenes`, with its object's mask by the object's number."""
    found: list[Overlap] = []
    maps, probabilities = recorder.maps(), recorder.maps(equal_peaks=False)
    size = next((m.shape for row in truths for m in row.values()), None)
    for column, name in enumerate(recorder.words):
        kind, number = name.split()[0], int(name.split()[1])
        rows = [k for k, row in enumerate(positions) if name in row and number in truths[k]]
        if rows:
            masks = binary_mask(maps[rows, column], threshold, size).cpu()
            paid = probabilities[rows, column][:, None]
            paid = F.interpolate(paid, size, mode="bilinear")[:, 0].cpu()
            for mask, attention, k in zip(masks, paid, rows, strict=True):
                truth, tokens = truths[k][number], len(positions[k][name])
                share = tokens * float(attention[torch.from_numpy(truth)].mean())
                thing = scenes[k].objects[number].name
                found.append(Overlap(kind, thing, iou(mask, truth), share))
    return found


def by_kind(overlaps: Iterable[Overlap]) -> dict[str, Mean]:
    """Mean IoU of each kind of word."""
    return _means((each.kind, each.value) for each in overlaps if each.kind != PADDING)


def shares_by_kind(overlaps: Iterable[Overlap]) -> dict[str, Mean]:
    """What each kind of word, and padding, gets of the attention of its thing's pixels."""
    return _means((each.kind, each.share) for each in overlaps)


def by_thing(overlaps: Iterable[Overlap]) -> dict[str, Mean]:
    """Mean IoU of the nouns of each thing."""
    return _means((each.thing, each.value) for each in overlaps if each.kind == "noun")


def _means(named: Iterable[tuple[str, float]]) -> dict[str, Mean]:
    values: dict[str, list[float]] = defaultdict(list)
    for name, value in named:
        values[name].append(value)
    return {name: Mean.of(values[name]) for name in sorted(values)}


def batches(scenes: Sequence[Scene], size: int) -> Iterator[tuple[int, Sequence[Scene]]]:
    """The scenes in parts, each with the number of its first."""
    for first in range(0, len(scenes), size):
        yield first, scenes[first : first + size]


@torch.no_grad()
def localisation(
    model: Any,
    scenes: Sequence[Scene],
    resolutions: Sequence[int],
    *,
    threshold: float = 0.5,
    shares: Sequence[float] = SHARES,
    batch: int = 16,
    done: Callable[[int], object] = bool,
) -> list[Overlap]:
    """IoU of the attention of nouns, colours and other adjectives with the masks of their objects.

    Renders are encoded, noised at several levels, and the maps averaged over these, over heads and
    over the layers of `resolutions`. `done` is told how many scenes each batch had.
    """
    found: list[Overlap] = []
    for first, part in batches(scenes, batch):
        latents = model.encode_images(pictures(part))
        context = model.get_learned_conditioning([one.caption for one in part])
        positions = word_positions(model, part)
        recorder = _recorder(positions, resolutions)
        record_noised(model, latents, context, recorder, shares=shares, seed=first)
        truths = [{k: each.mask for k, each in enumerate(one.objects)} for one in part]
        found += _overlaps(recorder, positions, part, truths, threshold)
        done(len(part))
    return found


@dataclass
class Samples:
    """What was found in pictures sampled from captions.

    `fidelity`, `specs` (what was asked) and `pictures` (n,3,h,w) follow the captions; `overlaps`
    are of the words' attention while sampling with the masks that the judge sees; `seen` says of
    every noun that was looked for whether it sees the thing.
    """

    fidelity: list[Fidelity] = field(default_factory=list)
    specs: list[SceneSpec] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    seen: list[bool] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def sampled(
    model: Any,
    judge: Judge,
    scenes: Sequence[Scene],
    sample: Sample,
    resolutions: Sequence[int],
    *,
    threshold: float = 0.5,
    batch: int = 20,
    done: Callable[[int], object] = bool,
) -> Samples:
    """Sample the captions of scenes and let the judge read the pictures.

    Only what a caption says is asked for. The words' attention is recorded while sampling.
    """
    found = Samples()
    for first, part in batches(scenes, batch):
        positions = word_positions(model, part)
        recorder = _recorder(positions, resolutions)
        captions = [one.caption for one in part]
        with controlling(model.model.diffusion_model, recorder):
            latents = sample(captions, first, recorder.begin_step)
        images = model.decode_first_stage(latents).float().clamp(-1, 1).cpu()
        specs = [asked(one) for one in part]
        readings = judge.read(images)
        found.fidelity += score(judge, specs, readings, images)
        truths = []
        for spec, reading in zip(specs, readings, strict=True):
            seen = {k: reading.find(one.name) for k, one in enumerate(spec.objects)}
            truths.append({k: thing.mask for k, thing in seen.items() if thing is not None})
        found.overlaps += _overlaps(recorder, positions, part, truths, threshold)
        for words, truth in zip(positions, truths, strict=True):
            nouns = [int(name.split()[1]) for name in words if name.startswith("noun ")]
            found.seen += [number in truth for number in nouns]
        found.specs += specs
        found.pictures += list(images)
        done(len(part))
    return found


def asked(one: Scene) -> SceneSpec:
    """What the caption of a scene asks for."""
    return said(one.spec, one.caption, [each.word for each in one.objects])


@torch.no_grad()
def autoencoded(model: Any, images: Tensor, batch: int = 32) -> Tensor:
    """Pictures (b,3,h,w) as decoding the mode of their posterior gives them back."""
    parts = [model.decode_first_stage(model.encode_images(part)) for part in images.split(batch)]
    return torch.cat(parts).clamp(-1, 1).cpu()


def reconstruction(images: Tensor, decoded: Tensor) -> Mean:
    """PSNR in decibels of pictures that went through the autoencoder (`autoencoded`)."""
    pairs = zip(images, decoded, strict=True)
    return Mean.of(float(psnr(a[None], b[None])) for a, b in pairs)
