"""The canvas: a whole picture at several times its final size, and a map of what is where."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ldm.data.playroom.colours import RGB
from ldm.data.playroom.pen import Point, rounded

GROUND = 255


def supersampling(size: int) -> int:
    """How many times larger than `size` a picture is drawn before it is reduced."""
    return 4 if size <= 80 else 3 if size <= 160 else 2


class Canvas:
    """A square picture in unit coordinates: x to the right, y upwards, both in [0, 1]."""

    def __init__(self, size: int):
        self.size = size
        self.factor = supersampling(size)
        self.pixels = size * self.factor
        self.image = Image.new("RGB", (self.pixels, self.pixels))
        self._draw = ImageDraw.Draw(self.image)
        self.labels = Image.new("L", (self.pixels, self.pixels))

    def _at(self, x: float, y: float) -> Point:
        return x * self.pixels, (1 - y) * self.pixels

    def gradient(self, low: float, high: float, bottom: RGB, top: RGB) -> None:
        """Fills the band between two heights with a vertical blend of two colours."""
        first, last = round((1 - high) * self.pixels), round((1 - low) * self.pixels)
        rows = max(last - first, 1)
        blend = np.linspace(np.array(top, np.float32), np.array(bottom, np.float32), rows)
        column = Image.fromarray((blend + 0.5).astype(np.uint8)[:, None, :])
        self.image.paste(column.resize((self.pixels, rows), Image.Resampling.NEAREST), (0, first))

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: RGB) -> None:
        """A filled rectangle."""
        left, top = (round(v) for v in self._at(x0, y1))
        right, bottom = (round(v) for v in self._at(x1, y0))
        corners = (left, top, max(right - 1, left), max(bottom - 1, top))
        self._draw.rectangle(corners, fill)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: RGB) -> None:
        """A filled ellipse."""
        (cx, cy), a, b = self._at(x, y), rx * self.pixels, ry * self.pixels
        self._draw.ellipse((cx - a, cy - b, cx + a, cy + b), fill)

    def polygon(self, points: Sequence[Point], fill: RGB) -> None:
        """A filled polygon."""
        self._draw.polygon([self._at(x, y) for x, y in points], fill)

    def curve(self, points: Sequence[Point], fill: RGB) -> None:
        """A filled shape with a smooth edge through the points."""
        self.polygon(rounded(points).tolist(), fill)

    def line(self, points: Sequence[Point], width: float, fill: RGB) -> None:
        """A line of even width."""
        path = [self._at(x, y) for x, y in points]
        self._draw.line(path, fill, max(1, round(width * self.pixels)), joint="curve")

    def shadow(self, x: float, y: float, rx: float, ry: float, strength: float = 0.2) -> None:
        """A soft dark ellipse on the ground, under what stands there."""
        (cx, cy), a, b = self._at(x, y), rx * self.pixels, ry * self.pixels
        size = (max(1, round(2 * a)), max(1, round(2 * b)))
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).ellipse((0, 0, size[0] - 1, size[1] - 1), round(255 * strength))
        self.image.paste((24, 16, 48), (round(cx - a), round(cy - b)), mask)

    def label_ground(self, top: float) -> None:
        """Marks everything below `top` as ground."""
        first = round((1 - top) * self.pixels)
        self.labels.paste(GROUND, (0, first, self.pixels, self.pixels))

    def stamp(
        self, sheet: Image.Image, origin: Point, x: float, y: float, label: int | None
    ) -> int:
        """Pastes an object's sheet with its origin at (x, y); returns the pixels it covers.

        Without a label, nothing is noted of where it is.
        """
        px, py = self._at(x, y)
        corner = (round(px - origin[0]), round(py - origin[1]))
        self.image.paste(sheet, corner, sheet)
        if label is None:
            return 0
        solid = sheet.getchannel("A").point(_SOLID)
        self.labels.paste(label, corner, solid)
        return solid.histogram()[255]

    def picture(self) -> np.ndarray:
        """The picture at its final size, uint8 (size, size, 3)."""
        return np.asarray(self.image.reduce(self.factor))

    def masks(self, labels: Sequence[int]) -> list[np.ndarray]:
        """The visible pixels of each label at the final size, bool (size, size), disjoint.

        A pixel belongs to a label that covers at least half of it.
        """
        full = np.asarray(self.labels)
        shape = (self.size, self.factor, self.size, self.factor)
        half = self.factor**2 / 2
        covers = [(full == label).reshape(shape).sum((1, 3)) for label in labels]
        taken = np.zeros((self.size, self.size), bool)
        masks = []
        for cover in covers:
            mask = (cover >= half) & ~taken
            taken |= mask
            masks.append(mask)
        return masks

    def visible(self, label: int) -> int:
        """How many drawn pixels of a label nothing has covered since."""
        return self.labels.histogram()[label]


_SOLID = [255 if value >= 96 else 0 for value in range(256)]
