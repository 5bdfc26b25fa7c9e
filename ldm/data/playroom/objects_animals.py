"""Animals and toys with a face."""

from ldm.data.playroom.colours import INK, WHITE, mix
from ldm.data.playroom.pen import Pen
from ldm.data.playroom.things import thing

NOSE = (60, 40, 46)
BEAK = (250, 152, 36)
ROSE = (246, 160, 160)


@thing("teddy bear", "bear", "teddy", kind="toy", extent=(0.86, 1.02), colour="brown", face=True,
       arms=True, torso=(0.0, 0.33, 0.56), crown=(0.0, 0.92, 0.5))  # fmt: skip
def bear(pen: Pen) -> None:
    """A sitting teddy bear seen from the front."""
    for side in (-1, 1):
        pen.disc(side * 0.23, 0.94, 0.115, 0.105)
        pen.oval(side * 0.23, 0.94, 0.055, 0.05, "pale")
    pen.disc(0, 0.32, 0.28, 0.29)
    pen.arms(0.25, 0.42, 0.2, 0.15)
    for side in (-1, 1):
        pen.disc(side * 0.22, 0.1, 0.15, 0.1)
    pen.disc(0, 0.73, 0.33, 0.265)
    pen.coat()
    pen.oval(0, 0.3, 0.16, 0.17, "pale")
    for side in (-1, 1):
        pen.oval(side * 0.23, 0.095, 0.075, 0.055, "pale")
    pen.oval(0, 0.65, 0.15, 0.115, "pale")
    pen.face(0, 0.72, 0.25, gap=0.58, eye=0.2, lift=0.22, blush=False)
    if pen.state != "smiley face":
        pen.oval(0, 0.685, 0.06, 0.043, NOSE)
        pen.stroke([(-0.06, 0.6), (0, 0.58), (0.06, 0.6)], 0.026, NOSE)


@thing("hamster", kind="animal", extent=(0.95, 0.8), colour="sandy", face=True, arms=True,
       bite=(0.12, 0.22), crown=(0.0, 0.74, 0.5))  # fmt: skip
def hamster(pen: Pen) -> None:
    """A very round hamster with a white muzzle and full cheeks."""
    for side in (-1, 1):
        pen.disc(side * 0.28, 0.7, 0.11, 0.1)
        pen.oval(side * 0.28, 0.69, 0.06, 0.055, ROSE)
    pen.arms(0.38, 0.32, 0.14, 0.12)
    pen.disc(0, 0.38, 0.45, 0.37)
    pen.coat()
    pen.oval(0, 0.2, 0.27, 0.17, WHITE)
    for side in (-1, 1):
        pen.oval(side * 0.15, 0.33, 0.19, 0.14, WHITE)
        pen.oval(side * 0.18, 0.045, 0.11, 0.05, ROSE)
    pen.face(0, 0.44, 0.3, gap=0.62, eye=0.2, lift=0.3)
    if pen.state != "smiley face":
        pen.oval(0, 0.42, 0.05, 0.037, ROSE)
        pen.box(-0.035, 0.27, 0.035, 0.35, WHITE)
        pen.stroke([(-0.08, 0.355), (0, 0.37), (0.08, 0.355)], 0.025, NOSE)


@thing("dog", "puppy", kind="animal", extent=(1.08, 0.92), colour="brown", face=True, arms=True,
       bite=(0.42, 0.45), crown=(0.22, 0.86, 0.4), sinks=0.12)  # fmt: skip
def dog(pen: Pen) -> None:
    """A standing dog with long hanging ears, seen from the side, looking at us."""
    pen.limb([(-0.4, 0.38), (-0.5, 0.55), (-0.48, 0.68)], 0.085)
    raised = pen.state == "arms raised"
    for x in (-0.36, -0.2):
        pen.limb([(x, 0.3), (x, 0.07)], 0.12)
    for x in (0.06, 0.22):
        pen.limb([(x, 0.3), (x + 0.28, 0.5)] if raised else [(x, 0.3), (x, 0.07)], 0.12)
    pen.disc(-0.1, 0.36, 0.36, 0.18)
    pen.disc(0.2, 0.64, 0.27, 0.25)
    pen.coat()
    pen.oval(0.29, 0.535, 0.16, 0.12, "pale")
    for x, turn in ((-0.06, -14), (0.46, 14)):
        pen.oval(x, 0.62, 0.085, 0.21, "deep", turn)
    pen.face(0.22, 0.62, 0.24, gap=0.46, eye=0.19, lift=0.32, blush=False)
    if pen.state != "smiley face":
        pen.oval(0.3, 0.59, 0.065, 0.05, NOSE)
        pen.oval(0.3, 0.465, 0.05, 0.06, (238, 108, 118))


@thing("cat", "kitten", kind="animal", extent=(0.98, 1.0), colour="tabby", face=True, arms=True,
       bite=(0.05, 0.42), crown=(0.0, 0.84, 0.44))  # fmt: skip
def cat(pen: Pen) -> None:
    """A sitting cat with pointed ears, whiskers and a curled tail."""
    pen.limb([(0.2, 0.08), (0.4, 0.12), (0.46, 0.3), (0.36, 0.44)], 0.1)
    pen.disc(0, 0.25, 0.26, 0.26)
    if pen.state == "arms raised":
        pen.arms(0.22, 0.36, 0.2, 0.12)
    for side in (-1, 1):
        pen.polygon([(side * 0.31, 0.7), (side * 0.29, 1.0), (side * 0.06, 0.84)], "dark")
        pen.polygon([(side * 0.25, 0.76), (side * 0.25, 0.92), (side * 0.12, 0.82)], ROSE)
    pen.disc(0, 0.65, 0.34, 0.25)
    if pen.state != "arms raised":
        for x in (-0.1, 0.1):
            pen.limb([(x, 0.24), (x, 0.06)], 0.12)
    pen.coat()
    pen.oval(0, 0.56, 0.14, 0.09, "pale")
    pen.face(0, 0.65, 0.26, gap=0.55, eye=0.22, lift=0.18, blush=False)
    if pen.state != "smiley face":
        pen.polygon([(-0.045, 0.615), (0.045, 0.615), (0, 0.57)], (236, 110, 130))
        for side in (-1, 1):
            for y, tip in ((0.58, 0.61), (0.54, 0.52)):
                pen.stroke([(side * 0.17, y), (side * 0.42, tip)], 0.018, "deep")


@thing("fox", kind="animal", extent=(1.2, 0.9), colour="rusty", face=True, arms=True,
       bite=(0.4, 0.38), crown=(0.26, 0.78, 0.4))  # fmt: skip
def fox(pen: Pen) -> None:
    """A fox with a pointed white-cheeked face and a big tail with a white tip."""
    pen.curve([(-0.28, 0.2), (-0.5, 0.24), (-0.6, 0.5), (-0.48, 0.74), (-0.36, 0.5)], "dark")
    pen.curve([(-0.58, 0.5), (-0.48, 0.76), (-0.4, 0.56), (-0.49, 0.6)], WHITE)
    raised = pen.state == "arms raised"
    for x in (-0.26, -0.12):
        pen.limb([(x, 0.22), (x, 0.06)], 0.11)
    for x in (0.1, 0.24):
        pen.limb([(x, 0.26), (x + 0.28, 0.4)] if raised else [(x, 0.22), (x, 0.06)], 0.11)
    pen.disc(-0.04, 0.28, 0.32, 0.17)
    for x0, x1, x2 in ((-0.04, 0.0, 0.2), (0.56, 0.52, 0.32)):
        pen.polygon([(x0, 0.6), (x1, 0.9), (x2, 0.74)], "deep")
    pen.curve([(-0.08, 0.58), (0.02, 0.74), (0.26, 0.79), (0.5, 0.74), (0.6, 0.58), (0.42, 0.42),
               (0.26, 0.3), (0.1, 0.42)], "base")  # fmt: skip
    pen.coat()
    for side in (-1, 1):
        pen.curve([(0.26 + side * 0.32, 0.57), (0.26 + side * 0.14, 0.55), (0.26, 0.34),
                   (0.26 + side * 0.18, 0.43)], WHITE)  # fmt: skip
    pen.face(0.26, 0.55, 0.24, gap=0.55, eye=0.2, lift=0.3, blush=False)
    if pen.state != "smiley face":
        pen.oval(0.26, 0.345, 0.06, 0.05, NOSE)


@thing("duck", "rubber duck", kind="toy", extent=(0.98, 0.9), colour="yellow", face=True,
       crown=(0.16, 0.84, 0.36), sinks=0.12)  # fmt: skip
def duck(pen: Pen) -> None:
    """A rubber duck, swimming to the right."""
    pen.curve([(-0.48, 0.5), (-0.3, 0.36), (0.1, 0.42), (0.42, 0.36), (0.44, 0.16), (0.24, 0.02),
               (-0.2, 0.02), (-0.42, 0.18)], "dark")  # fmt: skip
    pen.curve([(-0.46, 0.49), (-0.3, 0.38), (0.1, 0.44), (0.39, 0.37), (0.4, 0.2), (0.22, 0.08),
               (-0.2, 0.08), (-0.4, 0.22)], "base")  # fmt: skip
    pen.disc(0.16, 0.62, 0.26, 0.25)
    pen.coat()
    pen.curve([(-0.32, 0.3), (-0.06, 0.36), (0.12, 0.24), (-0.1, 0.12), (-0.28, 0.18)], "dark")
    pen.curve([(0.3, 0.62), (0.46, 0.6), (0.5, 0.53), (0.34, 0.5), (0.24, 0.55)], BEAK)
    pen.face(0.2, 0.62, 0.22, gap=0.45, eye=0.21, lift=0.38, blush=False)


@thing("robot", kind="toy", extent=(0.88, 1.08), colour="grey", face=True, arms=True,
       torso=(0.0, 0.36, 0.5), crown=(0.0, 0.9, 0.5))  # fmt: skip
def robot(pen: Pen) -> None:
    """A box-shaped toy robot with an aerial."""
    pen.stroke([(0, 0.88), (0, 1.0)], 0.035, "deep")
    pen.oval(0, 1.02, 0.055, 0.055, (236, 70, 70))
    for side in (-1, 1):
        pen.box(side * 0.14 - 0.085, 0, side * 0.14 + 0.085, 0.2, "deep", 0.03)
    pen.arms(0.27, 0.44, 0.19, 0.12)
    pen.box(-0.26, 0.15, 0.26, 0.52, "dark", 0.05)
    pen.box(-0.26, 0.19, 0.22, 0.52, "base", 0.05)
    pen.box(-0.35, 0.54, 0.35, 0.92, "dark", 0.08)
    pen.box(-0.35, 0.58, 0.31, 0.92, "base", 0.08)
    pen.coat()
    pen.box(-0.26, 0.61, 0.26, 0.85, (28, 44, 66), 0.07)
    pen.box(-0.15, 0.26, 0.15, 0.44, "pale", 0.03)
    for x, tone in ((-0.08, (236, 70, 70)), (0.0, (250, 204, 40)), (0.08, (58, 168, 76))):
        pen.oval(x, 0.35, 0.033, 0.033, tone)
    _lamps(pen)


def _lamps(pen: Pen) -> None:
    """The robot's eyes: lamps, which the face states change like any other eyes."""
    if pen.state == "smiley face":
        pen.face(0, 0.72, 0.26)
        return
    for side in (-1, 1):
        if pen.state == "closed eyes":
            pen.stroke([(side * 0.13 - 0.07, 0.72), (side * 0.13 + 0.07, 0.72)], 0.04,
                       (110, 230, 240))  # fmt: skip
        else:
            pen.oval(side * 0.13, 0.75, 0.065, 0.065, (110, 230, 240))
    pen.stroke([(-0.09, 0.655), (0.09, 0.655)], 0.028, (110, 230, 240))


@thing("star", kind="toy", extent=(0.98, 0.94), colour="yellow", face=True)
def star(pen: Pen) -> None:
    """A plump five-pointed star with a little face."""
    from math import cos, pi, sin

    def points(size: float, dx: float, dy: float) -> list[tuple[float, float]]:
        turns = [pi / 2 + k * pi / 5 for k in range(10)]
        radii = [size if k % 2 == 0 else 0.52 * size for k in range(10)]
        return [
            (dx + r * cos(t), 0.44 + dy + r * sin(t)) for r, t in zip(radii, turns, strict=True)
        ]

    pen.curve(points(0.52, 0, 0), "dark")
    pen.curve(points(0.45, -0.015 * pen.side, 0.015), "base")
    pen.coat()
    pen.face(0, 0.43, 0.22, gap=0.5, eye=0.22, lift=0.15)
    if pen.state != "smiley face":
        pen.stroke([(-0.06, 0.37), (0, 0.345), (0.06, 0.37)], 0.03, INK)


@thing("penguin", kind="animal", extent=(0.84, 1.0), colour="black", face=True, arms=True,
       torso=(0.0, 0.35, 0.6), crown=(0.0, 0.9, 0.44))  # fmt: skip
def penguin(pen: Pen) -> None:
    """An upright penguin with a white front."""
    for side in (-1, 1):
        pen.oval(side * 0.16, 0.04, 0.14, 0.055, BEAK)
    pen.arms(0.3, 0.5, 0.22, 0.13)
    pen.disc(0, 0.4, 0.34, 0.38)
    pen.disc(0, 0.74, 0.29, 0.25)
    pen.coat()
    pen.oval(0, 0.34, 0.23, 0.28, mix(WHITE, (200, 210, 230), 0.2))
    for side in (-1, 1):
        pen.oval(side * 0.1, 0.72, 0.13, 0.14, mix(WHITE, (200, 210, 230), 0.2))
    pen.face(0, 0.7, 0.22, gap=0.5, eye=0.21, lift=0.25)
    if pen.state != "smiley face":
        pen.curve([(-0.08, 0.66), (0, 0.69), (0.08, 0.66), (0, 0.59)], BEAK)
