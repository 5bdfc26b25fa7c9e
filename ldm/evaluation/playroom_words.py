"""Single words learned by textual inversion: are they their object, and do they find it?

Words of what the default model can name, of what it draws but cannot name, and of what it has never
drawn (`ldm.data.playroom.splits`), measured before and after learning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from PIL import Image

from ldm.data.playroom.colours import COLOURS
from ldm.data.playroom.objects import OBJECTS
from ldm.data.playroom.places import PLACES
from ldm.data.playroom.scene import Scene, render_scene
from ldm.data.playroom.spec import ObjectSpec, SceneSpec
from ldm.data.playroom.splits import UNNAMED_OBJECTS, UNSEEN_OBJECTS, is_drawn, is_named
from ldm.evaluation.intervals import Mean
from ldm.evaluation.judge import Judge
from ldm.evaluation.localisation import SHARES, binary_mask, iou
from ldm.evaluation.playroom import pictures
from ldm.evaluation.tables.bank import Drawing, WordBank
from ldm.prompts.spans import Caption

#: The word that is learned.
WORD = "<it>"
#: How many objects that the model can name are tried.
NAMED = 4


@dataclass(frozen=True)
class Trial:
    """An object to learn a word for: its name, what the model knows of it, its colour."""

    name: str
    known: str
    colour: str

    @property
    def sentence(self) -> str:
        """The markup to learn from: the colour as an adjective, the word from a general one."""
        return f"a [{self.colour}] <it:{OBJECTS[self.name].kind}>"

    def scenes(self, count: int, size: int = 64, seed: int = 0) -> list[Scene]:
        """Pictures of the object alone, in its colour, in different places."""
        rng = Random(f"trial:{self.name}:{seed}")
        places = rng.sample(tuple(PLACES), len(PLACES))
        thing = ObjectSpec(self.name, self.colour)
        plain = SceneSpec((thing,))
        return [
            render_scene(
                replace(plain, place=places[k % len(places)], seed=rng.getrandbits(40)), size
            )
            for k in range(count)
        ]


def trials() -> list[Trial]:
    """Some objects that the model can name, all unnamed and all unseen ones."""
    named = [name for name in OBJECTS if is_named(name)]
    step = len(named) // NAMED
    groups = {
        "seen": named[step // 2 :: step][:NAMED],
        "unnamed": UNNAMED_OBJECTS,
        "unseen": UNSEEN_OBJECTS,
    }
    found = []
    for known, names in groups.items():
        for name in names:
            rng = Random(f"colour:{name}")
            fitting = [c for c in COLOURS if is_drawn(name, c) or known == "unseen"]
            found.append(Trial(name, known, rng.choice(fitting)))
    return found


def write_pictures(trial: Trial, folder: Path, count: int = 4, size: int = 64) -> Path:
    """The pictures to learn from as files of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(trial.scenes(count, size), start=1):
        Image.fromarray(one.image).save(folder / f"{number}.png")
    return folder


@torch.no_grad()
def measure(
    bank: WordBank, run: int, trial: Trial, judge: Judge, *,
    samples: int = 16, scenes: int = 16, steps: int = 25, scale: float = 5.0,
) -> dict[str, Mean]:  # fmt: skip
    """What the word of a run of the bank is worth.

    "found": the share of pictures of "a photo of a <it>" in which the judge sees the object.
    "iou" and "iou behind colour": overlap of the word's attention with the object in renders it was
    not learned from, without and with the colour before it.
    """
    captions = [f"a photo of a {WORD}"] * samples
    wanted = [
        Drawing(run, Caption.of(text, [WORD]), seed)
        for seed, text in enumerate(captions, start=500)
    ]
    drawn = bank.draw(wanted, steps, scale)
    found = {"found": Mean.share(r.find(trial.name) is not None for r in judge.read(drawn))}
    shown = trial.scenes(scenes, seed=1)
    for name, text in (("iou", WORD), ("iou behind colour", f"{trial.colour} {WORD}")):
        caption = Caption.of(f"a photo of a {text}", [WORD])
        maps = bank.maps(run, pictures(shown), [caption] * len(shown), [WORD], SHARES)[WORD]
        masks = binary_mask(maps, 0.5, shown[0].objects[0].mask.shape)
        found[name] = Mean.of(
            iou(m, one.objects[0].mask) for m, one in zip(masks, shown, strict=True)
        )
    return found


def pooled(kinds: Sequence[str], rows: Sequence[dict[str, Mean]]) -> dict[str, dict[str, Mean]]:
    """Per kind of knowledge ("seen", ...), every figure's mean over the objects of that kind."""
    found: dict[str, dict[str, Mean]] = {}
    for kind in dict.fromkeys(kinds):
        own = [row for which, row in zip(kinds, rows, strict=True) if which == kind]
        found[kind] = {name: Mean.of(row[name].value for row in own) for name in own[0]}
    return found
