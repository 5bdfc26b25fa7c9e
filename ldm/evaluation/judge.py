"""The judge: reads from a picture of the playroom what is in it, and where.

A small network (see :mod:`ldm.evaluation.judge_network`) learned to read drawn scenes, of which
everything is known. It knows the whole world, also what the default model has never seen, and is
used to measure samples where nobody can say what they should look like pixel by pixel.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.checkpoint import load_with_report, read_state_dict
from ldm.data.playroom.labels import (
    COLOUR_NAMES,
    COUNT_VALUES,
    LEAST_AREA,
    NAMES,
    OPPOSITES,
    PLACE_NAMES,
    RELATION_NAMES,
    STATE_NAMES,
)
from ldm.evaluation.judge_network import Features, JudgeNetwork, whole_map
from ldm.util import freeze

#: The weights that ship with the project.
WEIGHTS = Path(__file__).resolve().parents[2] / "models/ldm/playroom/judge.safetensors"
#: How large a picture is when it is read.
SIZE = 64
#: The logit from which on an object counts as present: where most objects of scenes of another
#: seed were right. Pixels have to agree, so there is more to lose by overlooking one.
PRESENT = -1.0
#: A state, a colour and so on, with its probability.
Answer = tuple[int, float]


@dataclass(frozen=True)
class SeenThing:
    """One kind of object in a picture, all its copies together.

    `probability` is how sure it is that it is there, `colour` a word of the world or "own" for a
    colour without a name, `state` one of the world's states or None, `mask` bool (64, 64) and
    `area` its share of the picture.
    """

    name: str
    probability: float
    colour: str
    colour_probability: float
    state: str | None
    state_probability: float
    count: int
    mask: np.ndarray
    area: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows: things, the largest first, the place ("nowhere" for plain paper).

    `labels` uint8 (64, 64) is 0 in the background and 1 + the number of the object's name in the
    world's list elsewhere.
    """

    things: tuple[SeenThing, ...]
    place: str
    labels: np.ndarray

    def find(self, name: str) -> SeenThing | None:
        """The thing called `name`, if it is there."""
        return next((thing for thing in self.things if thing.name == name), None)


@dataclass(frozen=True)
class _Seen:
    """A batch of pictures (b,3,64,64), what the network made of it, and the class of each pixel."""

    images: Tensor
    found: Features
    labels: Tensor


class Judge:
    """Reads pictures (b,3,h,w) in [-1, 1], of any size; `batch` of them at once."""

    def __init__(self, network: JudgeNetwork, device: str | torch.device = "cpu", batch: int = 64):
        freeze(network).to(device)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device, self.batch = torch.device(device), batch

    @torch.no_grad()
    def read(self, images: Tensor) -> list[Reading]:
        """What each picture shows."""
        return [each for seen in self._look(images) for each in self._readings(seen)]

    @torch.no_grad()
    def relation(self, images: Tensor, first_masks: Tensor, second_masks: Tensor) -> list[str]:
        """What the first thing of each picture is to the second: "on", "under", "beside", ...

        Masks are bool (b, h, w); `ldm.data.playroom.labels.OPPOSITES` lists the words. The best
        of both directions is taken, so that the answer does not depend on which comes first.
        """
        masks = torch.stack([torch.as_tensor(first_masks), torch.as_tensor(second_masks)], 1)
        answers: list[str] = []
        for seen in self._look(images):
            part = masks[len(answers) : len(answers) + len(seen.images)].to(self.device)
            part = F.interpolate(part.float(), (SIZE, SIZE)).bool()
            kinds = _kinds(seen.labels, part)
            described = self.network.objects(seen.images, seen.found, part, kinds)
            logits = self.network.relations(described, part).log_softmax(-1)
            both = logits[:, 0, 1] + logits[:, 1, 0][:, _opposites()]
            answers += [RELATION_NAMES[int(each)] for each in both.argmax(-1)]
        return answers

    @torch.no_grad()
    def object_probability(self, images: Tensor, name: str) -> Tensor:
        """The probability (b,) that something called `name` is in each picture."""
        number = _number("object", name, NAMES)
        return torch.cat([s.found.presence[:, number].sigmoid() for s in self._look(images)]).cpu()

    @torch.no_grad()
    def state_probability(self, images: Tensor, name: str, state: str | None) -> Tensor:
        """The probability (b,) of a state of the thing called `name`; 0 where it is not seen."""
        kind, number = _number("object", name, NAMES), _number("state", state, STATE_NAMES)
        rows = []
        for seen in self._look(images, also=kind):
            facts, there = self._facts_of(seen, kind)
            rows.append(facts["states"].softmax(-1)[:, number] * there)
        return torch.cat(rows).cpu()

    @torch.no_grad()
    def count(self, images: Tensor, name: str) -> Tensor:
        """How many of what is called `name` are in each picture: int64 (b,)."""
        kind = _number("object", name, NAMES)
        values = torch.tensor(COUNT_VALUES)
        rows = []
        for seen in self._look(images):
            facts, there = self._facts_of(seen, kind)
            rows.append(values[facts["counts"].argmax(-1).cpu()] * there.cpu())
        return torch.cat(rows)

    def _look(self, images: Tensor, also: int | None = None) -> Iterator[_Seen]:
        """The pictures in batches; a pixel is of a class that is present, or of `also`."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected pictures (b,3,h,w) in [-1, 1], got {tuple(images.shape)}")
        for some in images.float().split(self.batch) if len(images) else ():
            part = _prepared(some.to(self.device))
            found = self.network(part)
            allowed = F.pad(found.presence > PRESENT, (1, 0), value=True)
            if also is not None:
                allowed[:, 1 + also] = True
            scores = whole_map(found.pixels).masked_fill(~allowed[:, :, None, None], -1e4)
            yield _Seen(part, found, scores.argmax(1))

    def _facts_of(self, seen: _Seen, kind: int) -> tuple[dict[str, Tensor], Tensor]:
        """Logits (b,n) of the facts of one class, and whether it is seen (b,)."""
        masks = (seen.labels == 1 + kind)[:, None]
        kinds = torch.full((len(masks), 1), kind, device=self.device)
        described = self.network.objects(seen.images, seen.found, masks, kinds)
        facts = {name: logits[:, 0] for name, logits in self.network.facts(described).items()}
        return facts, masks.float().mean((1, 2, 3)) >= LEAST_AREA

    def _readings(self, seen: _Seen) -> list[Reading]:
        """The readings of one batch; the things of all its pictures are described at once."""
        areas = F.one_hot(seen.labels, 1 + len(NAMES)).float().mean((1, 2))[:, 1:]
        order = areas.argsort(1, descending=True)
        most = max(1, int((areas >= LEAST_AREA).sum(1).max()))
        kinds = order[:, :most]
        masks = seen.labels[:, None] == 1 + kinds[:, :, None, None]
        facts = self.network.facts(self.network.objects(seen.images, seen.found, masks, kinds))
        answers = {name: _best(logits) for name, logits in facts.items()}
        presence = seen.found.presence.sigmoid().cpu()
        places = seen.found.place.argmax(1).tolist()
        areas, kinds, masks = areas.cpu(), kinds.cpu(), masks.cpu()
        labels = seen.labels.to(torch.uint8).cpu().numpy()
        readings = []
        for row in range(len(labels)):
            things = tuple(
                _thing(
                    int(kind),
                    float(presence[row, kind]),
                    {name: rows[row][k] for name, rows in answers.items()},
                    masks[row, k].numpy(),
                )
                for k, kind in enumerate(kinds[row])
                if areas[row, kind] >= LEAST_AREA
            )
            readings.append(Reading(things, PLACE_NAMES[places[row]], labels[row]))
        return readings


def _prepared(images: Tensor) -> Tensor:
    """Pictures of the size and in the memory layout that the network reads fastest."""
    if images.shape[-2:] != (SIZE, SIZE):
        images = F.interpolate(
            images, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False
        )
    return images.clamp(-1, 1).contiguous(memory_format=torch.channels_last)


def _best(logits: Tensor) -> list[list[Answer]]:
    """The likeliest answer of (b,k,n) logits, per picture and thing."""
    values, numbers = logits.softmax(-1).max(-1)
    rows = zip(numbers.tolist(), values.tolist(), strict=True)
    return [list(zip(which, sure, strict=True)) for which, sure in rows]


def _thing(kind: int, probability: float, said: dict[str, Answer], mask: np.ndarray) -> SeenThing:
    colour, state = said["colours"], said["states"]
    return SeenThing(
        NAMES[kind],
        probability,
        COLOUR_NAMES[colour[0]],
        colour[1],
        STATE_NAMES[state[0]],
        state[1],
        COUNT_VALUES[said["counts"][0]],
        mask,
        float(mask.mean()),
    )


def _kinds(labels: Tensor, masks: Tensor) -> Tensor:
    """Which class most pixels of each mask (b,k,h,w) are of, the background left out: (b,k)."""
    votes = F.one_hot(labels, 1 + len(NAMES)).float().flatten(1, 2)
    return torch.bmm(masks.float().flatten(2), votes)[:, :, 1:].argmax(-1)


def _opposites() -> list[int]:
    """For every relation, the number of the one that holds for the pair turned round."""
    return [RELATION_NAMES.index(OPPOSITES[name]) for name in RELATION_NAMES]


def _number(what: str, name: str | None, names: Sequence[str | None]) -> int:
    if name not in names:
        raise ValueError(f"{what} {name!r} is unknown; accepted are {', '.join(map(str, names))}")
    return names.index(name)


def load_judge(path: str | Path | None = None, device: str | torch.device = "cpu") -> Judge:
    """The judge with the weights in `path`, or with those that ship with the project.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file holds other weights.
    """
    path = WEIGHTS if path is None else Path(path)
    state = {
        key.removeprefix("network."): value.float() if value.is_floating_point() else value
        for key, value in read_state_dict(path).items()
    }
    network = JudgeNetwork()
    load_with_report(network, state, core=("stem.", "pixels.", "heads."), source=path)
    return Judge(network, device)
