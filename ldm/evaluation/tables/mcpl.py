"""MCPL's experiments: what its arms learn from, where their words look, and what they render.

Every figure of a learned word stands beside that of the same word before it was learned, plain
overlaps beside permuted ones (without adjectives words may come out swapped), and what a word looks
at beside what it renders (a word that has become a colour looks at the right place too).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from ldm.checkpoint import read_embeddings
from ldm.data.playroom.splits import is_named
from ldm.evaluation.judge import load_judge
from ldm.evaluation.tables.bank import WordBank, first_vectors
from ldm.evaluation.tables.grid import Arm, Experiment, Row, Run, Task
from ldm.evaluation.tables.pictures import Pictures, alone, draw_set, images, without_adjectives
from ldm.evaluation.tables.rendering import Ask, asks_of, relation_asks, score, score_relations
from ldm.evaluation.words import best_matching, mean_overlap, word_overlaps
from ldm.prompts.sentence import Sentence, apply_strategy, parse_sentence
from ldm.prompts.templates import fill
from ldm.visual import Cell, panel, save_png, to_uint8

#: Which sentence is shown: the set's own, the same without adjectives, one word of it at a time,
#: a relation of its own for each picture, or one word for all relations.
WORDINGS = ("own", "bare", "alone", "relations", "relation")
#: The arm that is the best estimate of what there is to learn: TI with true masks.
MASKED = "masked"
PHOTO = "a photo of a {}"


class MCPLFamily:
    """Learns the words of drawn sets together; see :class:`~ldm.evaluation.tables.grid.Family`.

    Options: ``pictures`` to learn from and ``held`` back, ``size``, noise levels ``shares``,
    ``samples`` of each of the ``prompts`` (``{word}``, ``{adjective}``, ``{colour}``) and how they
    are drawn (``steps``, ``scale``). `judge` reads what is drawn; by default the project's own.

    Raises:
        ValueError: for an arm with an unknown wording.
        FileNotFoundError: when the judge's weights are missing.
    """

    def __init__(self, experiment: Experiment, model: Any, folder: Path, judge: Any = None) -> None:
        unknown = sorted({arm.wording for arm in experiment.arms} - set(WORDINGS))
        if unknown:
            raise ValueError(f"{experiment.name}: wordings {unknown}; accepted are {WORDINGS}")
        self.model, self.folder, self.options = model, folder, dict(experiment.options)
        self.judge = judge or load_judge(device=model.device)
        self._drawn: dict[tuple[str, int], Pictures] = {}

    def pictures(self, name: str, seed: int) -> Pictures:
        """The pictures of a set, drawn once."""
        if (name, seed) not in self._drawn:
            count, held = self.options["pictures"], self.options["held"]
            size = self.options.get("size", 64)
            self._drawn[name, seed] = draw_set(self.folder, name, seed, count, held, size)
        return self._drawn[name, seed]

    def tasks(self, arm: Arm, set_name: str, seed: int) -> list[Task]:
        """One run on the whole sentence; with the wording "alone" one for each word."""
        pictures = self.pictures(set_name, seed)
        folder, markup = str(pictures.folder), pictures.chosen.sentence
        if arm.wording == "alone":
            return [Task(folder, alone(markup, word), word) for word in pictures.things]
        told = {"own": markup, "bare": without_adjectives(markup), "relations": None,
                "relation": _one_relation(pictures)}  # fmt: skip
        return [Task(folder, told[arm.wording])]

    # -- what is measured of a run

    def measure(self, runs: Sequence[Run], words: Sequence[Path | None]) -> list[Row]:
        """Overlaps with the truth, what is rendered, and what the text encoder makes of words."""
        vectors = [
            first_vectors(self.model, self.sentence(run))
            if file is None
            else dict(read_embeddings(file).vectors)
            for run, file in zip(runs, words, strict=True)
        ]
        bank = WordBank(self.model, vectors)
        rows: list[Row] = []
        for number, run in enumerate(runs):
            meanings = {word: bank.meaning(word, number) for word in self._things(run)}
            values = {**self._overlaps(bank, number, run), **self._known(bank, run, meanings)}
            told = {word: meaning.tolist() for word, meaning in meanings.items()}
            rows.append({"values": values, "meanings": told})
        for row, scores in zip(rows, self._rendered(bank, runs), strict=True):
            row["values"].update(scores)
        return rows

    def sentence(self, run: Run) -> Sentence:
        """The sentence of a run with all of its words, its strategy applied."""
        pictures = self.pictures(run.set, run.seed)
        if run.task.sentence is not None:
            return apply_strategy(parse_sentence(run.task.sentence), run.arm.strategy)
        told = [parse_sentence(scene.caption) for scene in pictures.shown]
        words = {word.name: word for sentence in told for word in sentence.words}
        return Sentence(told[0].caption, tuple(words.values()))

    def _things(self, run: Run) -> dict[str, Any]:
        """The words of a run that are objects."""
        things = self.pictures(run.set, run.seed).things
        return {run.task.part: things[run.task.part]} if run.task.part else things

    def _known(self, bank: WordBank, run: Run, meanings: Mapping[str, Tensor]) -> dict[str, float]:
        """How like the world's own words the learned ones are, where training has named them."""
        found = [
            float(F.cosine_similarity(meanings[word], bank.meaning(thing.name), dim=0))
            for word, thing in self._things(run).items()
            if is_named(thing.name)
        ]
        return {"known": float(np.mean(found))} if found else {}

    def _overlaps(self, bank: WordBank, number: int, run: Run) -> dict[str, float]:
        """IoU of the words' masks with the truth, plain and permuted, in both kinds of pictures."""
        pictures, sentence = self.pictures(run.set, run.seed), self.sentence(run)
        values = {}
        for kind, scenes in (("", pictures.shown), ("_held", pictures.held)):
            own = run.task.sentence is None
            told = [parse_sentence(s.caption) if own else sentence for s in scenes]
            captions = [fill(PHOTO, one.caption) for one in told]
            names = [word for word in self._things(run) if word in bank.vectors[number]]
            maps = bank.maps(number, images(scenes), captions, names, self.options["shares"])
            truths = [
                {word: mask for word, mask in pictures.truth(scene).items() if word in maps}
                for scene in scenes
            ]
            found = word_overlaps(maps, truths)
            best = best_matching(found)
            values[f"iou{kind}"] = mean_overlap(found) or 0.0
            values[f"iou{kind}_permuted"] = best[0] if best else values[f"iou{kind}"]
        return values

    def _rendered(self, bank: WordBank, runs: Sequence[Run]) -> list[dict[str, float]]:
        """What the words render, read by the judge: all runs' pictures are drawn together."""
        asked: list[Ask] = []
        for number, run in enumerate(runs):
            sentence, things = self.sentence(run), self._things(run)
            asked += asks_of(number, run.seed, sentence, things, self.options)
            if run.arm.wording in ("relations", "relation"):
                asked += relation_asks(number, run.seed, sentence, self.options)
        drawn = bank.draw(
            [ask.drawing for ask in asked], self.options["steps"], self.options["scale"]
        )
        readings = self.judge.read(drawn)
        for number, run in enumerate(runs):
            own = [i for i, ask in enumerate(asked) if ask.drawing.run == number]
            self._show(run, [asked[i] for i in own], drawn[own])
        return [
            self._scored(number, run, asked, readings, drawn) for number, run in enumerate(runs)
        ]

    def _show(self, run: Run, asked: Sequence[Ask], drawn: Tensor) -> None:
        """Keep the pictures that a run was judged by, to be looked at."""
        rows: dict[str, list[Cell]] = {}
        for ask, picture in zip(asked, to_uint8(drawn), strict=True):
            row = rows.setdefault(str(ask.drawing.caption), [])
            row.append(Cell(picture, "" if row else str(ask.drawing.caption)))
        title = f"{run.arm.label}, {run.set}, seed {run.seed}"
        file = self.folder.parent / "samples" / run.arm.name / f"{run.name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        save_png(file, panel(list(rows.values()), title=title, tile=128))

    def _scored(
        self, number: int, run: Run, asked: Sequence[Ask], readings: Sequence[Any], drawn: Tensor
    ) -> dict[str, float]:
        """The rendering scores of one run."""
        own = [i for i, ask in enumerate(asked) if ask.drawing.run == number]
        plain = [i for i in own if not asked[i].relation]
        values = score([asked[i] for i in plain], [readings[i] for i in plain], self._things(run))
        related = [i for i in own if asked[i].relation]
        if related:
            some = [asked[i] for i in related], [readings[i] for i in related], drawn[related]
            values.update(score_relations(self.judge, *some))
        return values

    # -- what is said of several runs together

    def derive(self, rows: Sequence[Row]) -> None:
        """Prompt similarity to the words that were learned alone with true masks (Figure 6).

        `similarity` is the mean cosine of what the text encoder makes of a word and of its masked
        estimates on the same set, over all pairs of runs (an estimate is not compared with itself);
        `margin` is how much nearer the word is to its own estimate than to those of the set's other
        words.
        """
        estimates: dict[str, dict[str, list[tuple[int, np.ndarray]]]] = defaultdict(dict)
        for row in rows:
            if row["arm"] == MASKED:
                for word, vector in row["meanings"].items():
                    pair = row["seed"], _unit(vector)
                    estimates[row["set"]].setdefault(word, []).append(pair)
        for row in rows:
            row["values"].update(_similar(row, estimates.get(row["set"], {})))


def _one_relation(pictures: Pictures) -> str:
    """A set's sentence with one word for all of its relations."""
    markup = pictures.chosen.sentence
    for word in parse_sentence(markup).words:
        if word.name not in pictures.chosen.shows:
            markup = markup.replace(f"<{word.name.strip('<>')}:", "<relation:")
    return markup


def _unit(vector: Sequence[float]) -> np.ndarray:
    array = np.asarray(vector, float)
    return array / max(np.linalg.norm(array), 1e-12)


def _similar(row: Row, estimates: dict[str, list[tuple[int, np.ndarray]]]) -> dict[str, float]:
    """`similarity` and `margin` of a run's words, where there are estimates to compare with."""
    near, margins = [], []
    for word, vector in row["meanings"].items():
        cosines: dict[str, float] = {}
        for other, found in estimates.items():
            apart = row["arm"] == MASKED and other == word
            cosine = [
                float(_unit(vector) @ unit)
                for seed, unit in found
                if not (apart and seed == row["seed"])
            ]
            if cosine:
                cosines[other] = float(np.mean(cosine))
        others = [cosine for other, cosine in cosines.items() if other != word]
        if word in cosines:
            near.append(cosines[word])
            margins += [cosines[word] - float(np.mean(others))] if others else []
    values = {"similarity": near, "margin": margins}
    return {name: float(np.mean(told)) for name, told in values.items() if told}
