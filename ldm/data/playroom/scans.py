"""Medical scans as drawings: grey pictures of a round thing inside a ring."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ldm.data.playroom.canvas import supersampling
from ldm.data.playroom.pen import rounded

Shapes = tuple[list[tuple[float, float]], list[tuple[float, float]]]


@dataclass(frozen=True)
class Scan:
    """A kind of scan: its sentence in markup, its two parts (inner, outer) and how it is drawn."""

    name: str
    sentence: str
    parts: tuple[str, str]
    draw: Callable[[ImageDraw.ImageDraw, int, Random], Shapes]
    inner: int
    outer: int


def _ring(
    rng: Random, x: float, y: float, radius: float, wobble: float, squeeze: float = 1.0
) -> list[tuple[float, float]]:
    """A wobbly closed curve around (x, y) in unit coordinates."""
    turns = np.linspace(0, 2 * np.pi, 10)[:-1]
    radii = [radius * (1 + rng.uniform(-wobble, wobble)) for _ in turns]
    points = [
        (x + r * np.cos(t), y + r * squeeze * np.sin(t)) for r, t in zip(radii, turns, strict=True)
    ]
    return rounded(points).tolist()


def _fill(draw: ImageDraw.ImageDraw, pixels: int, shape: list, tone: int) -> None:
    draw.polygon([(x * pixels, y * pixels) for x, y in shape], tone)


def _heart(draw: ImageDraw.ImageDraw, pixels: int, rng: Random) -> Shapes:
    """A short-axis slice of the heart: a bright cavity in a grey ring, dark lungs around."""
    _fill(draw, pixels, _ring(rng, 0.5, 0.5, 0.47, 0.03), 74)
    for x in (0.2, 0.82):
        _fill(draw, pixels, _ring(rng, x, 0.46, 0.16, 0.12, 1.5), 22)
    x, y = 0.5 + rng.uniform(-0.07, 0.07), 0.52 + rng.uniform(-0.07, 0.07)
    radius = rng.uniform(0.2, 0.25)
    _fill(draw, pixels, _ring(rng, x - radius * 1.15, y - 0.03, radius * 0.62, 0.08, 1.3), 176)
    return (
        _ring(rng, x, y, radius * rng.uniform(0.56, 0.64), 0.05),
        _ring(rng, x, y, radius, 0.03),
    )


def _brain(draw: ImageDraw.ImageDraw, pixels: int, rng: Random) -> Shapes:
    """A slice of a head with a bright tumour in grey swollen tissue."""
    _fill(draw, pixels, _ring(rng, 0.5, 0.5, 0.45, 0.015, 1.08), 150)
    _fill(draw, pixels, _ring(rng, 0.5, 0.5, 0.415, 0.02, 1.08), 76)
    for side in (-1, 1):
        _fill(draw, pixels, _ring(rng, 0.5 + side * 0.06, 0.47, 0.045, 0.1, 2.2), 30)
    side = rng.choice((-1, 1))
    x, y = 0.5 + side * rng.uniform(0.14, 0.19), rng.uniform(0.36, 0.64)
    radius = rng.uniform(0.15, 0.19)
    return (_ring(rng, x, y, radius * rng.uniform(0.48, 0.58), 0.1), _ring(rng, x, y, radius, 0.12))


def _prostate(draw: ImageDraw.ImageDraw, pixels: int, rng: Random) -> Shapes:
    """A slice of the pelvis: a darker round zone lying in a brighter one."""
    _fill(draw, pixels, _ring(rng, 0.5, 0.5, 0.5, 0.03, 0.86), 58)
    for side in (-1, 1):
        _fill(draw, pixels, _ring(rng, 0.5 + side * 0.36, 0.46, 0.11, 0.08, 1.2), 30)
    x, y = 0.5 + rng.uniform(-0.05, 0.05), 0.52 + rng.uniform(-0.05, 0.05)
    radius = rng.uniform(0.21, 0.26)
    inner = _ring(rng, x, y - radius * 0.16, radius * rng.uniform(0.62, 0.7), 0.05, 0.9)
    return inner, _ring(rng, x, y, radius, 0.03, 0.9)


SCANS: dict[str, Scan] = {
    one.name: one
    for one in (
        Scan("heart", "a <scan:scan> with [brighter] <cavity:cavity> encircled by [grey] "
             "<myocardium:myocardium>", ("cavity", "myocardium"), _heart, 222, 122),
        Scan("prostate", "a <scan:scan> with [round] <transition:transition> encircled by [circle] "
             "<peripheral:peripheral>", ("transition", "peripheral"), _prostate, 118, 196),
        Scan("brain", "a <scan:scan> with [round] <tumour:tumour> encircled by [circle] "
             "<edema:edema>", ("tumour", "edema"), _brain, 226, 142),
    )
}  # fmt: skip


def _texture(rng: Random, pixels: int) -> np.ndarray:
    """Grain that looks the same at every size."""
    noise = np.frombuffer(rng.randbytes(64 * 64), np.uint8).reshape(64, 64)
    soft = Image.fromarray(noise).filter(ImageFilter.BoxBlur(1))
    grain = np.asarray(soft.resize((pixels, pixels), Image.Resampling.BICUBIC), np.float32)
    return (grain - 127.5) * 0.2


def draw_scan(name: str, size: int, seed: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """A scan of one kind: uint8 (size, size, 3), and the masks of its inner and its outer part."""
    scan, rng = SCANS[name], Random(f"scan:{name}:{seed}")
    factor = supersampling(size)
    pixels = size * factor
    image, labels = Image.new("L", (pixels, pixels), 10), Image.new("L", (pixels, pixels))
    draw, mark = ImageDraw.Draw(image), ImageDraw.Draw(labels)
    inner, outer = scan.draw(draw, pixels, rng)
    for shape, tone, label in ((outer, scan.outer, 2), (inner, scan.inner, 1)):
        _fill(draw, pixels, shape, tone + rng.randint(-8, 8))
        _fill(mark, pixels, shape, label)
    grey = np.asarray(image.reduce(factor), np.float32)
    grey = np.clip(grey + _texture(rng, size) * (grey > 16), 0, 255).astype(np.uint8)
    cover = np.asarray(labels).reshape(size, factor, size, factor)
    half = factor**2 / 2
    first = (cover == 1).sum((1, 3)) >= half
    second = ((cover == 2).sum((1, 3)) >= half) & ~first
    return np.repeat(grey[:, :, None], 3, 2), (first, second)
