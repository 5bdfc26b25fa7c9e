"""Places: simple backgrounds that leave the stage to the objects. One place is one function."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ldm.data.playroom.canvas import Canvas
from ldm.data.playroom.colours import COLOURS, INK, RGB, WHITE, mix

Draw = Callable[[Canvas, Random, RGB | None], float]


@dataclass(frozen=True)
class Place:
    """A background: how captions speak of it, the word for its ground, and how it is drawn.

    `draw(canvas, rng, ground)` paints it (in a given ground colour or its own) and returns the
    height at which the ground begins.
    """

    name: str
    phrases: tuple[str, ...]
    ground: str
    draw: Draw
    dark: bool = False


PLACES: dict[str, Place] = {}


def place(*phrases: str, ground: str, dark: bool = False) -> Callable[[Draw], Draw]:
    """Registers a drawing function as the place named like it (underscores become spaces)."""

    def register(draw: Draw) -> Draw:
        name = draw.__name__.replace("_", " ")
        PLACES[name] = Place(name, phrases, ground, draw, dark)
        return draw

    return register


def get_place(name: str) -> Place:
    """The place called `name`. Raises ValueError listing the places when there is none."""
    if name not in PLACES:
        raise ValueError(f"no place is called {name!r}; accepted are {', '.join(PLACES)}")
    return PLACES[name]


def _cloud(canvas: Canvas, x: float, y: float, size: float, fill: RGB = WHITE) -> None:
    canvas.oval(x, y, size, size * 0.32, fill)
    canvas.oval(x - size * 0.3, y + size * 0.22, size * 0.42, size * 0.34, fill)
    canvas.oval(x + size * 0.25, y + size * 0.26, size * 0.5, size * 0.42, fill)


@place("on the grass", "in the park", "on grass", ground="grass")
def grass(canvas: Canvas, rng: Random, ground: RGB | None) -> float:
    """A meadow under a blue sky with a cloud or two."""
    horizon = rng.uniform(0.34, 0.42)
    green = ground or (132, 204, 92)
    canvas.gradient(horizon - 0.1, 1, (214, 240, 252), (116, 192, 246))
    for side in rng.sample((0.2, 0.52, 0.84), rng.choice((1, 2))):
        _cloud(canvas, side, rng.uniform(0.82, 0.9), rng.uniform(0.1, 0.14))
    dip = rng.uniform(0.1, 0.9)
    canvas.oval(dip, horizon - 0.3, 1.3, 0.36, mix(green, WHITE, 0.22))
    canvas.gradient(0, horizon, mix(green, INK, 0.12), green)
    return horizon


@place("on the beach", "at the beach", ground="beach")
def beach(canvas: Canvas, rng: Random, ground: RGB | None) -> float:
    """Pale sand, a band of sea, a bright sky."""
    shore = rng.uniform(0.32, 0.38)
    sand = ground or (250, 224, 164)
    canvas.gradient(0.5, 1, (208, 240, 252), (94, 192, 246))
    canvas.gradient(shore, 0.56, (70, 190, 214), (28, 128, 196))
    canvas.gradient(0, shore, mix(sand, INK, 0.08), sand)
    foam = [(k / 4, shore + (0.018 if k % 2 else -0.004)) for k in range(-1, 6)]
    canvas.line(foam, 0.022, (246, 252, 252))
    x = rng.choice((0.16, 0.84))
    canvas.oval(x, 0.87, 0.075, 0.075, (255, 236, 130))
    return shore


@place("in the desert", "in a desert", ground="desert")
def desert(canvas: Canvas, rng: Random, ground: RGB | None) -> float:
    """Orange dunes under a warm evening sky."""
    horizon = rng.uniform(0.32, 0.4)
    sand = ground or (236, 178, 104)
    canvas.gradient(horizon - 0.08, 1, (255, 234, 190), (252, 176, 108))
    canvas.oval(rng.choice((0.18, 0.5, 0.82)), 0.8, 0.085, 0.085, (255, 250, 214))
    x = rng.uniform(0.1, 0.9)
    canvas.oval(x, horizon - 0.14, 0.55, 0.24, mix(sand, (206, 116, 70), 0.45))
    canvas.gradient(0, horizon, mix(sand, (206, 116, 70), 0.3), sand)
    canvas.curve(
        [(x - 0.5, 0.02), (x - 0.1, horizon * 0.55), (x + 0.5, 0.02)], mix(sand, WHITE, 0.12)
    )
    return horizon


@place("at night", "in the night", "under the moon", ground="hill", dark=True)
def night(canvas: Canvas, rng: Random, ground: RGB | None) -> float:
    """A blue night with a moon, a few stars and a quiet hill."""
    horizon = rng.uniform(0.32, 0.4)
    hill = ground or (62, 84, 118)
    canvas.gradient(horizon - 0.05, 1, (74, 84, 158), (22, 24, 70))
    for k in range(7):
        x, y = (k + rng.uniform(0.2, 0.8)) / 7, rng.uniform(0.62, 0.96)
        canvas.oval(x, y, 0.0095, 0.0095, (250, 246, 210))
    x = rng.choice((0.16, 0.84))
    canvas.oval(x, 0.84, 0.085, 0.085, (255, 246, 196))
    canvas.oval(x + 0.04, 0.865, 0.068, 0.068, (29, 31, 80))
    canvas.gradient(0, horizon, mix(hill, INK, 0.45), hill)
    return horizon


@place("on the table", "on a table", ground="tablecloth")
def table(canvas: Canvas, rng: Random, ground: RGB | None) -> float:
    """A table with a tablecloth in front of a plain wall."""
    edge = rng.uniform(0.36, 0.42)
    wall = rng.choice(((246, 232, 214), (226, 236, 226), (240, 224, 232), (228, 232, 244)))
    cloth = ground or rng.choice([COLOURS[c] for c in ("blue", "red", "green", "white", "pink")])
    canvas.gradient(edge, 1, mix(wall, WHITE, 0.2), mix(wall, INK, 0.08))
    tone = mix(cloth, WHITE, 0.32) if sum(cloth) < 640 else mix(cloth, INK, 0.06)
    canvas.gradient(0, edge, mix(cloth, INK, 0.06), cloth)
    for x in range(5):
        canvas.polygon([(0.5 + (x - 2.2) * 0.2, edge), (0.5 + (x - 1.8) * 0.2, edge),
                        (0.5 + (x - 1.8) * 0.36, 0), (0.5 + (x - 2.2) * 0.36, 0)],
                       tone)  # fmt: skip
    canvas.box(0, edge - 0.018, 1, edge, mix(cloth, WHITE, 0.5))
    return edge


@place("at times square", "in times square", ground="road", dark=True)
def times_square(canvas: Canvas, rng: Random, ground: RGB | None) -> float:
    """Five dusky towers with a few large glowing boards above a road."""
    horizon = rng.uniform(0.33, 0.39)
    road = ground or (142, 142, 152)
    canvas.gradient(horizon, 1, (172, 132, 196), (62, 62, 128))
    edges = [0, *(k / 5 + rng.uniform(-0.03, 0.03) for k in range(1, 5)), 1]
    boards = rng.sample(((255, 92, 140), (82, 214, 242), (255, 208, 74), (124, 226, 128),
                         (255, 138, 72)), 5)  # fmt: skip
    for k in range(5):
        x0, x1 = edges[k], edges[k + 1]
        top = (0.96, 0.78, 0.62, 0.8, 0.97)[k] + rng.uniform(-0.07, 0.03)
        canvas.box(x0, horizon, x1, top, ((78, 72, 124), (96, 84, 142))[k % 2])
        if k != 2 or rng.random() < 0.5:
            high = top - rng.uniform(0.05, 0.09)
            canvas.box(x0 + 0.035, high - 0.13, x1 - 0.035, high, boards[k])
    canvas.gradient(0, horizon, mix(road, INK, 0.22), road)
    canvas.box(0, horizon - 0.022, 1, horizon, mix(road, WHITE, 0.45))
    start = rng.uniform(-0.2, 0)
    for k in range(5):
        x = start + 0.28 * k
        canvas.box(x, 0.035, x + 0.14, 0.06, (244, 238, 214))
    return horizon


@place("in the snow", "on the snow", ground="snow")
def snow(canvas: Canvas, rng: Random, ground: RGB | None) -> float:
    """White hills, a pale sky, a few large flakes."""
    horizon = rng.uniform(0.34, 0.42)
    white = ground or (240, 246, 252)
    canvas.gradient(horizon - 0.1, 1, (206, 224, 240), (140, 176, 214))
    canvas.oval(rng.uniform(0.1, 0.9), horizon - 0.22, 0.7, 0.32, mix(white, (140, 176, 214), 0.3))
    canvas.gradient(0, horizon, mix(white, (120, 150, 200), 0.2), white)
    for k in range(8):
        x, y = (k + rng.uniform(0.1, 0.9)) / 8, rng.uniform(0.5, 0.97)
        canvas.oval(x, y, 0.015, 0.015, (252, 253, 255))
    return horizon


@place("in the room", "in a room", "at home", ground="floor")
def room(canvas: Canvas, rng: Random, ground: RGB | None) -> float:
    """A room: a coloured wall with a window or a picture, a wooden floor."""
    edge = rng.uniform(0.3, 0.36)
    wall = rng.choice(((244, 206, 190), (188, 220, 214), (212, 204, 236), (246, 226, 170)))
    wood = ground or (196, 142, 98)
    canvas.gradient(edge, 1, mix(wall, WHITE, 0.15), wall)
    x = rng.choice((0.06, 0.68))
    canvas.box(x, 0.62, x + 0.26, 0.92, WHITE)
    canvas.box(x + 0.025, 0.645, x + 0.235, 0.895, (168, 216, 246))
    canvas.box(x + 0.12, 0.645, x + 0.14, 0.895, WHITE)
    canvas.gradient(0, edge, mix(wood, INK, 0.14), wood)
    for y in (0.09, 0.2):
        canvas.box(0, y, 1, y + 0.01, mix(wood, INK, 0.2))
    canvas.box(0, edge - 0.012, 1, edge + 0.022, (250, 244, 236))
    return edge


BACKDROPS: tuple[RGB, ...] = (
    (222, 234, 242), (244, 232, 214), (226, 240, 222), (244, 224, 228), (232, 228, 244),
)  # fmt: skip


def backdrop(canvas: Canvas, rng: Random, ground: RGB | None) -> float:
    """What is behind objects that are in no particular place: plain pale paper."""
    tone = rng.choice(BACKDROPS)
    canvas.gradient(0.3, 1, mix(tone, WHITE, 0.35), tone)
    canvas.gradient(0, 0.3, mix(tone, INK, 0.2), mix(tone, INK, 0.12))
    return 0.3


NOWHERE = Place("nowhere", (), "floor", backdrop)
