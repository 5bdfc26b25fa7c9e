"""Things that move, things that stand in a landscape."""

from ldm.data.playroom.colours import INK, WHITE, mix
from ldm.data.playroom.pen import Pen, arch
from ldm.data.playroom.things import thing

GLASS = (176, 220, 244)
RUBBER = (48, 46, 54)
TRUNK = (132, 88, 56)


def _wheel(pen: Pen, x: float, y: float, r: float) -> None:
    pen.oval(x, y, r, r, RUBBER)
    pen.oval(x, y, r * 0.52, r * 0.52, (206, 210, 216))
    pen.oval(x, y, r * 0.2, r * 0.2, RUBBER)


@thing(
    "skateboard",
    "board",
    kind="toy",
    extent=(1.2, 0.42),
    colour="red",
    seat=0.32,
    rolls=True,
    sinks=0.1,
)
def skateboard(pen: Pen) -> None:
    """A skateboard from the side: a deck with raised ends and two pairs of wheels."""
    for x in (-0.33, 0.33):
        pen.polygon([(x - 0.1, 0.22), (x + 0.1, 0.22), (x + 0.05, 0.1), (x - 0.05, 0.1)],
                    (150, 156, 166))  # fmt: skip
    pen.stroke([(-0.55, 0.34), (-0.43, 0.25), (0.43, 0.25), (0.55, 0.34)], 0.11, "dark")
    pen.stroke([(-0.55, 0.355), (-0.43, 0.27), (0.43, 0.27), (0.55, 0.355)], 0.08, "base")
    pen.coat()
    for x in (-0.33, 0.33):
        _wheel(pen, x, 0.11, 0.11)


@thing("taxi", "cab", "car", kind="vehicle", extent=(1.24, 0.78), colour="yellow", seat=0.66,
       rolls=True)  # fmt: skip
def taxi(pen: Pen) -> None:
    """A taxi from the side, with a lit sign and a chequered band."""
    pen.box(-0.13, 0.64, 0.13, 0.78, (255, 250, 224), 0.03)
    pen.box(-0.09, 0.675, 0.09, 0.74, INK)
    pen.polygon([(-0.41, 0.38), (-0.29, 0.68), (0.27, 0.68), (0.43, 0.38)], "base")
    pen.box(-0.6, 0.12, 0.6, 0.44, "dark", 0.12)
    pen.box(-0.6, 0.18, 0.6, 0.44, "base", 0.12)
    pen.coat()
    pen.polygon([(-0.32, 0.42), (-0.235, 0.62), (-0.03, 0.62), (-0.03, 0.42)], GLASS)
    pen.polygon([(0.04, 0.42), (0.04, 0.62), (0.225, 0.62), (0.335, 0.42)], GLASS)
    pen.polygon([(0.1, 0.42), (0.19, 0.62), (0.225, 0.62), (0.16, 0.42)], WHITE)
    pen.box(-0.6, 0.27, 0.6, 0.34, WHITE)
    for k in range(7):
        pen.box(-0.585 + 0.17 * k, 0.27, -0.5 + 0.17 * k, 0.34, INK)
    pen.oval(0.55, 0.385, 0.05, 0.045, (255, 246, 190))
    for x in (-0.34, 0.34):
        _wheel(pen, x, 0.15, 0.155)


@thing("boat", "sailboat", kind="vehicle", extent=(1.1, 1.0), colour="blue", sinks=0.1)
def boat(pen: Pen) -> None:
    """A little sailing boat."""
    pen.box(-0.05, 0.2, 0.0, 1.0, TRUNK)
    pen.polygon([(0.03, 0.33), (0.03, 0.98), (0.46, 0.33)], (250, 246, 236))
    pen.polygon([(0.03, 0.33), (0.03, 0.44), (0.385, 0.44), (0.46, 0.33)], (222, 216, 214))
    pen.polygon([(-0.09, 0.33), (-0.09, 0.86), (-0.38, 0.33)], (236, 96, 88))
    pen.curve(
        [(-0.54, 0.3), (0, 0.275), (0.54, 0.3), (0.38, 0.03), (0, 0.0), (-0.38, 0.03)], "dark"
    )
    pen.curve([(-0.54, 0.3), (0, 0.28), (0.52, 0.3), (0.4, 0.13), (0, 0.1), (-0.4, 0.13)], "base")
    pen.coat()


@thing("rocket", "rocket ship", kind="vehicle", extent=(0.74, 1.1), colour="silver")
def rocket(pen: Pen) -> None:
    """A round-bellied rocket with fins, a porthole and a flame."""
    pen.curve([(-0.12, 0.2), (0.12, 0.2), (0.08, 0.06), (0, 0.0), (-0.08, 0.06)], (255, 176, 32))
    for side in (-1, 1):
        pen.polygon([(side * 0.16, 0.48), (side * 0.36, 0.26), (side * 0.34, 0.1),
                     (side * 0.14, 0.24)], (226, 60, 60))  # fmt: skip
    pen.curve([(0, 1.1), (0.2, 0.82), (0.22, 0.44), (0.13, 0.18), (-0.13, 0.18), (-0.22, 0.44),
               (-0.2, 0.82)], "dark")  # fmt: skip
    pen.curve([(-0.02, 1.08), (0.13, 0.82), (0.15, 0.44), (0.07, 0.19), (-0.13, 0.19),
               (-0.22, 0.44), (-0.2, 0.82)], "base")  # fmt: skip
    pen.coat()
    pen.curve([(0, 1.1), (0.17, 0.87), (0, 0.84), (-0.17, 0.87)], (226, 60, 60))
    pen.oval(0, 0.64, 0.12, 0.12, (70, 80, 100))
    pen.oval(0, 0.64, 0.085, 0.085, GLASS)


@thing("house", kind="building", extent=(1.0, 1.0), colour="cream", loose=False, plural="houses")
def house(pen: Pen) -> None:
    """A small house with a gable roof, a door and two windows."""
    pen.box(0.2, 0.7, 0.32, 0.96, (176, 96, 80))
    pen.box(-0.4, 0, 0.4, 0.56, "base")
    pen.box(0.24, 0, 0.4, 0.56, "dark")
    pen.coat()
    pen.polygon([(-0.5, 0.52), (0, 1.0), (0.5, 0.52)], (204, 78, 64))
    pen.polygon([(-0.5, 0.52), (0.5, 0.52), (0.43, 0.59), (-0.43, 0.59)], (160, 54, 58))
    pen.box(-0.1, 0, 0.1, 0.33, (122, 76, 56), 0.05)
    pen.oval(0.055, 0.16, 0.02, 0.02, (250, 204, 40))
    for x in (-0.25, 0.25):
        pen.box(x - 0.09, 0.2, x + 0.09, 0.4, WHITE)
        pen.box(x - 0.065, 0.225, x + 0.065, 0.375, GLASS)


@thing("tree", kind="plant", extent=(0.9, 1.1), colour="leaf", loose=False)
def tree(pen: Pen) -> None:
    """A leafy round tree."""
    pen.polygon([(-0.09, 0), (-0.06, 0.5), (0.06, 0.5), (0.09, 0)], TRUNK)
    pen.polygon([(0.02, 0), (0.02, 0.5), (0.06, 0.5), (0.09, 0)], mix(TRUNK, INK, 0.3))
    for x, y, r in ((0.22, 0.56, 0.2), (-0.22, 0.56, 0.21), (0.0, 0.76, 0.31)):
        pen.oval(x, y, r, r, "dark")
    for x, y, r in ((0.2, 0.6, 0.16), (-0.23, 0.59, 0.18), (-0.02, 0.79, 0.275)):
        pen.oval(x, y, r, r, "base")
    pen.coat()
    for x, y, r in ((-0.12, 0.92, 0.07), (0.1, 0.8, 0.05), (-0.24, 0.66, 0.05)):
        pen.oval(x, y, r * 1.2, r, "light")


@thing("cactus", kind="plant", extent=(0.84, 1.04), colour="green", sinks=0.18)
def cactus(pen: Pen) -> None:
    """A tall cactus with two arms and a pink flower."""
    for arm in (
        [(-0.1, 0.34), (-0.3, 0.36), (-0.32, 0.62)],
        [(0.1, 0.46), (0.29, 0.48), (0.31, 0.74)],
    ):
        pen.limb(arm, 0.17)
    pen.stroke([(0, 0.12), (0, 0.86)], 0.28, "dark")
    pen.box(-0.14, 0, 0.14, 0.3, "dark")
    pen.stroke([(-0.025 * pen.side, 0.13), (-0.025 * pen.side, 0.86)], 0.22, "base")
    pen.box(-0.025 * pen.side - 0.11, 0, -0.025 * pen.side + 0.11, 0.3, "base")
    pen.coat()
    for x in (-0.065, 0.045):
        for k in range(5):
            y = 0.16 + 0.16 * k + (0.08 if x > 0 else 0)
            pen.stroke([(x, y), (x, y + 0.045)], 0.026, "pale")
    for dx, dy in ((-0.07, 0.97), (0.07, 0.97), (0, 1.0)):
        pen.oval(dx, dy, 0.065, 0.055, (244, 96, 160))
    pen.oval(0, 0.965, 0.035, 0.035, (255, 222, 90))


@thing("umbrella", kind="thing", extent=(1.0, 0.98), colour="purple")
def umbrella(pen: Pen) -> None:
    """An open umbrella on its curved handle."""
    pen.stroke([(0, 0.9), (0, 0.1), *arch(0.08, 0.1, 0.08, 0.08, 180, 350)], 0.045, (110, 84, 70))
    pen.stroke([(0, 0.9), (0, 0.97)], 0.04, (110, 84, 70))
    dome = arch(0, 0.46, 0.5, 0.46, 0, 180)
    scallops = [p for x in (-0.333, 0.0, 0.333) for p in arch(x, 0.46, 0.167, 0.1, 180, 0)]
    pen.polygon(dome + scallops, "base")
    pen.polygon(arch(0, 0.46, 0.5, 0.46, 0, 90) + arch(0, 0.46, 0.17, 0.46, 90, 0)
                + arch(0.333, 0.46, 0.167, 0.1, 180, 0), "dark")  # fmt: skip
    pen.polygon(arch(0, 0.46, 0.17, 0.46, 90, 180)
                + arch(0, 0.46, 0.0, 0.46, 180, 90), "light")  # fmt: skip
    pen.coat()
