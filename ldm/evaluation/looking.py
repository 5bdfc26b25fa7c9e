"""Take looks at the words of a run (`ldm.evaluation.looks`): measure, read attention, sample."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from ldm.evaluation.looks import SHOWN, SavedLook, Shown
from ldm.evaluation.pictures import Pictures, draw
from ldm.evaluation.probe import Probe
from ldm.evaluation.words import Overlaps, report_words, word_overlaps
from ldm.inference import SamplingOptions
from ldm.prompts.sentence import MARKED
from ldm.visual import to_uint8


class Looker:
    """Looks at the words of `model` in the first `images` pictures of its training set.

    `start` are the overlaps with the true masks of the words as they started, once known.
    """

    def __init__(
        self, model: Any, dataset: Any, pictures: Pictures | None = None, images: int = 8
    ) -> None:
        self.model, self.pictures = model, pictures
        self.probe = Probe(model, dataset, images=images)
        words = model.embedding_manager.learnable
        self.start: Overlaps = {}
        prompts: list[str] = []
        if pictures is not None and pictures.every:
            prompts = pictures.over_time(dataset.sentence_of(0).caption, words)
        truths = self.probe.truths[:SHOWN]
        absent = np.zeros_like(next((mask for truth in truths for mask in truth.values()), False))
        objects = dict.fromkeys(word for truth in truths for word in truth)
        self.shown = Shown(
            pictures=to_uint8(self.probe.pictures[:SHOWN]),
            sentences=self.probe.sentences[:SHOWN],
            concepts=[word.name for word in words if word.role in MARKED],
            truths={w: np.stack([truth.get(w, absent) for truth in truths]) for w in objects},
            prompts=prompts,
        )

    def __call__(self, step: int, *, samples: bool = False) -> SavedLook:
        """A look at the words after `step` steps, with or without samples of them."""
        began, model = time.monotonic(), self.model
        look = self.probe()
        drawn = None
        if samples and self.shown.prompts and self.pictures is not None:
            options = SamplingOptions("ddim", self.pictures.quick_steps, self.pictures.scale)
            drawn = draw(model, self.shown.prompts, options)
        overlaps = word_overlaps(look.maps, self.probe.truths)
        if step == 0:
            self.start = overlaps
        words = report_words(model.embedding_manager, model.cond_stage_model, overlaps, self.start)
        figures = {
            "step": step,
            "loss": look.loss,
            "words": [asdict(row) for row in words],
            "overlaps": overlaps,
            "seconds": round(time.monotonic() - began, 3),
        }
        maps = {word: stack[:SHOWN].numpy() for word, stack in look.maps.items()}
        return SavedLook(figures, maps, drawn)


@contextmanager
def as_started(manager: Any) -> Iterator[None]:
    """The words of `manager` as they were before training, within the block."""
    vectors = dict(manager.string_to_param_dict.items())
    kept = {word: value.detach().clone() for word, value in vectors.items()}
    with torch.no_grad():
        try:
            for word, value in vectors.items():
                value.copy_(manager.initial_embeddings[word])
            yield
        finally:
            for word, value in vectors.items():
                value.copy_(kept[word])
