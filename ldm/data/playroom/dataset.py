"""The world as data sets: endless random scenes to train a model on."""

from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from ldm.data.playroom.captions import caption_for
from ldm.data.playroom.sampling import plain_spec, sample_spec
from ldm.data.playroom.scene import Scene, render_scene

if TYPE_CHECKING:  # drawing needs no torch
    from ldm.data.steps import StepKey

SLOTS = 4096
"""Scenes are numbered step * SLOTS + slot, so that no two examples of a training share one."""


def scene(
    seed: int, index: int, size: int = 64, split: str = "seen", *, n_objects: int | None = None,
    templates: bool = True, masks: bool = True, plain: float = 0.0,
) -> Scene:  # fmt: skip
    """Scene number `index` of a split: the same arguments give the same bytes, anywhere.

    Captions of the split "seen" use general words for what is unnamed; the others use true names.
    A share `plain` of the scenes are those of `plain_spec`.
    """
    rng = Random(f"playroom:{seed}:{index}:{split}")
    is_plain = plain > 0 and Random(f"plain:{seed}:{index}").random() < plain
    spec = plain_spec(rng, split) if is_plain else sample_spec(rng, split, n_objects)
    caption, words = caption_for(spec, rng, templates=templates, true_names=split != "seen")
    return render_scene(spec, size, caption=caption, words=words, masks=masks)


def to_float(image: np.ndarray) -> np.ndarray:
    """An uint8 picture as float32 in [-1, 1]."""
    return image.astype(np.float32) * np.float32(1 / 127.5) - np.float32(1)


class PlayroomScenes:
    """Random scenes with captions, by number or by the key of a training step.

    An example is {"image": float32 (size, size, 3) in [-1, 1], "caption": str, "image_id": int,
    "flip": False} and, with `masks`, "mask": uint8 (size, size), 0 for the background and k for
    the k-th object. A share of captions (`caption_dropout`) is empty, for guidance. A share
    `plain` of the scenes (True: all) shows one or two things in plain colours only.
    """

    keyed = True

    def __init__(  # noqa: PLR0913 - what a world of scenes can be asked for
        self,
        size: int = 64,
        split: str = "seen",
        seed: int = 0,
        length: int | None = None,
        caption_dropout: float = 0.1,
        templates: bool = True,
        *,
        masks: bool = False,
        n_objects: int | None = None,
        plain: float = 0.0,
    ):
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"caption_dropout is a share in [0, 1], got {caption_dropout}")
        if not 0 <= plain <= 1:
            raise ValueError(f"plain is a share in [0, 1], got {plain}")
        if size < 16:
            raise ValueError(f"size is at least 16 pixels, got {size}")
        self.size, self.split, self.seed = size, split, seed
        self.length = 100_000 if length is None else length
        self.caption_dropout, self.templates = caption_dropout, templates
        self.masks, self.n_objects, self.plain = masks, n_objects, plain

    def __len__(self) -> int:
        return self.length

    def index_of(self, key: "int | StepKey") -> tuple[int, int]:
        """Seed and number of the scene that a number or a step key asks for."""
        if isinstance(key, (int, np.integer)):
            if not 0 <= key < self.length:
                raise IndexError(f"scene {key} of {self.length}")
            return self.seed, int(key)
        step, slot = int(key.step), int(key.slot)
        if not 0 <= slot < SLOTS:
            raise ValueError(f"slot {slot} is out of range; a step has at most {SLOTS} examples")
        return self.seed + 1_000_003 * int(getattr(key, "run", 0)), step * SLOTS + slot

    def scene(self, key: "int | StepKey") -> Scene:
        """The whole scene behind an example."""
        seed, index = self.index_of(key)
        return scene(seed, index, self.size, self.split, n_objects=self.n_objects,
                     templates=self.templates, plain=self.plain)  # fmt: skip

    def __getitem__(self, key: "int | StepKey") -> dict[str, Any]:
        seed, index = self.index_of(key)
        drawn = scene(seed, index, self.size, self.split, n_objects=self.n_objects,
                      templates=self.templates, masks=self.masks, plain=self.plain)  # fmt: skip
        caption = drawn.caption
        if self.caption_dropout and Random(f"drop:{seed}:{index}").random() < self.caption_dropout:
            caption = ""
        example = {
            "image": to_float(drawn.image),
            "caption": caption,
            "image_id": index,
            "flip": False,
        }
        if self.masks:
            mask = np.zeros((self.size, self.size), np.uint8)
            for number, one in enumerate(drawn.objects, start=1):
                mask[one.mask] = number
            example["mask"] = mask
        return example
