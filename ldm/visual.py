"""Pictures of what a model sees and makes: grids, attention overlays, masks, panels, film strips.

Tensors go in and arrays come out; nothing here knows a model. A picture is a ``uint8`` array
(height, width, 3). Text is drawn with the font that ships with Pillow, so that pictures look the
same everywhere.
"""

import glob
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont, PngImagePlugin
from torch import Tensor

from ldm.checkpoint import write_atomic

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

PAPER: Colour = (250, 249, 246)
INK: Colour = (38, 42, 51)
GREY: Colour = (118, 124, 136)
GROUND: Colour = (236, 234, 228)
#: One colour per word, in order of appearance; told apart by lightness as well as hue.
WORD_COLOURS: tuple[Colour, ...] = (
    (233, 128, 60),
    (64, 132, 196),
    (84, 160, 92),
    (203, 82, 110),
    (142, 106, 178),
    (214, 178, 62),
    (72, 168, 172),
    (150, 112, 88),
)
#: Colours of rising attention at equally spaced heats from 0 to 1; lightness rises throughout.
HEAT: tuple[Colour, ...] = (
    (24, 20, 58),
    (92, 32, 110),
    (176, 48, 96),
    (232, 98, 62),
    (250, 176, 74),
    (255, 244, 190),
)

_MARGIN, _GAP = 20, 10


def to_uint8(images: Tensor) -> Picture:
    """Images in [-1, 1] as pictures: (b, c, h, w) -> (b, h, w, 3), or (c, h, w) -> (h, w, 3).

    There are 1 or 3 channels. Values outside are clamped; a value that is not a number becomes
    mid-grey.

    Raises:
        ValueError: when the channel axis is neither 1 nor 3.
    """
    if images.ndim not in (3, 4) or images.shape[-3] not in (1, 3):
        raise ValueError(
            "expected images of shape (b, 3, h, w) or (3, h, w), or the same with 1 channel, "
            f"got {tuple(images.shape)}"
        )
    values = torch.nan_to_num(images.detach().float().cpu(), nan=0.0).clamp(-1.0, 1.0)
    values = values.movedim(-3, -1).expand(*values.shape[:-3], *values.shape[-2:], 3)
    picture: Picture = ((values + 1.0) * 127.5).round().to(torch.uint8).numpy()
    return picture


def resize(picture: Picture, size: tuple[int, int], smooth: bool = True) -> Picture:
    """`picture` at `size` (height, width): bicubic, or with hard pixels when not `smooth`."""
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize(size[::-1], method), dtype=np.uint8)


def _rounded(values: NDArray[Any]) -> Picture:
    return np.asarray(np.rint(values), dtype=np.uint8)


def heat_colours(values: ArrayLike) -> Picture:
    """The colour of each heat in [0, 1]: (h, w) -> (h, w, 3)."""
    stops = np.linspace(0.0, 1.0, len(HEAT))
    table = np.asarray(HEAT, dtype=np.float64)
    values = np.clip(np.asarray(values, dtype=np.float64), 0.0, 1.0)
    return _rounded(np.stack([np.interp(values, stops, table[:, k]) for k in range(3)], -1))


def _plane(values: Tensor | ArrayLike, what: str) -> NDArray[np.float32]:
    """`values` as a float array (h, w)."""
    array = values.detach().float().cpu().numpy() if isinstance(values, Tensor) else values
    array = np.nan_to_num(np.asarray(array, dtype=np.float32))
    if array.ndim != 2:
        raise ValueError(f"expected {what} of shape (height, width), got {array.shape}")
    return array


def _upsample(
    plane: NDArray[np.float32], size: tuple[int, int], smooth: bool
) -> NDArray[np.float32]:
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(plane).resize(size[::-1], method))


def overlay(
    picture: Picture, attention: Tensor | ArrayLike, *, strength: float = 0.85, smooth: bool = True
) -> Picture:
    """`picture`, dimmed, under the heat of an attention map (m, n) of any resolution.

    The map is divided by its own maximum, as for the masks of MCPL (sec. 3.4), so that words
    compare by place and not by size. A map without attention leaves the dimmed picture.
    """
    heat = _plane(attention, "an attention map")
    heat = heat / heat.max() if heat.max() > 0 else np.zeros_like(heat)
    heat = np.clip(_upsample(heat, picture.shape[:2], smooth), 0.0, 1.0)[..., None]
    grey = picture.astype(np.float32).mean(-1, keepdims=True)
    dimmed = 0.55 * (0.35 * picture + 0.65 * grey)
    alpha = strength * np.sqrt(heat)
    return _rounded(dimmed * (1.0 - alpha) + heat_colours(heat[..., 0]) * alpha)


def outline(
    picture: Picture, mask: Tensor | ArrayLike, colour: Colour = WORD_COLOURS[0], width: int = 3
) -> Picture:
    """`picture` with the border of a mask (m, n) drawn on it; what is outside is paler."""
    inside = (
        _upsample((_plane(mask, "a mask") > 0.5).astype(np.float32), picture.shape[:2], False) > 0.5
    )
    core = Image.fromarray(inside.astype(np.uint8)).filter(ImageFilter.MinFilter(2 * width + 1))
    border = inside & (np.asarray(core) == 0)
    result = np.where(inside[..., None], picture, 0.35 * picture + 0.65 * np.asarray(PAPER))
    result[border] = colour
    return _rounded(result)


def label_map(
    masks: Sequence[Tensor | ArrayLike],
    size: tuple[int, int],
    colours: Sequence[Colour] = WORD_COLOURS,
) -> Picture:
    """One coloured region per mask, at `size` (height, width); where masks overlap colours mix."""
    total = np.zeros((*size, 3), dtype=np.float32)
    count = np.zeros((*size, 1), dtype=np.float32)
    for index, mask in enumerate(masks):
        inside = (_plane(mask, "a mask") > 0.5).astype(np.float32)
        inside = _upsample(inside, size, False)[..., None]
        total += inside * np.asarray(colours[index % len(colours)], dtype=np.float32)
        count += inside
    mixed = np.where(
        count > 0, total / np.maximum(count, 1.0), np.asarray(GROUND, dtype=np.float32)
    )
    return _rounded(mixed)


def image_grid(
    images: Tensor | Sequence[Picture] | Picture,
    columns: int | None = None,
    pad: int = 4,
    scale: int = 1,
) -> Picture:
    """Images side by side, `columns` to a row (default: as square as possible).

    Takes a tensor (b, c, h, w) in [-1, 1], an array (b, h, w, 3) or a sequence of pictures of one
    size; they stand `pad` pixels apart, enlarged smoothly `scale` times.

    Raises:
        ValueError: when there is no image.
    """
    pictures = (
        to_uint8(images) if isinstance(images, Tensor) else np.asarray(images, dtype=np.uint8)
    )
    if len(pictures) == 0:
        raise ValueError("a grid needs at least one image, got none")
    if scale > 1:
        size = (pictures.shape[1] * scale, pictures.shape[2] * scale)
        pictures = np.stack([resize(picture, size) for picture in pictures])
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    rows = math.ceil(len(pictures) / columns)
    height, width = pictures.shape[1:3]
    grid = np.full((rows * (height + pad) + pad, columns * (width + pad) + pad, 3), PAPER, np.uint8)
    for index, picture in enumerate(pictures):
        top = pad + index // columns * (height + pad)
        left = pad + index % columns * (width + pad)
        grid[top : top + height, left : left + width] = picture
    return grid


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def wrap(text: str, width: int, size: int) -> list[str]:
    """`text` in lines at most `width` pixels wide at font `size`; a longer word stands alone."""
    font, lines = _font(size), [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(candidate) > width:
            lines.append(word)
        else:
            lines[-1] = candidate
    return lines


def caption_images(captions: Sequence[str], size: tuple[int, int]) -> Tensor:
    """Each caption written on a sheet of `size` (height, width), in [-1, 1]: (b, 3, h, w)."""
    height, width = size
    points = max(9, width // 16)
    sheets = []
    for caption in captions:
        sheet = Image.new("RGB", (width, height), PAPER)
        text = "\n".join(wrap(caption, width - points, points))
        ImageDraw.Draw(sheet).multiline_text((points // 2, points // 2), text, INK, _font(points))
        sheets.append(np.array(sheet))
    return torch.from_numpy(np.stack(sheets)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


@dataclass(frozen=True)
class Cell:
    """One picture of a panel and the line of text below it."""

    picture: Picture
    caption: str = ""


@dataclass(frozen=True)
class Heading:
    """What stands above a column; `colour` adds a small square of the word's colour."""

    text: str
    colour: Colour | None = None


def panel(
    rows: Sequence[Sequence[Cell]],
    headings: Sequence[Heading | str] = (),
    title: str = "",
    tile: int = 224,
) -> Picture:
    """One labelled picture: rows of cells under column headings and a title.

    Every picture is fitted into a square of `tile` pixels (small ones are enlarged smoothly). A
    caption may go on below the next pictures that have none. Rows may have different lengths.

    Raises:
        ValueError: when there is no cell.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ValueError("a panel needs at least one cell, got none")
    width = 2 * _MARGIN + columns * tile + (columns - 1) * _GAP
    text, small = max(13, tile // 14), max(12, tile // 17)
    lines = wrap(title, width - 2 * _MARGIN, text + 2) if title else []
    top = _MARGIN + len(lines) * (text + 8) + (6 if lines else 0)
    body = top + (text + 12 if headings else 0)
    notes = [
        [wrap(cell.caption, _room(row[column:], tile), small) for column, cell in enumerate(row)]
        for row in rows
    ]
    depths = [max(len(n) if n != [""] else 0 for n in row) * (small + 5) for row in notes]
    height = body + sum(tile + depth + _GAP for depth in depths) - _GAP + _MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + index * (text + 8)), line, INK, _font(text + 2))
    _draw_headings(draw, headings, (top, tile, text))
    for row, note, depth in zip(rows, notes, depths, strict=True):
        for column, cell in enumerate(row):
            left = _MARGIN + column * (tile + _GAP)
            sheet.paste(Image.fromarray(_fit(cell.picture, tile)), (left, body))
            draw.multiline_text(
                (left, body + tile + 4), "\n".join(note[column]), GREY, _font(small)
            )
        body += tile + depth + _GAP
    return np.asarray(sheet)


def _room(cells: Sequence[Cell], tile: int) -> int:
    """The pixels that the caption of the first of `cells` has to itself."""
    alone = next((n for n, cell in enumerate(cells) if n and cell.caption), len(cells))
    return alone * (tile + _GAP) - _GAP


def _draw_headings(
    draw: ImageDraw.ImageDraw, headings: Sequence[Heading | str], place: tuple[int, int, int]
) -> None:
    top, tile, size = place
    for column, given in enumerate(headings):
        heading = Heading(given) if isinstance(given, str) else given
        left = _MARGIN + column * (tile + _GAP)
        if heading.colour is not None:
            draw.rounded_rectangle(
                (left, top + 2, left + size - 1, top + 1 + size), 3, heading.colour
            )
            left += size + 6
        room = tile - (size + 6 if heading.colour is not None else 0)
        draw.text((left, top), _shortened(heading.text, room, size), INK, _font(size))


def _shortened(text: str, width: int, size: int) -> str:
    """`text`, with an ellipsis for what goes beyond `width` pixels at font `size`."""
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _fit(picture: Picture, tile: int) -> Picture:
    """`picture` enlarged or reduced to fill a square of `tile` pixels, its shape kept, on paper."""
    height, width = picture.shape[:2]
    scale = tile / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    square = np.full((tile, tile, 3), PAPER, np.uint8)
    top, left = (tile - size[0]) // 2, (tile - size[1]) // 2
    square[top : top + size[0], left : left + size[1]] = resize(picture, size)
    return square


def word_panel(
    images: Tensor,
    attention: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None = None,
    captions: Sequence[str] = (),
    title: str = "",
    tile: int = 224,
    truths: Mapping[str, Tensor] | None = None,
) -> Picture:
    """What every word looks at: a row per image with an overlay per word and, given masks, a map.

    `images` are (b, c, h, w) in [-1, 1]; `attention` maps each word to (b, m, n), `masks` and the
    true ones, `truths`, to (b, m, n) of zeros and ones.
    """
    maps_of_all = [each for each in (masks, truths) if each]
    order = dict.fromkeys(word for each in maps_of_all or [attention] for word in each)
    colours = {word: WORD_COLOURS[k % len(WORD_COLOURS)] for k, word in enumerate(order)}
    rows = []
    for index, small in enumerate(to_uint8(images)):
        picture = _fit(small, tile)
        row = [Cell(picture, captions[index] if index < len(captions) else "")]
        row += [Cell(overlay(picture, maps[index])) for maps in attention.values()]
        for each in maps_of_all:
            chosen = [colours[word] for word in each]
            row.append(Cell(label_map([m[index] for m in each.values()], (tile, tile), chosen)))
        rows.append(row)
    headings = [Heading("image")] + [Heading(word, colours.get(word)) for word in attention]
    headings += [Heading("masks")] * bool(masks) + [Heading("true masks")] * bool(truths)
    return panel(rows, headings, title, tile)


def filmstrip(
    frames: Tensor | Sequence[Picture], labels: Sequence[str] = (), title: str = "", tile: int = 160
) -> Picture:
    """Pictures of one thing over time, left to right, each with its label below.

    Frames are given as to :func:`image_grid`.
    """
    pictures = to_uint8(frames) if isinstance(frames, Tensor) else list(frames)
    names = [*labels, *[""] * (len(pictures) - len(labels))]
    return panel(
        [[Cell(p, n) for p, n in zip(pictures, names, strict=False)]], title=title, tile=tile
    )


def render(produced: Mapping[str, Any], limit: int = 8) -> dict[str, Picture]:
    """Pictures of what a model's ``log_images`` returned, at most `limit` images each, by name.

    A value may be images (b, c, h, w) in [-1, 1], which become a grid, or a list of texts, which
    are written out. ``attention``, a list with what each word of a caption looked at while its
    sample was made, ``{word: (m, n)}``, becomes a panel beside ``samples``. Other values are left
    out.
    """
    images = {k: v[:limit] for k, v in produced.items() if isinstance(v, Tensor) and v.ndim == 4}
    looks = list(produced.get("attention") or ())[:limit]
    texts = {
        k: [str(t) for t in v[:limit]]
        for k, v in produced.items()
        if isinstance(v, (list, tuple)) and k != "attention"
    }
    size = next((tuple(v.shape[-2:]) for v in images.values()), (64, 64))
    scale = max(1, 192 // max(size))
    pictures = {k: image_grid(v, scale=scale) for k, v in images.items()}
    for key, lines in texts.items():
        if lines:
            sheets = caption_images(lines, (size[0] * scale, size[1] * scale))
            pictures[key] = image_grid(sheets)
    if looks and "samples" in images:
        pictures["attention"] = caption_panel(
            images["samples"], looks, texts.get("conditioning", ())
        )
    return pictures


def caption_panel(
    images: Tensor,
    looks: Sequence[Mapping[str, Tensor]],
    captions: Sequence[str] = (),
    tile: int = 128,
) -> Picture:
    """What the words of captions look at: a row per image, which may each have words of its own.

    `images` are (b, c, h, w) in [-1, 1]; each of `looks` maps the words of one to (m, n).
    """
    rows, titles = [], [*captions, *[""] * (len(looks) - len(captions))]
    for small, words, title in zip(to_uint8(images), looks, titles, strict=False):
        picture = _fit(small, tile)
        rows.append([Cell(picture, title), *(Cell(overlay(picture, words[w]), w) for w in words)])
    return panel(rows, tile=tile)


def free_suffix(folder: Path, stems: Sequence[str]) -> str:
    """What to add to `stems` ("", "-2", ...) so that no file in `folder` is called so yet."""
    suffixes = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    return next(
        suffix
        for suffix in suffixes
        if not any(any(folder.glob(f"{glob.escape(stem)}{suffix}[-.]*")) for stem in stems)
    )


def save_png(path: str | Path, picture: Picture, text: Mapping[str, str] | None = None) -> None:
    """Write `picture` as a PNG that carries `text` (prompt, seed, ...); all of it or nothing."""
    notes = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        notes.add_itxt(key, str(value))
    with write_atomic(path) as temporary:
        Image.fromarray(np.ascontiguousarray(picture)).save(temporary, "PNG", pnginfo=notes)
