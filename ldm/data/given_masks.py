"""True masks beside pictures: ``masks/<picture>-<word>.png``, white where the word is."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ldm.data.images import load_image, to_pixels
from ldm.data.metadata import Item


def mask_file(picture: Path, word: str) -> Path:
    """The mask of `word` in `picture`: ``masks/1-bear.png`` for ``<bear>`` in ``1.png``."""
    return picture.parent / "masks" / f"{picture.stem}-{word.strip('<>')}.png"


def true_mask(
    item: Item, words: Sequence[str], size: int | None = None, center_crop: bool = False
) -> np.ndarray:
    """Where any of `words` is in a picture, cut and resized as the picture is: float32 (h, w).

    Raises:
        FileNotFoundError: when none of the words has a mask; names the files that were looked for.
        ValueError: when a mask cannot be read.
    """
    files = [mask_file(item.path, word) for word in words]
    found = [file for file in files if file.is_file()]
    if not found:
        raise FileNotFoundError(
            f"{item} needs a mask for one of its words: expected "
            f"{' or '.join(repr(str(file)) for file in files)}, white where the word is"
        )
    masks = []
    for file in found:
        image = load_image(file)
        image = image.crop(item.crop) if item.crop else image
        masks.append(to_pixels(image, size, center_crop, "nearest")[..., 0] > 127)
    return np.logical_or.reduce(masks).astype(np.float32)
