"""How often the judge is right: drawn scenes, where everything is known, read and compared."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ldm.data.playroom.labels import (
    BESIDE,
    pair_relations,
    recognisable,
    shown_colour,
)
from ldm.data.playroom.places import NOWHERE
from ldm.data.playroom.scene import Scene
from ldm.evaluation.judge import Judge, Reading
from ldm.evaluation.localisation import iou

#: One finding: what was judged, and whether it was right (for "mask", an IoU).
Finding = tuple[str, float]


def accuracy(judge: Judge, scenes: Sequence[Scene], images: Tensor) -> dict[str, list[float]]:
    """Whether each thing read from the pictures (b,3,h,w) of scenes is right.

    Objects of which too little can be seen are left out (`labels.recognisable`). "objects": every
    such object, and everything that is read but is not there at all (a 0). "colours", "states",
    "counts" and "mask" (IoU): of the objects that are found. "relations": of pairs that touch,
    and of the first two if none does. "places": of every scene.
    """
    found: dict[str, list[float]] = defaultdict(list)
    readings = judge.read(images)
    for one, reading in zip(scenes, readings, strict=True):
        for name, right in _findings(one, reading):
            found[name].append(right)
    found["relations"] = _relations(judge, scenes, readings, images)
    return dict(found)


def _findings(one: Scene, reading: Reading) -> Iterator[Finding]:
    """Everything that can be compared but the relations."""
    there = {each.name for each in one.objects if each.mask.any()}
    for thing in reading.things:
        if thing.name not in there:
            yield "objects", 0.0
    for each in one.objects:
        if not recognisable(each):
            continue
        seen = reading.find(each.name)
        yield "objects", float(seen is not None)
        if seen is not None:
            colour = shown_colour(each.name, each.colour, each.adjective)
            yield "colours", float(seen.colour == colour)
            yield "states", float(seen.state == each.state)
            if each.state:
                yield "states, where there is one", float(seen.state == each.state)
            yield "counts", float(seen.count == each.count)
            if each.count > 1:
                yield "counts, where there are several", float(seen.count == each.count)
            yield "mask", iou(seen.mask, each.mask)
    yield "places", float(reading.place == (one.place or NOWHERE.name))


def _relations(
    judge: Judge, scenes: Sequence[Scene], readings: Sequence[Reading], images: Tensor
) -> list[float]:
    """Whether the relation of one pair of each scene is read right, where both are found."""
    rows, truths, masks = [], [], []
    for row, (one, reading) in enumerate(zip(scenes, readings, strict=True)):
        pairs = pair_relations(one.spec)
        if not pairs:
            continue
        pair = next((p for p, r in pairs.items() if r != BESIDE), (0, 1))
        things = [reading.find(one.objects[k].name) for k in pair]
        if all(things) and all(recognisable(one.objects[k]) for k in pair):
            rows.append(row)
            truths.append(pairs[pair])
            masks.append(torch.stack([torch.from_numpy(t.mask) for t in things if t]))
    if not rows:
        return []
    both = torch.stack(masks)
    answers = judge.relation(images[rows], both[:, 0], both[:, 1])
    return [float(a == b) for a, b in zip(answers, truths, strict=True)]
