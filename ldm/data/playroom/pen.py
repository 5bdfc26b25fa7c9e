"""The pen: draws one object on a transparent sheet of its own, in the object's own units.

x runs from the middle of the object, y upwards from the ground; one unit is the height of a
typical object. Light always falls from the upper left, also on a mirrored object.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from ldm.data.playroom.colours import BLUSH, INK, RGB, WHITE, Paint

PAD = 0.14
Point = tuple[float, float]
Fill = str | RGB


def _basis(steps: int) -> np.ndarray:
    t = np.arange(steps)[:, None] / steps
    powers = np.concatenate([np.ones_like(t), t, t**2, t**3], 1)
    return powers @ (
        np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]], float) / 2
    )


_BASIS = _basis(7)
_TURN = np.linspace(0, 2 * math.pi, 49)[:-1]
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], 1)


def rounded(points: Sequence[Point]) -> np.ndarray:
    """A smooth closed curve (Catmull-Rom) through the points, as a fine polygon (n, 2)."""
    return _rounded(tuple(points))


@lru_cache(maxsize=1024)
def _rounded(points: tuple[Point, ...]) -> np.ndarray:
    p = np.asarray(points, float)
    window = np.stack([np.roll(p, 1, 0), p, np.roll(p, -1, 0), np.roll(p, -2, 0)], 1)
    return np.einsum("sk,pkc->psc", _BASIS, window).reshape(-1, 2)


def arch(x: float, y: float, rx: float, ry: float, start: float, end: float) -> list[Point]:
    """Points along an ellipse from one angle to another (degrees, anticlockwise from the right)."""
    return list(_arch(x, y, rx, ry, start, end))


@lru_cache(maxsize=1024)
def _arch(x: float, y: float, rx: float, ry: float, start: float, end: float) -> tuple[Point, ...]:
    count = max(4, int(abs(end - start) / 9))
    turns = [math.radians(start + (end - start) * k / count) for k in range(count + 1)]
    return tuple((x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns)


class Pen:
    """Draws shapes of one object; knows its colour, adjective, state, pose and light.

    Fills are tones of the object's paint ("base", "light", "dark", "deep", "pale") or RGB.
    """

    def __init__(
        self,
        extent: tuple[float, float],
        scale: float,
        paint: Paint,
        *,
        adjective: str | None = None,
        state: str | None = None,
        mirror: bool = False,
        tilt: float = 0.0,
        rng: Random | None = None,
    ):
        self.width, self.height = extent
        self.scale = scale
        self.paint = paint
        self.adjective = adjective
        self.state = state
        self.side = -1 if mirror else 1
        self.tilt = math.radians(tilt)
        self.rng = rng or Random(0)
        size = (
            math.ceil((self.width + 2 * PAD) * scale),
            math.ceil((self.height + 2 * PAD) * scale),
        )
        self.layer = Image.new("RGBA", size)
        self._draw = ImageDraw.Draw(self.layer)
        self.origin = (size[0] / 2, size[1] - PAD * scale)
        cos, sin = math.cos(self.tilt) * scale, math.sin(self.tilt) * scale
        self._rows = ((self.side * cos, -self.side * sin), (-sin, -cos))
        self._turn = np.array(self._rows)
        self._coated = False

    def _fill(self, fill: Fill) -> RGB:
        return getattr(self.paint, fill) if isinstance(fill, str) else fill

    def _at(self, x: float, y: float) -> Point:
        (ax, bx), (ay, by) = self._rows
        return self.origin[0] + x * ax + y * ay, self.origin[1] + x * bx + y * by

    def _all(self, points: Sequence[Point] | np.ndarray) -> list:
        """Pixel positions of points, as the flat or paired list that Pillow takes."""
        if len(points) > 10:
            return (np.asarray(points) @ self._turn + self.origin).ravel().tolist()
        (ax, bx), (ay, by) = self._rows
        ox, oy = self.origin
        return [(ox + x * ax + y * ay, oy + x * bx + y * by) for x, y in points]

    def polygon(self, points: Sequence[Point], fill: Fill = "base") -> None:
        """A filled shape with straight edges."""
        self._draw.polygon(self._all(points), fill=self._fill(fill))

    def curve(self, points: Sequence[Point], fill: Fill = "base") -> None:
        """A filled shape with a smooth edge through the points."""
        self._draw.polygon(self._all(rounded(points)), fill=self._fill(fill))

    def oval(
        self, x: float, y: float, rx: float, ry: float, fill: Fill = "base", turn: float = 0.0
    ) -> None:
        """A flat ellipse, turned by `turn` degrees."""
        if rx == ry or (turn == 0 and self.tilt == 0):
            (cx, cy), a, b = self._at(x, y), rx * self.scale, ry * self.scale
            self._draw.ellipse((cx - a, cy - b, cx + a, cy + b), fill=self._fill(fill))
            return
        c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        shape = _CIRCLE @ np.array([[rx * c, rx * s], [-ry * s, ry * c]]) + (x, y)
        self._draw.polygon(self._all(shape), fill=self._fill(fill))

    def disc(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        tones: tuple[Fill, Fill] = ("base", "dark"),
        turn: float = 0.0,
    ) -> None:
        """A rounded body part: shade below, lit from the upper left; tufted when fluffy."""
        lit, shade = tones
        if self.adjective == "fluffy" and max(rx, ry) > 0.15:
            self._tufts(x, y, rx, ry, tones)
            return
        self.oval(x, y, rx, ry, shade, turn)
        self.oval(x - 0.09 * rx * self.side, y + 0.1 * ry, 0.9 * rx, 0.9 * ry, lit, turn)

    def _tufts(self, x: float, y: float, rx: float, ry: float, tones: tuple[Fill, Fill]) -> None:
        count = max(9, round(34 * (rx + ry)))
        wave = 1.0 + 0.17 * np.abs(np.sin(_FINE * count / 2))[:, None]
        for share, shift, fill in ((1.0, 0.0, tones[1]), (0.88, 0.09, tones[0])):
            shape = _FINE_CIRCLE * wave * (rx * share * 0.97, ry * share * 0.97)
            shape += np.array((x - shift * rx * self.side, y + shift * ry))
            self._draw.polygon(self._all(shape), fill=self._fill(fill))

    def box(
        self, x0: float, y0: float, x1: float, y1: float, fill: Fill = "base", radius: float = 0.0
    ) -> None:
        """A filled rectangle, its corners rounded by `radius`."""
        r = min(radius, abs(x1 - x0) / 2, abs(y1 - y0) / 2)
        if r <= 0:
            self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill)
            return
        points = (
            arch(x1 - r, y1 - r, r, r, 0, 90)
            + arch(x0 + r, y1 - r, r, r, 90, 180)
            + arch(x0 + r, y0 + r, r, r, 180, 270)
            + arch(x1 - r, y0 + r, r, r, 270, 360)
        )
        self.polygon(points, fill)

    def stroke(self, points: Sequence[Point], width: float, fill: Fill = "base") -> None:
        """A line of even width with round ends and bends."""
        path, px = self._all(points), max(1, round(width * self.scale))
        colour = self._fill(fill)
        self._draw.line(path, fill=colour, width=px, joint="curve")
        if px > 2:
            r = width * self.scale / 2
            for x, y in (self._at(*points[0]), self._at(*points[-1])):
                self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def limb(self, points: Sequence[Point], width: float) -> None:
        """An arm or leg: a thick line with a shaded lower edge."""
        self.stroke(points, width, "dark")
        shift = 0.1 * width
        self.stroke([(x - shift * self.side, y + shift) for x, y in points], width * 0.8, "base")

    def arms(self, x: float, y: float, reach: float = 0.2, width: float = 0.15) -> None:
        """Two arms from shoulders at (+-x, y), hanging; raised in the state "arms raised"."""
        for side in (-1, 1):
            if self.state == "arms raised":
                end = (side * (x + reach * 0.8), y + reach * 1.65)
            else:
                end = (side * (x + reach * 0.45), y - reach * 0.95)
            self.limb([(side * x, y), end], width)

    def coat(self) -> None:
        """Paints the adjective's pattern on everything drawn so far; details come after it."""
        self._coated = True
        painter = {
            "striped": self._stripes,
            "patterned": self._dots,
            "wooden": self._grain,
            "fluffy": self._fur,
        }.get(self.adjective or "")
        if painter is None:
            return
        mask = Image.new("L", self.layer.size)
        painter(ImageDraw.Draw(mask))
        mask = ImageChops.multiply(mask, self.layer.getchannel("A"))
        tone = {"wooden": self.paint.deep, "fluffy": self.paint.light}.get(
            self.adjective or "", self.paint.contrast
        )
        self.layer.paste((*tone, 255), (0, 0), mask)

    def _stripes(self, draw: ImageDraw.ImageDraw) -> None:
        height = self.layer.height
        step = 0.19 * self.scale
        for k in range(-6, 14):
            x = k * step
            draw.polygon(
                [(x, 0), (x + step / 2, 0), (x + step / 2 + height * 0.35, height),
                 (x + height * 0.35, height)],
                fill=255,
            )  # fmt: skip

    def _dots(self, draw: ImageDraw.ImageDraw) -> None:
        width, height = self.layer.size
        step, r = 0.2 * self.scale, 0.055 * self.scale
        for row in range(int(height / step) + 2):
            for column in range(int(width / step) + 2):
                x, y = (column + 0.5 * (row % 2)) * step, row * step
                draw.ellipse((x - r, y - r, x + r, y + r), fill=255)

    def _grain(self, draw: ImageDraw.ImageDraw) -> None:
        width, height = self.layer.size
        step = 0.13 * self.scale
        for k in range(int(height / step) + 2):
            wave = [
                (x * width / 8, k * step + math.sin(x * 1.1 + k * 2.3) * 0.025 * self.scale)
                for x in range(9)
            ]
            draw.line(wave, fill=150, width=max(1, round(0.025 * self.scale)))

    def _fur(self, draw: ImageDraw.ImageDraw) -> None:
        width, height = self.layer.size
        step, tip = 0.15 * self.scale, 0.05 * self.scale
        line = max(1, round(0.026 * self.scale))
        for row in range(int(height / step) + 1):
            for column in range(int(width / step) + 2):
                x, y = (column + 0.5 * (row % 2)) * step, row * step
                draw.line([(x - tip, y - tip), (x, y), (x + tip, y - tip)], 230, line)

    def finish(self) -> Image.Image:
        """The finished sheet: patterned (if nothing did so yet) and, if shiny, polished."""
        if not self._coated:
            self.coat()
        if self.adjective == "shiny":
            self._polish()
        return self.layer

    def _polish(self) -> None:
        width, height = self.layer.size
        mask = Image.new("L", self.layer.size)
        draw = ImageDraw.Draw(mask)
        for x, thick in ((0.3, 0.14), (0.52, 0.05)):
            a, b, lean = x * width, thick * width, 0.4 * width
            draw.polygon([(a + lean / 2, 0), (a + b + lean / 2, 0), (a + b - lean / 2, height),
                          (a - lean / 2, height)], fill=135)  # fmt: skip
        self.layer.paste(
            (*WHITE, 255), (0, 0), ImageChops.multiply(mask, self.layer.getchannel("A"))
        )

    def face(
        self,
        x: float,
        y: float,
        size: float,
        gap: float = 0.5,
        eye: float = 0.2,
        lift: float = 0.2,
        blush: bool = True,
    ) -> None:
        """Two eyes and rosy cheeks around (x, y); the face states change them.

        `size` is the radius of the face; gap, eye and lift are shares of it.
        """
        if self.state == "smiley face":
            self._smiley(x, y, size)
            return
        dx, ey, r = gap * size, y + lift * size, eye * size
        for side in (-1, 1):
            ex = x + side * dx
            if blush:
                self.oval(x + side * dx * 1.35, y - 0.2 * size, r * 0.85, r * 0.6, BLUSH)
            if self.state == "closed eyes":
                self.oval(ex, ey, r * 1.35, r * 1.2, "light")
                self.stroke(arch(ex, ey + r * 0.35, r * 1.25, r * 1.0, 200, 340), r * 0.62, INK)
            else:
                self.oval(ex, ey, r, r * 1.18, INK)
                self.oval(ex - 0.3 * r * self.side, ey + 0.42 * r, r * 0.38, r * 0.38, WHITE)

    def _smiley(self, x: float, y: float, size: float) -> None:
        s = size * 1.12
        self.oval(x, y, s, s, (226, 160, 20))
        self.oval(x - 0.06 * s * self.side, y + 0.06 * s, 0.93 * s, 0.93 * s, (255, 216, 48))
        for side in (-1, 1):
            self.oval(x + side * 0.36 * s, y + 0.26 * s, 0.13 * s, 0.2 * s, INK)
        self.stroke(arch(x, y - 0.02 * s, 0.55 * s, 0.5 * s, 200, 340), 0.13 * s, INK)


_FINE = np.linspace(0, 2 * math.pi, 145)[:-1]
_FINE_CIRCLE = np.stack([np.cos(_FINE), np.sin(_FINE)], 1)
