"""AttnMask: learn words only where they look (MCPL sec. 3.4, eq. 2).

The mask of an image is made from the attention of that image alone, without gradient.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.concepts.objective import TrainStep
from ldm.concepts.processes import everyones, everyones_rows, processes
from ldm.concepts.recorder import adjective_of, concept_words, to_device
from ldm.prompts.sentence import as_words

logger = logging.getLogger(__name__)

KINDS = ("hard", "soft", "given", "skip")
AVERAGES = ("step", "running")

#: Whose map it is: run, image, flip, word.
Key = tuple[int, int, bool, str]
Size = tuple[int, int]


class AttentionMask:
    """The mask of a training step, from the recorded attention of the selected words.

    ``M`` is the mean map of a word divided by its own maximum over the image, ``B = [M > k]``, and
    the mask the union of B over the selected words that the image's caption contains.

    Args:
        kind: ``hard`` (B), ``soft`` (M itself, the maximum over words), ``given`` (the masks that
            come with the pictures, instead of attention) or ``skip`` (no mask).
        threshold: k.
        average: ``step`` takes the maps of this step; ``running`` their mean over all training
            steps so far, kept for each run, image, flip and word.
        words: the words that make the mask, learnable or not, as they are spelt in the captions.
            By default the concepts (see `concept_words`) and, with `adjectives`, the adjectives
            bound to them.
        adjectives: whether bound adjectives count when `words` does not say.

    Raises:
        ValueError: for an unknown kind or average, or a threshold outside [0, 1).
    """

    def __init__(
        self,
        kind: str = "hard",
        threshold: float = 0.5,
        average: str = "step",
        words: str | Sequence[str] | None = None,
        adjectives: bool = True,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"mask kind {kind!r} is unknown; accepted are {', '.join(KINDS)}")
        if average not in AVERAGES:
            raise ValueError(
                f"mask average {average!r} is unknown; accepted are {', '.join(AVERAGES)}"
            )
        if not 0 <= threshold < 1:
            raise ValueError(
                f"mask threshold {threshold}: maps lie in [0, 1], so give 0 or more and less than 1"
            )
        self.kind, self.threshold, self.average = kind, threshold, average
        self.words, self.adjectives = as_words(words), adjectives
        self.forget()
        self._warned = False

    def forget(self) -> None:
        """Drop the maps of the steps so far, as at the beginning of a run."""
        self.kept = RunningMaps()

    @property
    def reads_attention(self) -> bool:
        """Whether attention must be recorded for it."""
        return self.kind in ("hard", "soft")

    def select(self, names: Sequence[str], embeddings: Any = None) -> list[str]:
        """Those of the recorded `names` that make the mask."""
        if self.words:
            return [name for name in names if name in self.words]
        adjectives = {adjective_of(name) for name in names}
        wanted = set(concept_words((n for n in names if n not in adjectives), embeddings))
        if self.adjectives:
            wanted |= {adjective_of(word) for word in wanted}
        return [name for name in names if name in wanted]

    def __call__(self, step: TrainStep) -> Tensor | None:
        """The mask (b, 1, h, w) at the latent's size, or ``None`` for no mask.

        An image whose caption has none of the words is not masked. Only steps that learn (those
        with gradients enabled) enter the running mean.

        Raises:
            ValueError: when the step carries no attention, or no masks where they are to be given,
                or ``average: running`` finds no image numbers.
        """
        if self.kind == "skip":
            return None
        if self.kind == "given":
            return given_mask(step)
        if step.attention is None:
            raise ValueError(
                "a mask needs the words' attention and this step has none: attention is recorded "
                "only where there are learnable words (an embedding manager)"
            )
        learns = torch.is_grad_enabled()
        with torch.no_grad():
            return self._mask(step, step.attention, learns and self.average == "running")

    def _mask(self, step: TrainStep, attention: Any, remember: bool) -> Tensor | None:
        names = self.select(attention.words, step.embeddings)
        chosen = [attention.words.index(name) for name in names]
        present = attention.present[:, chosen]
        found = bool(present.any())
        if found or processes() > 1:  # the other processes wait for what is remembered here
            maps = attention.maps()
            maps = maps.index_select(1, to_device(chosen, maps.device).long())
            if remember:
                maps = self._running(step, names, present, maps)
        if not found:
            self._say_nothing_found(attention.words)
            return None
        present = to_device(present, maps.device)
        largest = maps.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
        evidence = maps / largest
        if self.kind == "hard":
            evidence = (evidence > self.threshold).to(maps)
        union = evidence.masked_fill(~present[..., None, None], 0).amax(1, keepdim=True)
        # An image without any of the words has no evidence to be restricted by.
        union = union.masked_fill(~present.any(1)[:, None, None, None], 1)
        return F.interpolate(union, size=step.prediction.shape[-2:], mode="nearest")

    def _say_nothing_found(self, names: Sequence[str]) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "no mask: none of the words %s is in the captions, which have %s",
                list(self.words) or "that are concepts",
                list(names),
            )

    def _running(
        self, step: TrainStep, names: Sequence[str], present: Tensor, maps: Tensor
    ) -> Tensor:
        """`maps` (b, words, h, w) with every present one replaced by its mean over the steps."""
        if step.image_id is None:
            raise ValueError(
                "mask average 'running' must know which image is which: use a dataset that gives "
                "'image_id' (and 'flip'), or average: step"
            )
        # These few numbers stay on the host (the data module sees to it): nothing waits here.
        images = step.image_id.tolist()
        flips = [False] * len(images) if step.flip is None else step.flip.bool().tolist()
        runs = [0] * len(images) if step.run is None else step.run.tolist()
        rows, columns = present.nonzero(as_tuple=True)
        keys = [
            (runs[i], images[i], flips[i], names[j])
            for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
        ]
        index = to_device(torch.stack([rows, columns]), maps.device)
        added, own = everyones_rows(maps[index[0], index[1]])
        keys = everyones(keys)
        means = self.kept.add(keys, added)[own] if keys else added
        return maps.index_put((index[0], index[1]), means)

    def commit(self) -> None:
        """The step of which the maps were has been taken: they belong to the running means."""
        self.kept.commit()

    def state_dict(self) -> dict[str, Any]:
        """The running means of all steps that were taken, for a checkpoint."""
        return self.kept.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the running means of a checkpoint."""
        self.kept.load_state_dict(state)


def given_mask(step: TrainStep) -> Tensor:
    """The masks that came with the pictures, at the latent's size: (b, 1, h, w).

    Raises:
        ValueError: when none came.
    """
    mask = step.extras.get("mask")
    if mask is None:
        raise ValueError(
            "mask kind 'given' needs the masks of the pictures: switch them on with "
            "data.params.train.params.given_masks=true"
        )
    size = step.prediction.shape[-2:]
    return F.interpolate(mask[:, None].to(step.prediction), size=size, mode="nearest")


class RunningMaps:
    """Mean map per key over all that was added; grows as new keys appear.

    Maps of each size have a table of their own, sums (rows, h, w) on the device of the maps. How
    often a key was added is counted on the host. What was added since the last `commit` belongs to
    a step that may yet fail: the means have it, `state_dict` does not.
    """

    def __init__(self) -> None:
        self.rows: dict[Size, dict[Key, int]] = {}
        self.counts: dict[Size, list[int]] = {}
        self.sums: dict[Size, Tensor] = {}
        #: The count and the sum, at the last `commit`, of the rows that have changed since.
        self._before: dict[Size, dict[int, tuple[int, Tensor]]] = {}

    def add(self, keys: Sequence[Key], maps: Tensor) -> Tensor:
        """Add maps (n, h, w), one per key; the means (n, h, w) of the same keys afterwards.

        Several maps of one key are added one after the other: the sum never depends on how a device
        schedules its threads.
        """
        size = (maps.shape[-2], maps.shape[-1])
        table = self.rows.setdefault(size, {})
        counts = self.counts.setdefault(size, [])
        rows = [table.setdefault(key, len(table)) for key in keys]
        counts += [0] * (len(table) - len(counts))
        sums = self.sums[size] = self._room(size, len(table), maps)
        self._note(size, rows)
        for places in _turns(rows):
            target = to_device([rows[place] for place in places], maps.device)
            sums.index_add_(0, target, maps[to_device(places, maps.device)])
        for row in rows:
            counts[row] += 1
        times = to_device([float(counts[row]) for row in rows], maps.device)
        return sums[to_device(rows, maps.device)] / times[:, None, None]

    def _note(self, size: Size, rows: Sequence[int]) -> None:
        """Keep what `rows` are now, unless they have changed since the last `commit` already."""
        before = self._before.setdefault(size, {})
        first = [row for row in dict.fromkeys(rows) if row not in before]
        if first:
            held = self.sums[size][to_device(first, self.sums[size].device)]
            for row, total in zip(first, held.unbind(), strict=True):
                before[row] = self.counts[size][row], total

    def commit(self) -> None:
        """Count what was added: the step that it belongs to has been taken."""
        self._before = {}

    def _room(self, size: Size, rows: int, like: Tensor) -> Tensor:
        """The table of `size` on the device of the maps, with at least `rows` rows."""
        sums = self.sums.get(size, like.new_zeros(0, *size)).to(like, non_blocking=True)
        if len(sums) >= rows:
            return sums
        return torch.cat([sums, like.new_zeros(max(rows, 2 * len(sums)) - len(sums), *size)])

    def state_dict(self) -> dict[str, Any]:
        """What was committed, as plain containers and tensors: a list of tables."""
        tables = [self._committed(size) for size in self.rows]
        return {"tables": [table for table in tables if table["keys"]]}

    def _committed(self, size: Size) -> dict[str, Any]:
        """The table of `size` as it was at the last `commit`."""
        before, counts = self._before.get(size, {}), list(self.counts[size])
        for row, (count, _) in before.items():
            counts[row] = count
        known = sum(count > 0 for count in counts)  # rows of new keys are the last ones
        sums = self.sums[size][:known].detach().cpu().clone()
        for row, (count, total) in before.items():
            if count:
                sums[row] = total
        keys = [list(key) for key in self.rows[size]]
        return {"keys": keys[:known], "counts": counts[:known], "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict` described."""
        self.rows, self.counts, self.sums, self._before = {}, {}, {}, {}
        for saved in state["tables"]:
            sums = saved["sums"].clone()
            size = (sums.shape[-2], sums.shape[-1])
            keys = ((run, image, flip, word) for run, image, flip, word in saved["keys"])
            self.rows[size] = {key: row for row, key in enumerate(keys)}
            self.counts[size], self.sums[size] = list(saved["counts"]), sums


def _turns(rows: Sequence[int]) -> list[list[int]]:
    """The places in `rows`, in groups within which no row occurs twice."""
    turns: list[list[int]] = []
    seen: Counter[int] = Counter()
    for place, row in enumerate(rows):
        if seen[row] == len(turns):
            turns.append([])
        turns[seen[row]].append(place)
        seen[row] += 1
    return turns
