"""Pictures of a few concepts with their sentences: what textual inversion, MCPL and Lego see.

:class:`PersonalizedBase` pairs every picture of a folder with a sentence put into a caption
template. Asked for a :class:`~ldm.data.steps.StepKey` it is a pure function of that key; asked for
a number it draws at random.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator
from torch.utils.data import Dataset

from ldm.data.given_masks import true_mask
from ldm.data.images import load_image, normalise, to_pixels
from ldm.data.metadata import read_items
from ldm.data.pairing import (
    Strategy,
    Wording,
    given_sentences,
    is_caption,
    merge_words,
    openings,
    pair,
)
from ldm.data.steps import StepKey
from ldm.data.subjects import mark_concepts, without_separation
from ldm.prompts import (
    IMAGENET_DUAL_TEMPLATES_SMALL,
    IMAGENET_TEMPLATES_SMALL,
    PER_IMAGE_TOKENS,
    Caption,
    LearnableWord,
    Sentence,
    fill,
)

imagenet_templates_small = list(IMAGENET_TEMPLATES_SMALL)
imagenet_dual_templates_small = list(IMAGENET_DUAL_TEMPLATES_SMALL)
per_img_token_list = list(PER_IMAGE_TOKENS)

#: Decoded pictures are kept in memory up to this size.
KEPT_BYTES = 1 << 28


class PersonalizedBase(Dataset[dict[str, Any]]):
    """Every picture of a folder, each under many captions that contain the words to learn.

    `sentence` is a :class:`~ldm.prompts.Sentence`, its markup ("a [brown] <teddy:bear>"), or one
    for each kind of picture ({"concept": ..., "subject": ...}); without it, `placeholder_token` is
    the word to learn. A picture with a sentence of its own (:mod:`ldm.data.metadata`) is shown with
    that one, unless `own_sentences` is off; ``RELATE`` becomes the relation in the file's name. A
    sentence goes into one of the `templates`, unless it is a whole caption already ("a photo of
    <subject> that is <state>"). Without `subject_separation`, of Lego's two sets only that with the
    concept is shown, and its subject has no word of its own (:mod:`ldm.data.subjects`).

    ``dataset[StepKey]`` gives image (h, w, 3) float32 in [-1, 1], caption (`Caption`), image_id,
    flip, step, slot and run; with `given_masks` also mask (h, w): where the words of the caption
    are, from the files beside the picture (:mod:`ldm.data.given_masks`). With several kinds of
    pictures the slots of a step take turns, so that every step draws from all of them (Lego sec.
    4.3). ``dataset[int]`` gives image and caption (text), flip and template drawn from torch's
    global generator.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when a picture's sentence has no learnable word (the message names the file),
            or an option is out of range.
    """

    #: Examples may be asked for by `StepKey`.
    keyed = True
    #: Every array that an example can hold comes from `images()`, so posteriors can be kept.
    cacheable = True
    templates: Sequence[str] = IMAGENET_TEMPLATES_SMALL

    def __init__(  # noqa: PLR0913, PLR0917 - the names that public configs use
        self,
        data_root: str | Path,
        size: int | None = None,
        repeats: int = 100,
        interpolation: str = "bicubic",
        flip_p: float = 0.5,
        set: str = "train",
        placeholder_token: str = "*",
        per_image_tokens: bool = False,
        center_crop: bool = False,
        mixing_prob: float = 0.25,
        coarse_class_text: str | None = None,
        *,
        sentence: Wording | None = None,
        templates: Sequence[str] | None = None,
        seed: int = 0,
        strategy: Strategy = "one",
        own_sentences: bool = True,
        subject_separation: bool = True,
        given_masks: bool = False,
    ) -> None:
        self.size, self.interpolation, self.center_crop = size, interpolation, center_crop
        self.flip_p = _share("flip_p", flip_p)
        self.mixing_prob = _share("mixing_prob", mixing_prob) if per_image_tokens else 0.0
        self.seed, self.given_masks = seed, given_masks
        self.templates = _checked(self.templates if templates is None else templates)
        self.items = read_items(data_root)
        if not own_sentences:
            self.items = [replace(item, text=None) for item in self.items]
        given = given_sentences(sentence, placeholder_token, coarse_class_text)
        own_only = sentence is None and any(item.text for item in self.items)
        self._pairs = pair(self.items, given, strategy, own_only)
        if not subject_separation:
            self.items, self._pairs = without_separation(self.items, self._pairs)
        self.num_images = len(self.items)
        if per_image_tokens and self.num_images > len(PER_IMAGE_TOKENS):
            raise ValueError(
                f"per_image_tokens has {len(PER_IMAGE_TOKENS)} words, one for each picture, but "
                f"there are {self.num_images} pictures; take fewer, or switch it off"
            )
        self._openings = openings(self.templates)
        kinds = sorted({item.kind for item in self.items})
        self._groups = [[i for i, item in enumerate(self.items) if item.kind == k] for k in kinds]
        self._length = self.num_images * (repeats if set == "train" else 1)
        self._kept: dict[int, np.ndarray] = {}
        self._masks: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """The length of an epoch: every picture, in training `repeats` times."""
        return self._length

    @property
    def sentences(self) -> dict[Sentence, int]:
        """The distinct sentences, and how many pictures are shown with each."""
        return dict(Counter(self._pairs))

    @property
    def words(self) -> tuple[LearnableWord, ...]:
        """Every learnable word that some picture shows, with the role "concept" where it is one."""
        shown = {name for each in self._pairs for name in each.caption.names()}
        words = (word for word in merge_words(self._pairs) if word.name in shown)
        return mark_concepts(words, self.items, self._pairs)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """What decides `images()`: two sets with equal ones show the same arrays."""
        pictures = tuple((item.path, item.crop) for item in self.items)
        return (pictures, self.size, self.center_crop, self.interpolation)

    def sentence_of(self, image_id: int) -> Sentence:
        """The sentence that a picture is shown with."""
        return self._pairs[image_id]

    def __getitem__(self, key: StepKey | int) -> dict[str, Any]:
        """One example; see the class."""
        if isinstance(key, StepKey):
            return self._keyed(key)
        if not -len(self) <= key < len(self):
            raise IndexError(f"index {key} is out of range for {len(self)} examples")
        index = key % self.num_images
        flip = bool(torch.rand(()) < self.flip_p)
        return {"image": self._image(index, flip), "caption": str(self._caption(index))}

    def _keyed(self, key: StepKey) -> dict[str, Any]:
        """The example of one slot of one step: all that is random comes from the key."""
        generator = key.generator(self.seed)
        group = self._groups[(key.step + key.slot) % len(self._groups)]
        index = group[_below(len(group), generator)]
        flip = bool(torch.rand((), generator=generator) < self.flip_p)
        mask = {"mask": self._mask(index, flip)} if self.given_masks else {}
        return {
            "image": self._image(index, flip),
            "caption": self._caption(index, generator),
            "image_id": index,
            "flip": flip,
            **mask,
            **key._asdict(),
        }

    def images(self) -> Iterator[tuple[int, bool, np.ndarray]]:
        """Every (image_id, flip, array) that an example can hold, each once."""
        flips = [flip for flip in (False, True) if (self.flip_p > 0 if flip else self.flip_p < 1)]
        for index in range(self.num_images):
            for flip in flips:
                yield index, flip, self._image(index, flip)

    def every_mask(self) -> Iterator[np.ndarray]:
        """The given mask of every picture, if masks are given."""
        for index in range(self.num_images if self.given_masks else 0):
            yield self._mask(index, False)

    def _image(self, index: int, flip: bool) -> np.ndarray:
        """The picture as float32 (h, w, 3) in [-1, 1]."""
        pixels = self._pixels(index)
        return normalise(pixels[:, ::-1] if flip else pixels)

    def _pixels(self, index: int) -> np.ndarray:
        """The cut and resized picture as uint8; decoded once if there is room to keep it."""
        pixels = self._kept.get(index)
        if pixels is None:
            item = self.items[index]
            image = load_image(item.path)
            image = image.crop(item.crop) if item.crop else image
            pixels = to_pixels(image, self.size, self.center_crop, self.interpolation)
            if pixels.nbytes * self.num_images <= KEPT_BYTES:
                self._kept[index] = pixels
        return pixels

    @cached_property
    def _things(self) -> frozenset[str]:
        """The words that stand for things, of which masks are expected."""
        return frozenset(word.name for word in self.words if word.role == "noun")

    def _mask(self, index: int, flip: bool) -> np.ndarray:
        """Where the words of a picture are, float32 (h, w): 1 or 0."""
        mask = self._masks.get(index)
        if mask is None:
            words = self._pairs[index].caption.names()
            mask = true_mask(self.items[index], words, self.size, self.center_crop, self._things)
            self._masks[index] = mask
        return mask[:, ::-1].copy() if flip else mask

    def _caption(self, index: int, generator: Generator | None = None) -> Caption:
        """The sentence of a picture in a template, now and then with the picture's own token."""
        number = _below(len(self.templates), generator)
        if torch.rand((), generator=generator) >= self.mixing_prob:
            return self.caption_of(index, number)
        token = PER_IMAGE_TOKENS[index]
        return fill(f"{self._template(index, number)} with {{}}", self._pairs[index].caption,
                    Caption.of(token, [token]))  # fmt: skip

    def caption_of(self, image_id: int, number: int) -> Caption:
        """The caption of a picture in template `number`, counted round and round."""
        return fill(self._template(image_id, number), self._pairs[image_id].caption)

    def _template(self, image_id: int, number: int) -> str:
        """Template `number`, or none around a sentence that is a whole caption already."""
        whole = is_caption(self._pairs[image_id].caption.text, self._openings)
        return "{}" if whole else self.templates[number % len(self.templates)]


def _below(limit: int, generator: Generator | None) -> int:
    """A random whole number from 0 to `limit` - 1."""
    return int(torch.randint(limit, (), generator=generator))


def _share(name: str, value: float) -> float:
    """`value` if it is a probability."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value}")
    return value


def _checked(templates: Sequence[str]) -> tuple[str, ...]:
    """`templates` if each has one slot."""
    if isinstance(templates, str) or not templates:
        raise ValueError(
            f"templates must be a list such as ['a photo of a {{}}'], got {templates!r}"
        )
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong:
        raise ValueError(f"a template needs one slot {{}} for the sentence, got {wrong}")
    return tuple(templates)
