"""Lego's experiments: is a concept seen on other things, and do the things of its pictures leak.

The judge stands in for people and for a question-answering model (Lego sec. 5.3): it looks for the
concept and for the thing that was asked for. What it sees of the things the concept was learned
from has leaked (sec. 5.5, Figure 9).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.checkpoint import read_embeddings
from ldm.data.playroom.captions import STATE_PHRASES, STRANGE, plural, with_article
from ldm.data.playroom.objects import OBJECTS
from ldm.data.playroom.scene import Scene, render_scene
from ldm.data.playroom.sets import ConceptSet, get_concept_set
from ldm.data.playroom.spec import COUNTS, SceneSpec
from ldm.evaluation.judge import load_judge
from ldm.evaluation.playroom import pictures
from ldm.evaluation.tables.bank import Drawing, WordBank, first_vectors
from ldm.evaluation.tables.grid import Arm, Experiment, Row, Run, Task
from ldm.prompts.sentence import Sentence, parse_sentence
from ldm.prompts.spans import Caption
from ldm.visual import Cell, image_grid, panel, save_png

#: How an arm says the concept: with the set's own words, with one word (textual inversion), with
#: ReVersion's relation word; or with no learned word at all, in natural language or by the general
#: word that captions of this world have for a state they do not name. "drawn" is the truth: scenes
#: that show the concept on the target, which tell what the judge makes of it.
WORDINGS = ("own", "one", "relation", "language", "general", "drawn")
UNLEARNED = ("language", "general")
ONE_WORD = f"<concept:{STRANGE}>"
SEVERAL = "several"
#: Pictures of a run that are shown, and how far the noise of one seed is from that of the next.
SHOWN, APART = 5, 1000
#: From which score on a picture shows the concept on the target.
SHOWS = 0.5


@dataclass(frozen=True)
class Concept:
    """What a set of Lego's shows: a state or a number of things, and which things have it."""

    set: ConceptSet

    @property
    def state(self) -> str | None:
        """The state that the things are in, if they are not counted."""
        return self.set.spec.objects[0].state

    @property
    def count(self) -> int:
        """How many there are of them."""
        return self.set.spec.objects[0].count

    @property
    def exemplars(self) -> tuple[str, ...]:
        """The things of the pictures that the concept is learned from."""
        return tuple(one.spec.objects[0].name for one in self.set.things)

    def sentence(self, wording: str) -> str | None:
        """What an arm is learned with; ``None`` for the sentences of the set."""
        if wording == "one":
            return ONE_WORD
        if wording == "relation":
            kind = OBJECTS[self.exemplars[0]].kind
            return f"a photo of {with_article(kind)} that is <R:and>"
        return None

    def start(self, wording: str) -> Sentence:
        """A sentence with the words of an arm as they start."""
        # Where no word is learned, it does not matter which one there is.
        given = ONE_WORD if wording in UNLEARNED else self.sentence(wording)
        return parse_sentence(self.set.sentence if given is None else given)

    def prompt(self, wording: str, target: str) -> str:
        """The concept asked for on a thing that it was not learned from."""
        noun, several = OBJECTS[target].words[0], plural(OBJECTS[target].words[0], OBJECTS[target])
        if wording == "own":
            text = parse_sentence(self.set.sentence).caption.text
            return text.replace("<subject>", noun if self.state else several)
        if wording in UNLEARNED and self.state is None:
            return f"a photo of {SEVERAL if wording == 'general' else COUNTS[self.count]} {several}"
        if wording == "language":
            return f"a photo of {STATE_PHRASES[str(self.state)][0].format(with_article(noun))}"
        if wording == "general":
            return f"a photo of {with_article(f'{STRANGE} {noun}')}"
        word = "<concept>" if wording == "one" else "<R>"
        return f"a photo of {with_article(noun)} that is {word}"

    def scene(self, target: str, number: int) -> Scene:
        """The concept drawn on a thing as the world has it; another picture for each number."""
        one = replace(self.set.spec.objects[0], name=target, colour=None)
        place = self.set.places[number % len(self.set.places)]
        return render_scene(SceneSpec((one,), place=place, seed=number), masks=False)

    def fits(self, thing: Any) -> bool:
        """Whether something that the judge has seen is an instance of the concept."""
        if self.state is None:
            return bool(thing.count == self.count)
        return bool(thing.state == self.state)

    def scores(self, judge: Any, images: Tensor, target: str) -> Tensor:
        """How much of the concept on `target` the judge sees in each picture, (b,) in [0, 1]."""
        if self.state is None:
            found = (judge.count(images, target) == self.count).float()
        else:
            found = judge.state_probability(images, target, self.state)
        return found * judge.object_probability(images, target)


class LegoFamily:
    """Draws every concept on things it was not learned from, and lets the judge read the pictures.

    Options of the experiment: `targets` maps a set to those things, `images` are drawn for each run
    (targets in turn) in `steps` steps with guidance `scale`; `against` is the arm that pictures are
    compared with one by one. All arms draw from the same noise.

    Measures: ``transfer``, the share of pictures with the concept on the target; ``concept`` and
    ``target``, with either; ``score``, probability of the concept times that of the target;
    ``preferred``, the share of pictures preferred to those of the arm `against` (see `preferred`);
    ``leak``, the probability of a thing that the concept was learned from; ``bytes``, what the
    learned words take.

    `judge` is by default the project's own.

    Raises:
        ValueError: for an unknown wording.
        FileNotFoundError: when the judge's weights are missing.
    """

    def __init__(self, experiment: Experiment, model: Any, folder: Path, judge: Any = None) -> None:
        self.experiment, self.folder = experiment, folder
        self.model = model.to(memory_format=torch.channels_last)
        unknown = sorted({arm.wording for arm in experiment.arms} - set(WORDINGS))
        if unknown:
            raise ValueError(f"{experiment.name}: wordings {unknown}; accepted are {WORDINGS}")
        self.options = dict(experiment.options)
        self.judge = judge or load_judge(device=model.device)

    def tasks(self, arm: Arm, set_name: str, seed: int) -> Sequence[Task]:
        """One run on each set."""
        sentence = Concept(get_concept_set(set_name)).sentence(arm.wording)
        return [Task(f"playroom:{set_name}", sentence)]

    def targets(self, set_name: str) -> list[str]:
        """The thing that each picture of a run is to show.

        Raises:
            ValueError: when there are none for the set, or one is what the concept is learned from.
        """
        found = self.options["targets"].get(set_name, [])
        learned = sorted(set(found) & set(Concept(get_concept_set(set_name)).exemplars))
        if not found or learned:
            raise ValueError(
                f"{self.experiment.name}: options.targets.{set_name} is {found}; give things that "
                f"the concept is not learned from{f', unlike {learned}' if learned else ''}"
            )
        return [found[i % len(found)] for i in range(self.options["images"])]

    # -- what is measured of a run

    def measure(self, runs: Sequence[Run], words: Sequence[Path | None]) -> list[Row]:
        """Draw the pictures of all runs together, and read those of each."""
        if all(run.arm.wording == "drawn" for run in runs):
            return [self.read(run, self._truth(run)) for run in runs]
        vectors = [
            first_vectors(self.model, self._concept(run).start(run.arm.wording))
            if file is None
            else dict(read_embeddings(file).vectors)
            for run, file in zip(runs, words, strict=True)
        ]
        bank = WordBank(self.model, vectors)
        wanted = [
            Drawing(number, Caption.of(prompt, vectors[number]), APART * run.seed + i)
            for number, run in enumerate(runs)
            for i, prompt in enumerate(self.prompts(run))
        ]
        drawn = bank.draw(wanted, self.options["steps"], self.options["scale"])
        parts = drawn.split(self.options["images"])
        rows = [self.read(run, images) for run, images in zip(runs, parts, strict=True)]
        for row, held, file in zip(rows, vectors, words, strict=True):
            learned = [value.numel() * value.element_size() for value in held.values()]
            row["values"]["bytes"] = float(sum(learned)) if file else 0.0
        return rows

    def _truth(self, run: Run) -> Tensor:
        """Scenes that show what the pictures of a run are to show."""
        concept, targets = self._concept(run), self.targets(run.set)
        first = APART * run.seed
        return pictures([concept.scene(each, first + i) for i, each in enumerate(targets)])

    def _concept(self, run: Run) -> Concept:
        return Concept(get_concept_set(run.set))

    def prompts(self, run: Run) -> list[str]:
        """What the pictures of a run are to show."""
        concept = self._concept(run)
        return [concept.prompt(run.arm.wording, target) for target in self.targets(run.set)]

    def read(self, run: Run, images: Tensor) -> Row:
        """What the judge sees in the pictures (b, 3, h, w) of a run."""
        save_png(self.folder / f"{run.name}.png", image_grid(images[:SHOWN], SHOWN, 0))
        concept, targets = self._concept(run), self.targets(run.set)
        scores = torch.zeros(len(targets))
        for target in dict.fromkeys(targets):
            chosen = torch.tensor([target == each for each in targets])
            scores[chosen] = concept.scores(self.judge, images[chosen], target)
        things = [reading.things for reading in self.judge.read(images)]
        leaks = [self.judge.object_probability(images, each) for each in concept.exemplars]
        shown = [{t.name: concept.fits(t) for t in reversed(found)} for found in things]
        pairs = list(zip(shown, targets, strict=True))
        values: dict[str, Any] = {
            "transfer": np.mean([found.get(target, False) for found, target in pairs]),
            "concept": np.mean([any(found.values()) for found in shown]),
            "target": np.mean([target in found for found, target in pairs]),
            "score": scores.mean(),
            "leak": torch.stack(leaks).amax(0).mean(),
        }
        return {"values": {name: float(value) for name, value in values.items()},
                "scores": [round(each, 5) for each in scores.tolist()]}  # fmt: skip

    # -- what is said of several runs together

    def derive(self, rows: Sequence[Row]) -> None:
        """Compare pictures one by one with those of the arm `against`, and show some of them."""
        against = self.options.get("against")
        others = {_pair(row): row["scores"] for row in rows if row["arm"] == against}
        for row in rows:
            theirs = others.get(_pair(row))
            if theirs is not None and row["arm"] != against:
                row["values"]["preferred"] = preferred(row["scores"], theirs)
        self._show(rows)

    def _show(self, rows: Sequence[Row]) -> None:
        """Write a sheet for each set: a row of samples for every arm."""
        labels = {arm.name: arm.label or arm.name for arm in self.experiment.arms}
        for name in dict.fromkeys(row["set"] for row in rows):
            cells = []
            for row in (row for row in rows if row["set"] == name and row["seed"] == 0):
                path = self.folder / f"{row['name']}.png"
                if path.is_file():
                    strip = np.asarray(Image.open(path))
                    parts = np.split(strip, strip.shape[1] // strip.shape[0], axis=1)
                    told = [labels[row["arm"]], *[""] * (len(parts) - 1)]
                    cells.append([Cell(*each) for each in zip(parts, told, strict=True)])
            if cells:
                sheet = panel(cells, self.targets(name)[: len(cells[0])], name, tile=128)
                save_png(self.folder / f"{self.experiment.name}-{name}.png", sheet)


def _pair(row: Row) -> tuple[str, int]:
    return row["set"], row["seed"]


def preferred(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The share of pairs in which ours is the higher, of scores in [0, 1].

    Equal ones count half, and so do those in which neither picture shows it (scores below 0.5):
    nobody would prefer one of two pictures that lack what was asked for.
    """
    first, second = np.asarray(ours), np.asarray(theirs)
    even = (first == second) | (np.maximum(first, second) < SHOWS)
    return float(np.where(even, 0.5, first > second).mean())
