"""How many scenes of the playroom are drawn in a second.

    python -m benchmarks.scenes

One process draws at every size; then loaders with workers draw training examples, beside none.
Nothing is drawn by anybody else while a case is timed.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

from benchmarks.harness import Case, Report, parser, started
from ldm.data.playroom import PlayroomScenes

SIZES = (64, 128, 256, 512)
WORKERS = (0, 1, 2)
#: Batches of a round: many beside the few that more or fewer may be ready at its end than before.
BATCHES = 32


def drawing(size: int, count: int, *, masks: bool = False) -> Callable[[], None]:
    """Draw `count` scenes of `size` pixels that were not drawn before."""
    world, numbers = PlayroomScenes(size=size, length=10**8, masks=masks), itertools.count()

    def draw() -> None:
        for number in itertools.islice(numbers, count):
            world[number]

    return draw


class Loading:
    """Draw batches of training examples by a loader of `workers` that is already at work."""

    def __init__(self, workers: int, batch: int) -> None:
        self.workers, self.batch = workers, batch
        self.seeds = itertools.count()
        self.loader: Iterator[Any] = iter(())

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """A loader for one round, of which all that was ordered before the clock starts is taken.

        A loader that lives on fills its store while others are timed, and is timed emptying it.
        This one is emptied as fast as it draws, before the clock starts as after.
        """
        world = PlayroomScenes(size=64, seed=next(self.seeds), length=10**8)
        loader = DataLoader(world, batch_size=self.batch, num_workers=self.workers)
        self.loader = iter(loader)
        for _ in range(self.workers * (loader.prefetch_factor or 0)):
            next(self.loader)
        try:
            yield
        finally:
            self.loader = iter(())  # the workers of the other end with it

    def __call__(self) -> None:
        for _ in range(BATCHES):
            next(self.loader)


def timed(report: Report, title: str, count: int, cases: dict[str, Case]) -> None:
    """A table of `cases`, each of which draws `count` scenes."""
    found = report.time(title, cases)
    rates = [{"name": one.name, "scenes_a_second": count / one.seconds} for one in found]
    report.add(f"{title}, rates", rates)


def main() -> int:
    """Measure sizes, then workers."""
    made = parser(__doc__, rounds=5)
    options = made.parse_args()
    if options.clock != "wall":
        made.error("--clock cpu does not count what workers draw; leave it out")
    report, batch = started("scenes", options), options.batch or 32
    sizes = {f"{size} pixels": Case(drawing(size, batch)) for size in SIZES}
    sizes["64 pixels with masks"] = Case(drawing(64, batch, masks=True))
    timed(report, "one process", batch, sizes)
    loaders = {n: Loading(n, batch) for n in WORKERS}
    cases = {f"{n} workers": Case(loader, loader.at_work) for n, loader in loaders.items()}
    timed(report, "loaders", BATCHES * batch, cases)
    report.finish()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
