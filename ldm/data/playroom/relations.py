"""Where things go: objects that touch form a stack, stacks stand side by side on the ground."""

from dataclasses import dataclass, field, replace
from random import Random

from ldm.data.playroom.objects import get_thing
from ldm.data.playroom.spec import SceneSpec
from ldm.data.playroom.things import Thing

MARGINS = {"frozen in ice": 0.1, "arms raised": 0.12, "burnt and melted": 0.06}
HEIGHTS = {1: 0.62, 2: 0.5, 3: 0.41, 4: 0.35, 5: 0.3}
GAP = 0.02
ROPE = 0.26
BACK = 0.31
MOST_HIDDEN = 0.36
GROUNDED = BACK + 0.005

GROUPS: dict[int, tuple[tuple[float, float], ...]] = {
    1: ((0, 0),),
    2: ((-0.57, 0), (0.57, 0)),
    3: ((-1.13, 0), (0, 0), (1.13, 0)),
    4: ((-0.86, 1.07), (0.28, 1.07), (-0.28, 0), (0.86, 0)),
    5: ((-0.57, 1.07), (0.57, 1.07), (-1.13, 0), (0, 0), (1.13, 0)),
}
"""Where the copies of a counted object stand, in shares of its width and height; back row first."""


@dataclass(frozen=True)
class Placed:
    """One drawn object: which of the scene's objects, its foot (x, base), its scale and pose.

    In a stack, lengths are in units of a typical object; in a scene, in shares of the picture.
    """

    index: int
    thing: Thing
    x: float
    base: float
    scale: float
    mirror: bool = False
    tilt: float = 0.0
    open: bool = False
    margin: float = 0.0
    grounded: bool = False

    @property
    def width(self) -> float:
        """How wide it is where it is placed, with the ice or the arms around it."""
        return (self.thing.extent[0] + 2 * self.margin) * self.scale

    @property
    def height(self) -> float:
        """How tall it is where it is placed."""
        return (self.thing.extent[1] + self.margin) * self.scale


@dataclass
class Stack:
    """Objects that touch one another, in drawing order; `last` is the one to relate the next to."""

    parts: list[Placed] = field(default_factory=list)
    last: int = 0
    wearer: int | None = None

    def lift(self, by: float) -> None:
        """Raises everything."""
        self.parts = [replace(part, base=part.base + by) for part in self.parts]

    def shrink(self, by: float) -> None:
        """Makes everything smaller about the foot of the stack."""
        self.parts = [
            replace(part, x=part.x * by, base=part.base * by, scale=part.scale * by)
            for part in self.parts
        ]

    def find(self, index: int) -> Placed:
        """The part that shows the scene's object `index`."""
        return next(part for part in self.parts if part.index == index)

    def bounds(self) -> tuple[float, float, float]:
        """Left, right and top."""
        return (
            min(part.x - part.width / 2 for part in self.parts),
            max(part.x + part.width / 2 for part in self.parts),
            max(part.base + part.height for part in self.parts),
        )


def _put_on(stack: Stack, new: Thing, index: int, mirror: bool) -> None:
    """What was placed last stands on the new thing."""
    if new.seat is None:
        raise ValueError(f"nothing can stand on a {new.words[0]}; it has no seat")
    scale = 1.1 if new.extent[1] < 0.8 else 0.95
    if new.seat_x:
        scale = 1.2
        stack.shrink(min(1.0, 0.92 / (stack.bounds()[1] - stack.bounds()[0])))
    shift = new.seat_x * scale * (-1 if mirror else 1)
    stack.lift(new.seat * scale - 0.015)
    stack.parts = [replace(part, x=part.x + shift) for part in stack.parts]
    stack.parts.insert(0, Placed(index, new, 0.0, 0.0, scale, mirror))


def _put_under(stack: Stack, new: Thing, index: int, mirror: bool) -> None:
    """The new thing stands on what was placed last."""
    below = stack.find(stack.last)
    if below.thing.seat is None:
        raise ValueError(f"nothing can stand on a {below.thing.words[0]}; it has no seat")
    x = below.x + below.thing.seat_x * below.scale * (-1 if below.mirror else 1)
    base = below.base + below.thing.seat * below.scale - 0.015
    stack.parts.append(Placed(index, new, x, base, 0.95, mirror))


def _put_in(stack: Stack, new: Thing, index: int, mirror: bool) -> None:
    """What was placed last looks out of the new container."""
    if new.mouth is None:
        raise ValueError(f"nothing can be in a {new.words[0]}; it is no container")
    inside = stack.find(stack.last)
    grown = 1.25
    room = (0.7 if new.name == "mug" else 0.9) * new.extent[0] * grown
    scale = min(0.95, room / inside.thing.extent[0])
    base = new.mouth * grown - inside.thing.sinks * inside.thing.extent[1] * scale
    x = -0.08 * grown * (-1 if mirror else 1) if new.name == "mug" else 0.0
    rest = [part for part in stack.parts if part.index != inside.index]
    stack.parts = [
        replace(inside, x=x, base=base, scale=scale),
        *rest,
        Placed(index, new, 0.0, 0.0, grown, mirror, open=True),
    ]


def _put_worn(stack: Stack, new: Thing, index: int, _mirror: bool) -> None:
    """The new garment is on the body or head of the stack's wearer."""
    wearer = stack.find(stack.last if stack.wearer is None else stack.wearer)
    part = getattr(wearer.thing, new.wears) if new.wears else None
    if part is None:
        raise ValueError(f"a {wearer.thing.words[0]} cannot wear a {new.words[0]}")
    x, y, width = part
    fit = (1.12 if new.wears == "torso" else 1.3) * width / new.extent[0] * wearer.scale
    sink = 0.48 if new.wears == "torso" else 0.06
    side = -1 if wearer.mirror else 1
    base = wearer.base + y * wearer.scale - sink * fit
    garment = Placed(index, new, wearer.x + x * side * wearer.scale, base, fit, wearer.mirror)
    stack.parts.insert(stack.parts.index(wearer) + 1, garment)


def _put_to_eat(stack: Stack, new: Thing, index: int, mirror: bool) -> None:
    """The new food is before the mouth of what was placed last."""
    eater = stack.find(stack.last if stack.wearer is None else stack.wearer)
    if eater.thing.bite is None:
        raise ValueError(f"a {eater.thing.words[0]} cannot eat; only animals can")
    x, y = eater.thing.bite
    side, scale = (-1 if eater.mirror else 1), 0.62 * eater.scale
    away = x + 0.34 * new.extent[0] * 0.62
    base = eater.base + (y - 0.6 * new.extent[1] * 0.62) * eater.scale
    base = max(base, eater.base - 0.02)
    stack.parts.append(Placed(index, new, eater.x + side * away * eater.scale, base, scale, mirror))


PUT = {
    "on": _put_on,
    "under": _put_under,
    "in": _put_in,
    "wearing": _put_worn,
    "eating": _put_to_eat,
}


def _stacks(spec: SceneSpec, rng: Random) -> list[Stack]:
    """The scene's objects, put together as their relations say."""
    stacks: list[Stack] = []
    for index, one in enumerate(spec.objects):
        new, mirror = get_thing(one.name), rng.random() < 0.5
        relation = spec.relations[index - 1] if index else "and"
        if relation in ("and", "beside"):
            stacks.append(Stack(_group(index, new, one.count, mirror), last=index))
        else:
            PUT[relation](stacks[-1], new, index, mirror)
        stack = stacks[-1]
        if relation not in ("wearing", "eating"):
            stack.last = index
        if new.torso or new.crown or new.bite:
            stack.wearer = index if stack.wearer is None else stack.wearer
        margin = MARGINS.get(one.state or "", 0.0)
        stack.parts = [
            replace(part, margin=margin) if part.index == index else part for part in stack.parts
        ]
    return stacks


def _group(index: int, new: Thing, count: int, mirror: bool) -> list[Placed]:
    """The copies of a counted object."""
    width, height = new.extent
    return [Placed(index, new, dx * width, dy * height, 1.0, mirror) for dx, dy in GROUPS[count]]


def _rows(stacks: list[Stack], spec: SceneSpec) -> list[list[int]]:
    """Which stacks stand in which row: one row while there is room, else the tall ones behind."""
    widths = [stack.bounds()[1] - stack.bounds()[0] for stack in stacks]
    every = list(range(len(stacks)))
    roped = any(one.state == "walking on a rope" for one in spec.objects)
    if len(stacks) < 3 or sum(widths) * 0.42 < 1.05 or roped:
        return [every]
    every.sort(key=lambda k: -stacks[k].bounds()[2])
    return [every[: len(every) // 2], every[len(every) // 2 :]]


def _scale(stacks: list[Stack], rows: list[list[int]], spec: SceneSpec, rng: Random) -> float:
    """How large a typical object is in this scene, so that everything fits."""
    shown = max(one.count for one in spec.objects) + max(len(row) for row in rows) - 1
    scale = HEIGHTS[min(5, shown)] * rng.uniform(0.93, 1.06) * (0.9 if len(rows) > 1 else 1.0)
    for row, base in zip(rows, _bases(rows), strict=True):
        widths = sum(stacks[k].bounds()[1] - stacks[k].bounds()[0] for k in row)
        lift = ROPE if any(_roped(stacks[k], spec) for k in row) else 0.0
        top = max(stacks[k].bounds()[2] for k in row)
        room = 0.95 - GAP * (len(row) - 1)
        scale = min(scale, room / widths, (0.96 - base - lift) / top)
    return scale


def _bases(rows: list[list[int]]) -> tuple[float, ...]:
    """The height at which each row stands."""
    return (0.08,) if len(rows) == 1 else (BACK, 0.05)


def _roped(stack: Stack, spec: SceneSpec) -> bool:
    return any(spec.objects[part.index].state == "walking on a rope" for part in stack.parts)


def arrange(spec: SceneSpec, rng: Random) -> list[Placed]:
    """Every object of a scene in shares of the picture, in drawing order (far ones first).

    Raises ValueError for a relation that the objects cannot have.
    """
    stacks = _stacks(spec, rng)
    rows = _rows(stacks, spec)
    scale = _scale(stacks, rows, spec, rng)
    placed = _lay_out(stacks, rows, scale, spec, rng)
    for _ in range(12 if len(rows) > 1 else 0):
        if _hidden(placed) < MOST_HIDDEN:
            break
        scale *= 0.97
        placed = _lay_out(stacks, rows, scale, spec, rng)
    return [part for _, parts in placed for part in parts]


def _lay_out(
    stacks: list[Stack], rows: list[list[int]], scale: float, spec: SceneSpec, rng: Random
) -> list[tuple[float, list[Placed]]]:
    """The stacks at random places of their rows: (base, parts), far ones first."""
    placed = []
    for row, base in zip(rows, _bases(rows), strict=True):
        widths = {k: (stacks[k].bounds()[1] - stacks[k].bounds()[0]) * scale for k in row}
        free = max(0.0, 0.97 - sum(widths.values()) - GAP * (len(row) - 1))
        shares = [rng.uniform(0.4, 1.0) for _ in range(len(row) + 1)]
        left = 0.015
        for turn, k in enumerate(rng.sample(row, len(row))):
            left += free * shares[turn] / sum(shares)
            foot = base + (ROPE if _roped(stacks[k], spec) else 0.0)
            if foot == base and len(rows) == 1:
                room = 0.96 - stacks[k].bounds()[2] * scale
                foot = min(rng.uniform(0.07, 0.17), max(room, base))
            low = stacks[k].bounds()[0]
            placed.append((foot, _to_picture(stacks[k], left - low * scale, foot, scale, rng)))
            left += widths[k] + GAP
    return sorted(placed, key=lambda pair: -pair[0])


def _hidden(placed: list[tuple[float, list[Placed]]]) -> float:
    """The largest share of any object's box that stacks before it cover."""
    worst = 0.0
    for k, (_, parts) in enumerate(placed):
        front = [part for _, others in placed[k + 1 :] for part in others]
        for part in parts:
            area = sum(_overlap(part, other) for other in front)
            worst = max(worst, area / (part.width * part.height))
    return worst


def _overlap(one: Placed, other: Placed) -> float:
    """How much of their boxes two objects share."""
    left = max(one.x - one.width / 2, other.x - other.width / 2)
    right = min(one.x + one.width / 2, other.x + other.width / 2)
    low = max(one.base, other.base)
    high = min(one.base + one.height, other.base + other.height)
    return max(0.0, right - left) * max(0.0, high - low)


def _to_picture(stack: Stack, x: float, base: float, scale: float, rng: Random) -> list[Placed]:
    """The stack's parts in shares of the picture; things that stand alone lean a little."""
    alone = len(stack.parts) == 1 and stack.parts[0].thing.loose
    tilt = rng.uniform(-4, 4) if alone else 0.0
    return [
        replace(part, x=x + part.x * scale, base=base + part.base * scale,
                scale=part.scale * scale, tilt=tilt, grounded=part.base < 0.01 and base < GROUNDED)
        for part in stack.parts
    ]  # fmt: skip
