"""What can happen to an object (Lego's concepts): sheets that are frozen, molten or crumpled.

The states of a face and of arms are drawn by the pen; walking on a rope is a matter of placing.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

from ldm.data.playroom.colours import INK, WHITE
from ldm.data.playroom.pen import Pen
from ldm.data.playroom.things import Thing

CHAR = np.array((44, 32, 30), np.float32)
ICE = (150, 212, 244)


def draw_thing(thing: Thing, pen: Pen) -> Image.Image:
    """The sheet of one object in the state that its pen carries."""
    thing.draw(pen)
    if not thing.face:
        _lend_a_face(thing, pen)
    sheet = pen.finish()
    change = {"frozen in ice": _freeze, "burnt and melted": _melt, "crumpled": _crumple}
    if pen.state in change:
        sheet = change[pen.state](sheet, pen)
    return sheet


def _lend_a_face(thing: Thing, pen: Pen) -> None:
    """Face and arm states of things that have neither."""
    width, height = thing.extent
    radius = 0.36 * min(width, height)
    if pen.state in ("smiley face", "closed eyes"):
        pen.face(0, height / 2, max(radius, 0.16), gap=0.5, eye=0.26)
    if pen.state == "arms raised":
        for side in (-1, 1):
            x, y = side * width * 0.36, height * 0.5
            pen.stroke([(x, y), (side * (width / 2 + 0.06), y + 0.3)], 0.07, INK)
            pen.oval(side * (width / 2 + 0.06), y + 0.31, 0.065, 0.065, "light")


def _grid(sheet: Image.Image, pen: Pen) -> tuple[np.ndarray, np.ndarray]:
    """Own units (x, y) of every pixel of a sheet."""
    width, height = sheet.size
    x = (np.arange(width, dtype=np.float32) + 0.5 - pen.origin[0]) / pen.scale
    y = (pen.origin[1] - np.arange(height, dtype=np.float32) - 0.5) / pen.scale
    return np.meshgrid(x, y)


def _look_up(pixels: np.ndarray, pen: Pen, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The pixels that lie at own coordinates (x, y); transparent outside."""
    height, width = pixels.shape[:2]
    column = np.floor(x * pen.scale + pen.origin[0]).astype(np.int32)
    row = np.floor(pen.origin[1] - y * pen.scale).astype(np.int32)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    found = pixels[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
    return found * inside[..., None].astype(found.dtype)


def _melt(sheet: Image.Image, pen: Pen) -> Image.Image:
    """Sagging, leaning, run out into a puddle, and charred."""
    rng = pen.rng
    phase, lean = rng.uniform(0, 6.28), rng.choice((-1, 1)) * 0.07
    x, y = _grid(sheet, pen)
    sag = 1.28 + 0.15 * np.sin(9 * x + phase) + 0.07 * np.sin(21 * x + 2 * phase)
    spread = 1 + 0.3 * np.exp(-np.maximum(y, 0) / 0.12)
    source_x = x / spread + lean * np.sin(3.2 * y + phase)
    pixels = _look_up(np.asarray(sheet), pen, source_x, y * sag)
    out = pixels.copy()
    burnt = 0.5 + 0.16 * np.sin(7 * x + 5 * y + phase)[..., None]
    out[..., :3] = pixels[..., :3] * (1 - burnt) + CHAR * burnt
    melted = Image.new("RGBA", sheet.size)
    tone = tuple(int(v) for v in 0.45 * np.array(pen.paint.base) + 0.55 * CHAR)
    draw = ImageDraw.Draw(melted)
    half = min(pen.width / 2 + 0.1, pen.width * 0.62)
    for dx, share in ((0, 1.0), (0.4, 0.6), (-0.45, 0.55)):
        cx, a, b = (
            pen.origin[0] + dx * half * pen.scale,
            half * share * pen.scale,
            0.055 * pen.scale,
        )
        cy = pen.origin[1] - 0.02 * pen.scale
        draw.ellipse((cx - a, cy - b, cx + a, cy + b), (*tone, 255))
    melted.alpha_composite(Image.fromarray(out))
    draw = ImageDraw.Draw(melted)
    for _ in range(4):
        cx = pen.origin[0] + rng.uniform(-0.3, 0.3) * pen.width * pen.scale
        cy, r = pen.origin[1] - rng.uniform(0.0, 0.16) * pen.scale, 0.022 * pen.scale
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), (255, 138, 40, 255))
    return melted


def _crumple(sheet: Image.Image, pen: Pen) -> Image.Image:
    """Pressed together like paper: bent edges and hard folds in light and shade."""
    rng = pen.rng
    x, y = _grid(sheet, pen)
    turn, phase = rng.uniform(0.5, 1.1), rng.uniform(0, 6.28)
    u = x * math.cos(turn) + y * math.sin(turn)
    v = y * math.cos(turn) - x * math.sin(turn)

    def fold(t: np.ndarray) -> np.ndarray:
        return np.abs(t - np.rint(t)) * 2 - 0.5

    source_x = x * 1.08 + 0.1 * fold(v * 2.3 + phase) + 0.05 * fold(u * 4.1)
    source_y = y * 1.12 + 0.1 * fold(u * 2.1 + phase) + 0.05 * fold(v * 3.7)
    out = _look_up(np.asarray(sheet), pen, source_x, np.maximum(source_y, y * 0.2)).copy()
    u, v = u * 4.2 + phase, v * 4.6 + phase
    floor_u, floor_v = np.floor(u), np.floor(v)
    cells = floor_u * 7 + floor_v * 13
    tilt = np.where(u - floor_u > v - floor_v, 3, 0)
    shade = (np.sin(cells * 2.7 + tilt) * 0.3)[..., None]
    colour = out[..., :3].astype(np.float32)
    lit = np.where(shade > 0, colour + (255 - colour) * shade * 0.9, colour * (1 + shade))
    out[..., :3] = lit
    return Image.fromarray(out)


def _freeze(sheet: Image.Image, pen: Pen) -> Image.Image:
    """Inside a block of clear ice with a bright edge, cracks and bubbles."""
    s, (ox, oy), rng = pen.scale, pen.origin, pen.rng
    half, top = pen.width / 2 + 0.09, pen.height + 0.09

    def at(x: float, y: float) -> tuple[float, float]:
        return ox + x * s, oy - y * s

    block = Image.new("RGBA", sheet.size)
    body = ImageDraw.Draw(block)
    left, high = at(-half, top)
    right, low = at(half, -0.01)
    body.rounded_rectangle((left, high, right, low), 0.08 * s, (*ICE, 205))
    block.alpha_composite(sheet)
    glass = Image.new("RGBA", sheet.size)
    draw = ImageDraw.Draw(glass)
    draw.rounded_rectangle((left, high, right, low), 0.08 * s, (*ICE, 96), (232, 248, 255, 235),
                           max(1, round(0.035 * s)))  # fmt: skip
    draw.polygon([at(half - 0.1, 0.02), at(half - 0.02, 0.06), at(half - 0.02, top - 0.06),
                  at(half - 0.1, top - 0.12)], (104, 172, 220, 130))  # fmt: skip
    for x, thick in ((-0.62, 0.1), (-0.34, 0.045)):
        a = x * half
        draw.polygon([at(a, top - 0.07), at(a + thick, top - 0.07), at(a + thick - 0.16, top - 0.5),
                      at(a - 0.16, top - 0.5)], (*WHITE, 170))  # fmt: skip
    x, y = rng.uniform(0.0, 0.5) * half, 0.1 * top
    crack = [at(x, y), at(x + 0.08, y + 0.12), at(x + 0.03, y + 0.2), at(x + 0.13, y + 0.34)]
    draw.line(crack, (244, 252, 255, 220), max(1, round(0.022 * s)))
    for _ in range(4):
        cx, cy = at(rng.uniform(-0.8, 0.8) * half, rng.uniform(0.1, 0.9) * top)
        r = rng.uniform(0.016, 0.03) * s
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), (240, 250, 255, 200))
    block.alpha_composite(glass)
    return block
