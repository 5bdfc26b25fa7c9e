"""How good local edits are, on drawn pictures of the playroom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.data.playroom import OBJECTS, PLACES
from ldm.data.playroom.captions import with_article
from ldm.data.playroom.splits import is_named
from ldm.editing import EditOptions, edit, replace_word
from ldm.evaluation.intervals import Mean
from ldm.evaluation.judge import Reading
from ldm.evaluation.samplers import Reader, batches
from ldm.models.diffusion.draws import noise_of
from ldm.util import progress_bar

RELATIONS = ("on", "beside", "and")


@dataclass(frozen=True)
class EditCase:
    """One edit: in the picture of `source`, `word` (which shows `old`) becomes `new`."""

    source: str
    word: str
    old: str
    new: str
    seed: int

    @property
    def target(self) -> str:
        """The prompt of the result."""
        return replace_word(self.source, self.word, with_article(OBJECTS[self.new].words[0]))

    def plain(self, shows: Mapping[str, str]) -> "EditCase":
        """The same edit in plain words instead of learned ones."""
        source = self.source
        for word, name in shows.items():
            source = source.replace(word, OBJECTS[name].words[0])
        return EditCase(source, OBJECTS[self.old].words[0], self.old, self.new, self.seed)


def edit_cases(shows: Mapping[str, str], count: int, seed: int = 0) -> list[EditCase]:
    """`count` edits of scenes of learned words; `shows` says which object each word is.

    Raises:
        ValueError: when no word is an object.
    """
    words = {word: name for word, name in shows.items() if name in OBJECTS}
    if not words:
        raise ValueError(f"none of the words {list(shows)} shows an object that could be replaced")
    others = [name for name, thing in OBJECTS.items() if is_named(name) and thing.article]
    others = [name for name in others if name not in words.values()]
    cases = []
    for number in range(count):
        rng = Random(f"edit:{seed}:{number}")
        word = rng.choice(list(words))
        left = [other for other in words if other != word]
        source = f"a photo of a {word}"
        if left:
            source += f" {rng.choice(RELATIONS)} a {rng.choice(left)}"
        source += f" {rng.choice(list(PLACES.values())).phrases[0]}"
        cases.append(EditCase(source, word, words[word], rng.choice(others), seed + number))
    return cases


#: Which of `EditFigures` are shares of edits; the others are means.
SHARES = ("appears", "gone", "had")


@dataclass(frozen=True)
class EditFigures:
    """Many edits with one setting.

    Attributes:
        appears: share of the edits in which the new object is seen.
        gone: share in which the replaced one no longer is, of those with it in their source.
        outside: mean absolute change, in grey levels of 255, outside the replaced object.
        inside: the same within it.
        had: share of the sources that show the object that is to be replaced.
    """

    appears: Mean
    gone: Mean
    outside: Mean
    inside: Mean
    had: Mean


def measure_edits(
    model: Any,
    judge: Reader,
    cases: Sequence[EditCase],
    options: EditOptions,
    *,
    batch: int = 8,
    label: str | None = None,
) -> EditFigures:
    """Carry out the edits and look at them.

    Where the replaced object really is, is what the judge finds in the source. Progress is shown
    under `label`.
    """
    found: dict[str, list[float]] = {name: [] for name in EditFigures.__dataclass_fields__}
    shape = model.latent_shape()
    for part in progress_bar(list(batches(len(cases), batch)), label):
        some = cases[part]
        noise = [noise_of(shape, case.seed) for case in some]
        done = edit(
            model,
            [case.source for case in some],
            [case.target for case in some],
            options,
            x_T=torch.stack(noise),
        )
        before, after = judge.read(done.source.cpu()), judge.read(done.edited.cpu())
        change = grey_change(done.source, done.edited)
        for i, case in enumerate(some):
            _note(found, case, (before[i], after[i]), change[i])
    of = {True: Mean.share, False: Mean.of}
    return EditFigures(**{name: of[name in SHARES](each) for name, each in found.items()})


def grey_change(before: Tensor, after: Tensor) -> np.ndarray:
    """The mean absolute change of every pixel, in grey levels of 255: (b, h, w)."""
    change: np.ndarray = ((after.float() - before.float()).abs().mean(1) * 127.5).cpu().numpy()
    return change


def _note(
    found: dict[str, list[float]],
    case: EditCase,
    readings: tuple[Reading, Reading],
    change: np.ndarray,
) -> None:
    """Add one edit to what was `found`; change is (h, w)."""
    before, after = ({thing.name for thing in reading.things} for reading in readings)
    found["appears"].append(float(case.new in after))
    found["had"].append(float(case.old in before))
    if case.old not in before:
        return
    found["gone"].append(float(case.old not in after))
    inside = np.asarray(readings[0].labels) == 1 + list(OBJECTS).index(case.old)
    if inside.shape != change.shape:
        rows, columns = (
            np.arange(side) * inside.shape[k] // side for k, side in enumerate(change.shape)
        )
        inside = inside[np.ix_(rows, columns)]
    if inside.any():
        found["inside"].append(float(change[inside].mean()))
    if not inside.all():
        found["outside"].append(float(change[~inside].mean()))
