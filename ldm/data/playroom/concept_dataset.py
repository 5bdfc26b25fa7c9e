"""A named set as the data set that words are learned from."""

import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.personalized import PersonalizedBase
from ldm.data.playroom.concepts import concept_scenes, word_masks, write_concept_set
from ldm.data.playroom.sets import get_concept_set


class PlayroomConcepts(PersonalizedBase):
    """A named set of drawn pictures to learn words from, with the exact mask of every word.

    The pictures are written once to `folder` (by default one in the system's temporary folder) and
    read as any user's own are, so that all of :class:`PersonalizedBase` holds: keys, captions
    in templates, further `options`. Left and right mean nothing here, but masks must fit, so
    pictures are not flipped unless `flip_p` says so.
    """

    def __init__(
        self, name: str, size: int = 64, n_images: int = 4, seed: int = 0, *,
        folder: str | Path | None = None, flip_p: float = 0.0, **options: Any,
    ):  # fmt: skip
        if folder is None:
            cache = Path(tempfile.gettempdir()) / "playroom-concepts"
            described = zlib.crc32(repr(get_concept_set(name)).encode())
            folder = cache / f"{name}-{size}-{n_images}-{seed}-{described:08x}"
        self.name, self.n_images = name, n_images
        self.folder = write_concept_set(folder, name, size, n_images, seed)
        self.scenes = [scene for _, scene in concept_scenes(name, size, n_images, seed)]
        super().__init__(self.folder, size, flip_p=flip_p, seed=seed, **options)

    def masks(self, image_id: int) -> dict[str, np.ndarray]:
        """What each word is in one picture, bool (size, size)."""
        return word_masks(self.name, self.scenes[image_id])
