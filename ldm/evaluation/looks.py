"""What was seen of the words during a run, as files: ``looks/`` in the run's folder.

``start.json`` and ``pictures.npz`` say what is looked at; every look leaves ``<step>.json`` with
its figures and ``<step>.npz`` with the attention maps and, now and then, samples. A report is made
from them alone, whether the run came to its end or not.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm.checkpoint import write_atomic

#: Pictures that are shown, out of all that are looked at.
SHOWN = 4


@dataclass(frozen=True)
class Shown:
    """What is looked at: `pictures` (b, h, w, 3) uint8 with their `sentences`.

    `concepts` are the words that stand for things or states, `truths` the true masks of those
    that have some, bool (b, h, w); `prompts` are what samples are drawn of.
    """

    pictures: NDArray[np.uint8]
    sentences: Sequence[str]
    concepts: Sequence[str] = ()
    truths: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    prompts: Sequence[str] = ()

    def write(self, folder: Path) -> None:
        """Keep it in the `folder` of the looks."""
        folder.mkdir(parents=True, exist_ok=True)
        masks = {"truths": np.stack(list(self.truths.values()))} if self.truths else {}
        _save_arrays(folder / "pictures.npz", pictures=self.pictures, **masks)
        start = {"sentences": list(self.sentences), "concepts": list(self.concepts),
                 "objects": list(self.truths), "prompts": list(self.prompts)}  # fmt: skip
        write_json(folder / "start.json", start)

    @classmethod
    def read(cls, folder: Path) -> "Shown | None":
        """What the looks in `folder` were at, if that was written."""
        if not (folder / "start.json").is_file():
            return None
        start = json.loads((folder / "start.json").read_text(encoding="utf-8"))
        with np.load(folder / "pictures.npz") as arrays:
            masks = arrays.get("truths", ())
            truths = dict(zip(start["objects"], masks, strict=True))
            said = (start["sentences"], start["concepts"], truths, start["prompts"])
            return cls(arrays["pictures"], *said)


@dataclass(frozen=True)
class SavedLook:
    """One look of a run: `figures` are step, loss, seconds, the word table and the overlaps.

    `maps` are the words' attention (b, m, n) in the shown pictures, `samples` (prompts, h, w, 3).
    """

    figures: dict[str, Any]
    maps: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    samples: NDArray[np.uint8] | None = None

    @property
    def step(self) -> int:
        """After how many training steps."""
        return int(self.figures["step"])

    @property
    def loss(self) -> float:
        """The evaluation loss."""
        return float(self.figures["loss"])

    def write(self, folder: Path) -> None:
        """Keep it in `folder`; the figures appear last, so that a look there is whole."""
        arrays: dict[str, NDArray[Any]] = {}
        if self.maps:
            arrays["maps"] = np.stack(list(self.maps.values())).astype(np.float16)
        if self.samples is not None:
            arrays["samples"] = self.samples
        name = f"{self.step:06d}"
        _save_arrays(folder / f"{name}.npz", **arrays)
        write_json(folder / f"{name}.json", {**self.figures, "maps": list(self.maps)})

    @classmethod
    def read(cls, path: Path) -> "SavedLook":
        """The look whose figures are in `path`."""
        figures = json.loads(path.read_text(encoding="utf-8"))
        with np.load(path.with_suffix(".npz")) as arrays:
            stack = np.asarray(arrays.get("maps", ()), dtype=np.float32)
            maps = dict(zip(figures.pop("maps"), stack, strict=True))
            return cls(figures, maps, arrays.get("samples"))


def read_looks(folder: Path) -> list[SavedLook]:
    """All looks in `folder`, in the order of their steps."""
    return [SavedLook.read(path) for path in sorted(folder.glob("[0-9]*.json"))]


def forget_looks(folder: Path, after: int) -> None:
    """Remove the looks of steps above `after`: what a run that continues there does anew."""
    for path in [*folder.glob("[0-9]*.json"), *folder.glob("[0-9]*.npz")]:
        if int(path.stem) > after:
            path.unlink()


def best_look(looks: Sequence[SavedLook]) -> SavedLook | None:
    """That with the lowest evaluation loss, the words as they started left out."""
    learned = [look for look in looks if look.step > 0]
    return min(learned, key=lambda look: look.loss, default=None)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON that people can read, all of it or nothing."""
    with write_atomic(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        Path(temporary).write_text(text, encoding="utf-8")


def _save_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    with write_atomic(path) as temporary, Path(temporary).open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
