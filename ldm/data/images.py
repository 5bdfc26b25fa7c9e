"""Find and read pictures as people have them: of any name and mode, turned, transparent, broken.

:func:`find_images` looks at what is in a file rather than at its name, :func:`load_image` always
gives upright 8-bit RGB, and :func:`to_array` the square array in [-1, 1] that the models see.
"""

import logging
import re
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

logger = logging.getLogger(__name__)

#: What is looked for, as far as the installed Pillow reads it (HEIF needs a plug-in); formats
#: without a signature are left out, they would take any text for a picture.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "BMP", "GIF", "TIFF", "JPEG2000", "MPO", "PPM")
IMAGE_NAME = re.compile(
    r"\.(jpe?g|jpe|jfif|png|webp|avif|hei[cf]|bmp|gif|tiff?|jp2|p[gp]m)$", re.IGNORECASE
)
SIDECAR_NAME = re.compile(r"\.(txt|jsonl?|csv|ya?ml|md|html?|xml|ini|db)$", re.IGNORECASE)
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "linear": Image.Resampling.BILINEAR,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
#: What reading a damaged file may raise.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
MASK_NAME = re.compile(r"^(?P<image>.*?)[-_. ]?mask(?:label)?\d*$", re.IGNORECASE)
EXIF_ORIENTATION = 0x0112
#: A 16-bit picture without a value as high uses an eighth of its range or less.
DARK = 65536 // 8


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sort key by which ``2.jpg`` comes before ``10.jpg``, whatever the case of the letters."""
    pieces = re.split(r"([0-9]+)", path.as_posix().casefold())
    key = [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces]
    return [*key, (1, 0, path.as_posix())]


def find_images(folder: str | Path, recursive: bool = False) -> list[Path]:
    """The pictures in `folder`, in natural order, recognised by their content.

    Hidden files, system files (``.DS_Store``, ``Thumbs.db``), sidecars (``.txt``, ``.json``, ...)
    and the masks of other pictures (``photo_mask.png`` or ``photo-masklabel.png`` beside
    ``photo.jpg``, ``mask0.png`` beside ``img.jpg``) are left out.

    Raises:
        FileNotFoundError: when there is no such folder.
        NotADirectoryError: when it is a file.
        ValueError: when a file is called like a picture and is none; the message names it.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}; give that of your images")
    if not folder.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is a file; give the folder it is in")
    files = sorted(_files(folder, recursive), key=natural_key)
    images = [file for file in files if is_image(file)]
    return _without_masks(images)


def _files(folder: Path, recursive: bool) -> Iterable[Path]:
    """Every file that could be a picture, by name."""
    for entry in folder.iterdir():
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if entry.is_dir():
            if recursive:
                yield from _files(entry, recursive)
        elif not SIDECAR_NAME.search(entry.name):
            yield entry


def _formats() -> list[str]:
    """Those of `FORMATS` that the installed Pillow can open."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def is_image(path: Path) -> bool:
    """Whether the content of `path` is a picture.

    Raises:
        ValueError: when it is not although its name says so.
    """
    try:
        with Image.open(path, formats=_formats()):
            return True
    except DAMAGE as error:
        if IMAGE_NAME.search(path.name):
            raise ValueError(
                f"{str(path)!r} is called like an image, but none can be read from it ({error}); "
                "replace it, convert it to JPEG or PNG, or take it out of the folder"
            ) from error
    logger.debug("skipped %r: not an image", str(path))
    return False


def _without_masks(images: list[Path]) -> list[Path]:
    """`images` without those that are the mask of another one in the same folder."""
    names = {(image.parent, image.stem) for image in images}

    def is_mask(image: Path) -> bool:
        match = MASK_NAME.match(image.stem)
        return match is not None and (image.parent, match["image"] or "img") in names

    return [image for image in images if not is_mask(image)]


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels of the upright picture, read from its header.

    Raises:
        ValueError: when the file cannot be read; the message names it.
    """
    try:
        with Image.open(path, formats=_formats()) as image:
            turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5
            return (image.height, image.width) if turned else (image.width, image.height)
    except DAMAGE as error:
        raise _broken(path, error) from error


def load_image(path: str | Path, under: str = "white") -> Image.Image:
    """The picture as upright 8-bit RGB: the first frame of an animation, `under` transparency.

    Raises:
        ValueError: when the file is truncated, damaged or no picture; the message names it.
    """
    try:
        with Image.open(path, formats=_formats()) as image:
            image.load()
            _warn_of_dark(path, image)
            return to_rgb(ImageOps.exif_transpose(image), under)
    except DAMAGE as error:
        raise _broken(path, error) from error


def _warn_of_dark(path: str | Path, image: Image.Image) -> None:
    """Say that a picture uses little of its 16 bits: 12-bit values would be learned as black."""
    if image.mode.startswith("I;16"):
        high = int(np.asarray(image).max())
        if 0 < high < DARK:
            logger.warning(
                "%r has 16 bits and no value above %d, so it is nearly black; if that is not "
                "meant, scale its values up to 65535",
                str(path),
                high,
            )


def _broken(path: str | Path, error: BaseException) -> ValueError:
    """The error for a file that cannot be read."""
    return ValueError(
        f"the image {str(path)!r} cannot be read: {error}. Is it truncated or damaged? Replace it "
        "by a good copy, or take it out of the folder"
    )


def to_rgb(image: Image.Image, under: str = "white") -> Image.Image:
    """`image` of any mode as 8-bit RGB; transparent parts show the colour `under` them.

    Raises:
        ValueError: for real-valued pixels outside 0..1 and 0..255.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, under), image)
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """A grey picture of 16 or 32 bits with its whole range brought to 0..255."""
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        limit = 1 if high <= 1 else 255
    else:
        limit = 65535 if high > 255 or image.mode != "I" else 255
    if low < 0 or high > limit:
        raise ValueError(
            f"pixel values from {low:g} to {high:g}; expected 0..{limit} (save it as 8 or 16 bit)"
        )
    return Image.fromarray(np.rint(values * (255 / limit)).astype(np.uint8), mode="L")


def to_pixels(
    image: Image.Image,
    size: int | None,
    center_crop: bool = True,
    interpolation: str = "bicubic",
) -> np.ndarray:
    """The picture cut to its central square and resized: uint8 (size, size, 3).

    Without `center_crop` the sides are squeezed to a square; without `size` nothing is resized.

    Raises:
        ValueError: for an unknown interpolation or a size below 1.
    """
    if interpolation not in FILTERS:
        raise ValueError(f"interpolation must be one of {sorted(FILTERS)}, got {interpolation!r}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if center_crop:
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if size is not None:
        image = image.resize((size, size), resample=FILTERS[interpolation])
    return np.array(image, dtype=np.uint8)


def normalise(pixels: np.ndarray) -> np.ndarray:
    """8-bit values 0..255 as float32 in [-1, 1]."""
    return (pixels / 127.5 - 1.0).astype(np.float32)


def to_array(
    image: Image.Image,
    size: int | None,
    center_crop: bool = True,
    interpolation: str = "bicubic",
) -> np.ndarray:
    """The picture as a model sees it: float32 (size, size, 3) in [-1, 1]; see :func:`to_pixels`."""
    return normalise(to_pixels(image, size, center_crop, interpolation))
