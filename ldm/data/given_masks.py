"""True masks beside pictures: ``masks/<picture>-<word>.png``, white where the word is."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.data.images import image_size, load_image, to_pixels
from ldm.data.metadata import Item

logger = logging.getLogger(__name__)

#: Masks are white above this value.
WHITE = 127


def mask_file(picture: Path, word: str) -> Path:
    """The mask of `word` in `picture`: ``masks/1-bear.png`` for ``<bear>`` in ``1.png``."""
    return picture.parent / "masks" / f"{picture.stem}-{word.strip('<>')}.png"


def _read(file: Path, picture: Path) -> Image.Image:
    """A mask as large as its picture, black where it is transparent."""
    image, size = load_image(file, under="black"), image_size(picture)
    brightest = int(np.asarray(image).max())
    if 0 < brightest <= WHITE:
        raise ValueError(
            f"the mask {str(file)!r} has no value above {brightest}: save it as 0 and 255"
        )
    if abs(image.width * size[1] - image.height * size[0]) > max(*image.size, *size):
        raise ValueError(
            f"the mask {str(file)!r} has {image.width}x{image.height} pixels, its picture "
            f"{size[0]}x{size[1]}: save it in the same shape, as upright as the picture"
        )
    return image if image.size == size else image.resize(size, Image.Resampling.NEAREST)


def true_mask(
    item: Item,
    words: Sequence[str],
    size: int | None = None,
    center_crop: bool = False,
    expected: Collection[str] = (),
) -> np.ndarray:
    """Where any of `words` is in a picture, cut and resized as the picture is: float32 (h, w).

    Of words that have no mask, those that are `expected` to are named in a warning.

    Raises:
        FileNotFoundError: when none of the words has a mask; names the files that were looked for.
        ValueError: when a mask cannot be read, is of another shape than the picture, is grey at
            most, or when none of them is white anywhere in what is shown of the picture.
    """
    files = [mask_file(item.path, word) for word in words]
    found = [file for file in files if file.is_file()]
    if not found:
        raise FileNotFoundError(
            f"{item} needs a mask for one of its words: expected "
            f"{' or '.join(repr(str(file)) for file in files)}, white where the word is"
        )
    for word, file in zip(words, files, strict=True):
        if word in expected and file not in found:
            logger.warning(
                "%s: there is no mask %r, so %s is outside of what is learned from",
                item,
                str(file),
                word,
            )
    whole = [_read(file, item.path) for file in found]
    if not any(int(np.asarray(image).max()) for image in whole):
        raise ValueError(
            f"{item}: none of its masks is white anywhere: {', '.join(map(str, found))}"
        )
    masks = [
        to_pixels(image.crop(item.crop) if item.crop else image, size, center_crop, "nearest")
        for image in whole
    ]
    mask = np.logical_or.reduce([pixels[..., 0] > WHITE for pixels in masks])
    if not mask.any():
        raise ValueError(
            f"{item}: its masks have nothing white in what is shown of the picture, at "
            f"{mask.shape[1]}x{mask.shape[0]} pixels: cut it elsewhere, or leave the picture out"
        )
    return mask.astype(np.float32)
