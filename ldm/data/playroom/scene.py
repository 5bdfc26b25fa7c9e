"""A scene: the picture of a specification, with the exact mask of everything in it."""

from dataclasses import dataclass
from random import Random

import numpy as np

from ldm.data.playroom.canvas import GROUND, Canvas
from ldm.data.playroom.colours import COLOURS, paint
from ldm.data.playroom.pen import Pen
from ldm.data.playroom.places import NOWHERE, Place, get_place
from ldm.data.playroom.relations import Placed, arrange
from ldm.data.playroom.scans import SCANS, draw_scan
from ldm.data.playroom.spec import SceneSpec
from ldm.data.playroom.states import draw_thing

MaskArray = np.ndarray


@dataclass(frozen=True)
class ObjectInstance:
    """One object of a drawn scene; all copies of a counted object are one instance.

    `word` is what the caption calls it; `box` is (left, top, right, bottom) in pixels, or None
    when nothing of it can be seen; `mask` holds its visible pixels, bool (size, size), and
    `visible` the share of it that nothing else covers.
    """

    name: str
    word: str
    colour: str | None
    adjective: str | None
    state: str | None
    count: int
    box: tuple[int, int, int, int] | None
    mask: MaskArray
    visible: float = 1.0


@dataclass(frozen=True)
class Scene:
    """A drawn scene: image uint8 (size, size, 3), its caption and what is in it."""

    image: np.ndarray
    caption: str
    objects: tuple[ObjectInstance, ...]
    place: str | None
    relation: str | None
    spec: SceneSpec
    ground: MaskArray | None = None
    """The visible pixels of the road, the beach, the tablecloth."""


def _box(mask: MaskArray) -> tuple[int, int, int, int] | None:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _draw_place(canvas: Canvas, spec: SceneSpec) -> Place:
    place = NOWHERE if spec.place is None else get_place(spec.place)
    ground = None if spec.ground_colour is None else COLOURS[spec.ground_colour]
    top = place.draw(canvas, Random(f"place:{spec.seed}"), ground)
    canvas.label_ground(top)
    return place


def _draw_rope(canvas: Canvas, x: float, height: float) -> None:
    """A rope across the whole picture that sags under what walks on it."""
    path = [(-0.01, height + 0.05), (x - 0.1, height), (x + 0.1, height), (1.01, height + 0.05)]
    canvas.line([(u, v - 0.012) for u, v in path], 0.034, (120, 72, 44))
    canvas.line([(u, v - 0.007) for u, v in path], 0.02, (246, 208, 132))


def _draw_motion(canvas: Canvas, part: Placed, dark: bool) -> None:
    """Short lines in the air behind something that rolls, pale where the place is dark."""
    fill = (246, 246, 252) if dark else (92, 96, 128)
    back = 1 if part.mirror else -1
    edge = part.x + back * (part.width / 2 + 0.015)
    for share, length in ((0.2, 0.08), (0.5, 0.12), (0.8, 0.08)):
        y = part.base + share * part.height
        canvas.line([(edge, y), (edge + back * length, y)], 0.017, fill)


def _draw_part(
    canvas: Canvas, part: Placed, spec: SceneSpec, rng: Random, lightness: float, marked: bool
) -> int:
    """Stamps one object; returns how many drawn pixels it covers before anything hides it."""
    one = spec.objects[part.index]
    pen = Pen(
        part.thing.extent,
        part.scale * canvas.pixels,
        paint(one.colour or _own_colour(part, one.adjective), lightness),
        adjective=one.adjective,
        state="open" if part.open and one.state is None else one.state,
        mirror=part.mirror,
        tilt=part.tilt,
        rng=rng,
    )
    if one.adjective == "rolling":
        _draw_motion(canvas, part, spec.place is not None and get_place(spec.place).dark)
    sheet = draw_thing(part.thing, pen)
    label = part.index + 1 if marked else None
    return canvas.stamp(sheet, pen.origin, part.x, part.base, label)


def _own_colour(part: Placed, adjective: str | None) -> str:
    return "straw" if adjective == "wooden" else part.thing.colour


def _draw_objects(canvas: Canvas, spec: SceneSpec, marked: bool) -> list[int]:
    """Draws all objects; returns the drawn pixels of each, hidden ones included."""
    rng = Random(f"pose:{spec.seed}")
    parts = arrange(spec, rng)
    lightness = [rng.uniform(-1, 1) for _ in spec.objects]
    for part in parts:
        if spec.objects[part.index].state == "walking on a rope":
            _draw_rope(canvas, part.x, part.base)
            break
    areas = [0] * len(spec.objects)
    for part in parts:
        if part.grounded:
            canvas.shadow(part.x, part.base, part.width * 0.46, max(0.02, part.width * 0.07))
    for part in parts:
        own, light = Random(rng.getrandbits(32)), lightness[part.index]
        areas[part.index] += _draw_part(canvas, part, spec, own, light, marked)
    return areas


def render_scene(
    spec: SceneSpec, size: int = 64, *, caption: str = "", words: tuple[str, ...] = (),
    masks: bool = True
) -> Scene:  # fmt: skip
    """Draws a scene at `size` x `size` pixels; the same specification gives the same scene.

    `words` are what the caption calls the objects (their main words if left out). With
    `masks=False` the masks are left empty, which is faster.
    """
    if spec.scan is not None:
        return _render_scan(spec, spec.scan, size, caption)
    canvas = Canvas(size)
    _draw_place(canvas, spec)
    areas = _draw_objects(canvas, spec, masks)
    labels = [index + 1 for index in range(len(spec.objects))]
    found = canvas.masks([*labels, GROUND]) if masks else [_EMPTY] * (len(labels) + 1)
    seen = canvas.labels.histogram() if masks else areas
    instances = tuple(
        ObjectInstance(
            one.name,
            words[k] if words else one.name,
            one.colour,
            one.adjective,
            one.state,
            one.count,
            _box(found[k]) if masks else None,
            found[k],
            seen[k + 1] / max(areas[k], 1) if masks else 1.0,
        )
        for k, one in enumerate(spec.objects)
    )
    relation = spec.relations[0] if spec.relations else None
    return Scene(
        canvas.picture(), caption, instances, spec.place, relation, spec,
        found[-1] if masks else None,
    )  # fmt: skip


def _render_scan(spec: SceneSpec, scan: str, size: int, caption: str) -> Scene:
    image, masks = draw_scan(scan, size, spec.seed)
    parts = tuple(
        ObjectInstance(name, name, None, None, None, 1, _box(mask), mask)
        for name, mask in zip(SCANS[scan].parts, masks, strict=True)
    )
    return Scene(image, caption, parts, None, None, spec)


_EMPTY: MaskArray = np.zeros((0, 0), bool)
