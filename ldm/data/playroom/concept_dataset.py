"""A named set as the data set that words are learned from."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.personalized import PersonalizedBase
from ldm.data.playroom.concepts import (
    concept_scenes,
    digest_of,
    word_masks,
    write_concept_set,
)


class PlayroomConcepts(PersonalizedBase):
    """A named set of drawn pictures to learn words from, with the exact mask of every word.

    The pictures are written once to `folder` (by default one in :func:`cache_folder`, named after
    what is drawn) and read as any user's own are, so that all of :class:`PersonalizedBase` holds:
    keys, captions in templates, further `options`. Left and right mean nothing here, but masks must
    fit, so pictures are not flipped unless `flip_p` says so.

    Raises:
        FileExistsError: when `folder` holds something else, such as the set as another version of
            the playroom drew it.
        PermissionError: when the default folder belongs to somebody else.
    """

    def __init__(
        self, name: str, size: int = 64, n_images: int = 4, seed: int = 0, *,
        folder: str | Path | None = None, flip_p: float = 0.0, **options: Any,
    ):  # fmt: skip
        drawn = concept_scenes(name, size, n_images, seed)
        if folder is None:
            described = f"{name}-{size}-{n_images}-{seed}-{digest_of(name, drawn)}"
            folder = cache_folder() / described
        self.name, self.n_images = name, n_images
        self.folder = write_concept_set(folder, name, size, n_images, seed, scenes=drawn)
        self.scenes = [scene for _, scene in drawn]
        super().__init__(self.folder, size, flip_p=flip_p, seed=seed, **options)

    def masks(self, image_id: int) -> dict[str, np.ndarray]:
        """What each word is in one picture, bool (size, size)."""
        return word_masks(self.name, self.scenes[image_id])


def cache_folder() -> Path:
    """Where this user's drawn sets are kept: in the system's temporary folder, for nobody else.

    Raises:
        PermissionError: when somebody else has made a folder of that name.
    """
    # Windows has no such numbers, but a temporary folder for each user.
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"playroom-concepts-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != user:
        raise PermissionError(
            f"{folder} belongs to another user; have it removed, or set TMPDIR to a folder of yours"
        )
    return folder
