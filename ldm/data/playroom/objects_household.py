"""Things of the house, the kitchen and the wardrobe; food."""

from ldm.data.playroom.colours import INK, WHITE, mix
from ldm.data.playroom.pen import Pen, arch
from ldm.data.playroom.things import thing

COFFEE = (92, 56, 40)


@thing("ball", kind="toy", extent=(0.84, 0.82), colour="red", seat=0.8, rolls=True)
def ball(pen: Pen) -> None:
    """A shiny ball with one curved white stripe."""
    pen.disc(0, 0.41, 0.41, 0.41)
    pen.coat()
    band = arch(0, 0.41, 0.39, 0.13, 180, 360) + arch(0, 0.53, 0.375, 0.12, 360, 180)
    pen.polygon(band, WHITE)
    pen.oval(-0.16 * pen.side, 0.62, 0.1, 0.07, "pale", 28)


@thing(
    "basket",
    kind="thing",
    extent=(1.0, 0.94),
    colour="straw",
    mouth=0.5,
    plural="baskets",
    sinks=0.06,
)
def basket(pen: Pen) -> None:
    """A woven basket with a tall handle."""
    pen.stroke(arch(0, 0.46, 0.4, 0.44, 0, 180), 0.06, "dark")
    pen.polygon([(-0.46, 0.48), (0.46, 0.48), (0.36, 0.0), (-0.36, 0.0)], "base")
    pen.polygon([(0.2, 0.48), (0.46, 0.48), (0.36, 0.0), (0.16, 0.0)], "dark")
    pen.coat()
    for row in range(3):
        y, shift = 0.06 + 0.13 * row, 0.1 * (row % 2)
        for column in range(4):
            x = -0.34 + 0.2 * column + shift
            if x < 0.3:
                pen.box(x, y, x + 0.1, y + 0.07, "deep", 0.02)
    pen.box(-0.49, 0.42, 0.49, 0.53, "light", 0.05)


@thing("box", "toy box", kind="thing", extent=(1.04, 0.7), colour="card", seat=0.58, mouth=0.56,
       plural="boxes", sinks=0.06)  # fmt: skip
def box(pen: Pen) -> None:
    """An open cardboard box with its flaps turned out."""
    pen.polygon([(-0.38, 0.56), (-0.54, 0.62), (-0.4, 0.7), (-0.3, 0.56)], "dark")
    pen.polygon([(0.38, 0.56), (0.54, 0.62), (0.4, 0.7), (0.3, 0.56)], "dark")
    pen.box(-0.4, 0, 0.4, 0.58, "base")
    pen.box(0.22, 0, 0.4, 0.58, "dark")
    pen.coat()
    pen.box(-0.42, 0.52, 0.42, 0.6, "light", 0.02)
    pen.box(-0.16, 0.12, 0.08, 0.3, "pale", 0.02)


@thing("chair", kind="thing", extent=(0.8, 1.06), colour="brown", seat=0.5, seat_x=0.13, sinks=0.06)
def chair(pen: Pen) -> None:
    """A chair from the side, its back to the left."""
    pen.box(-0.2, 0, -0.11, 0.42, "deep", 0.02)
    pen.box(0.19, 0, 0.28, 0.42, "deep", 0.02)
    pen.box(-0.36, 0, -0.25, 1.06, "dark", 0.05)
    pen.box(-0.36, 0.5, -0.2, 1.06, "base", 0.06)
    pen.box(0.27, 0, 0.38, 0.44, "dark", 0.03)
    pen.box(-0.36, 0.36, 0.4, 0.46, "dark", 0.04)
    pen.box(-0.36, 0.4, 0.4, 0.51, "base", 0.05)
    pen.coat()
    pen.box(-0.16, 0.48, 0.37, 0.54, "light", 0.03)


@thing("jacket", "coat", kind="thing", extent=(1.04, 0.86), colour="blue", wears="torso", sinks=0.2)
def jacket(pen: Pen) -> None:
    """A jacket with a zip, a collar and two pockets."""
    for side in (-1, 1):
        pen.limb([(side * 0.26, 0.72), (side * 0.42, 0.3)], 0.2)
        pen.stroke([(side * 0.4, 0.27), (side * 0.44, 0.275)], 0.12, "deep")
    pen.curve([(-0.33, 0.8), (0, 0.84), (0.33, 0.8), (0.33, 0.3), (0.35, 0.02), (0, 0.0),
               (-0.35, 0.02), (-0.33, 0.3)], "dark")  # fmt: skip
    pen.curve([(-0.32, 0.8), (0, 0.84), (0.28, 0.79), (0.27, 0.3), (0.29, 0.06), (0, 0.05),
               (-0.34, 0.06), (-0.32, 0.3)], "base")  # fmt: skip
    pen.coat()
    pen.stroke([(0, 0.04), (0, 0.74)], 0.04, "pale")
    for side in (-1, 1):
        pen.polygon([(0, 0.7), (side * 0.2, 0.88), (side * 0.02, 0.86)], "deep")
        pen.stroke([(side * 0.12, 0.24), (side * 0.24, 0.28)], 0.045, "deep")


@thing("hat", kind="thing", extent=(1.08, 0.64), colour="purple", wears="crown", sinks=0.0)
def hat(pen: Pen) -> None:
    """A sun hat: a wide brim, a round crown and a ribbon."""
    pen.oval(0, 0.14, 0.53, 0.14, "dark")
    pen.oval(0, 0.17, 0.53, 0.12, "base")
    pen.curve([(-0.29, 0.17), (-0.27, 0.44), (-0.16, 0.6), (0.16, 0.6), (0.27, 0.44), (0.29, 0.17),
               (0, 0.12)], "dark")  # fmt: skip
    pen.curve([(-0.29, 0.18), (-0.27, 0.44), (-0.17, 0.6), (0.1, 0.6), (0.2, 0.44), (0.21, 0.18),
               (-0.05, 0.14)], "base")  # fmt: skip
    pen.coat()
    pen.polygon(arch(0, 0.2, 0.29, 0.06, 180, 360) + arch(0, 0.31, 0.285, 0.06, 360, 180), "pale")


@thing("pot", kind="thing", extent=(1.14, 0.84), colour="slate", seat=0.72, mouth=0.5, sinks=0.1)
def pot(pen: Pen) -> None:
    """A cooking pot with two handles and a lid."""
    for side in (-1, 1):
        pen.box(side * 0.48 - 0.1, 0.34, side * 0.48 + 0.1, 0.43, "deep", 0.045)
    pen.curve([(-0.43, 0.5), (0, 0.5), (0.43, 0.5), (0.42, 0.12), (0.3, 0.0), (-0.3, 0.0),
               (-0.42, 0.12)], "dark")  # fmt: skip
    pen.curve([(-0.43, 0.5), (0, 0.5), (0.33, 0.5), (0.31, 0.14), (0.2, 0.05), (-0.28, 0.05),
               (-0.4, 0.14)], "base")  # fmt: skip
    if pen.state != "open":
        pen.polygon(arch(0, 0.53, 0.44, 0.18, 0, 180), "light")
        pen.oval(0, 0.75, 0.08, 0.07, "deep")
    pen.coat()
    pen.box(-0.47, 0.47, 0.47, 0.55, "deep", 0.04)
    pen.stroke([(-0.3 * pen.side, 0.36), (-0.28 * pen.side, 0.2)], 0.05, "pale")


@thing("mug", "cup", kind="thing", extent=(0.98, 0.74), colour="white", mouth=0.66, sinks=0.1)
def mug(pen: Pen) -> None:
    """A mug with a round handle."""
    pen.stroke(arch(0.26, 0.36, 0.19, 0.18, 95, -95), 0.1, "dark")
    pen.box(-0.42, 0.0, 0.26, 0.68, "dark", 0.09)
    pen.box(-0.42, 0.03, 0.16, 0.68, "base", 0.09)
    pen.coat()
    pen.oval(-0.08, 0.66, 0.34, 0.085, "light")
    pen.oval(-0.08, 0.655, 0.275, 0.058, COFFEE)
    pen.stroke([(-0.31 * pen.side - 0.06 * (1 - pen.side), 0.48),
                (-0.31 * pen.side - 0.06 * (1 - pen.side), 0.2)], 0.06, "pale")  # fmt: skip


@thing("spoon", kind="thing", extent=(0.44, 1.04), colour="silver")
def spoon(pen: Pen) -> None:
    """A spoon standing on its handle."""
    pen.stroke([(0, 0.07), (0, 0.5)], 0.11, "dark")
    pen.stroke([(-0.015 * pen.side, 0.08), (-0.015 * pen.side, 0.5)], 0.07, "base")
    pen.oval(0, 0.76, 0.2, 0.27, "dark")
    pen.oval(-0.015 * pen.side, 0.775, 0.175, 0.24, "base")
    pen.coat()
    pen.oval(-0.01 * pen.side, 0.76, 0.125, 0.185, "dark")
    pen.oval(-0.05 * pen.side, 0.8, 0.05, 0.11, "pale")


@thing("watermelon", kind="food", extent=(1.08, 0.6), colour="melon", article=False, seat=0.57,
       plural="watermelons", sinks=0.1)  # fmt: skip
def watermelon(pen: Pen) -> None:
    """A half-moon slice of watermelon: green rind, pale rim, coloured flesh, dark seeds."""
    for r, fill in ((0.53, (36, 122, 60)), (0.47, (214, 238, 180)), (0.42, "base")):
        pen.polygon(arch(0, 0.56, r, r * 1.05, 180, 360), fill)
    pen.polygon([*arch(0, 0.56, 0.42, 0.44, 300, 360), (0.22, 0.56)], "dark")
    pen.coat()
    for x, y in ((-0.24, 0.45), (0.0, 0.46), (0.24, 0.45), (-0.13, 0.31), (0.13, 0.31)):
        pen.oval(x, y, 0.032, 0.048, INK)


@thing(
    "bananas",
    kind="food",
    extent=(1.1, 0.66),
    colour="yellow",
    article=False,
    plural="bananas",
    sinks=0.1,
)
def bananas(pen: Pen) -> None:
    """A bunch of three bananas."""
    for k, tone in ((2, "dark"), (1, "light"), (0, "base")):
        dip, reach = 0.02 + 0.13 * k, 0.5 - 0.1 * k
        outer = [(0.42, 0.58), (0.3, 0.26 + 0.5 * dip), (0.0, dip), (-0.32, dip + 0.06),
                 (-reach, dip + 0.26)]  # fmt: skip
        inner = [(-0.3, dip + 0.25), (-0.02, dip + 0.23), (0.2, 0.4 + 0.3 * dip)]
        pen.curve(outer + inner, "deep" if k == 2 else tone)
        pen.oval(-reach + 0.01, dip + 0.245, 0.04, 0.04, COFFEE)
    pen.coat()
    pen.stroke([(0.41, 0.54), (0.45, 0.63)], 0.09, COFFEE)


@thing(
    "cheese",
    kind="food",
    extent=(1.04, 0.68),
    colour="yellow",
    seat=0.5,
    plural="cheeses",
    sinks=0.12,
)
def cheese(pen: Pen) -> None:
    """A wedge of cheese with holes."""
    pen.polygon([(-0.5, 0.36), (0.34, 0.66), (0.5, 0.38)], "light")
    pen.polygon([(-0.5, 0.38), (0.5, 0.38), (0.5, 0.0), (-0.5, 0.0)], "base")
    pen.coat()
    for x, y, r in (
        (-0.26, 0.2, 0.085),
        (0.08, 0.11, 0.065),
        (0.3, 0.25, 0.09),
        (-0.04, 0.29, 0.05),
    ):
        pen.oval(x, y, r, r * 0.95, "dark")
        pen.oval(
            x + 0.012 * pen.side, y - 0.015, r * 0.78, r * 0.74, mix(pen.paint.dark, INK, 0.15)
        )
