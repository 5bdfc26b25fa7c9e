"""How many scenes of the playroom are drawn in a second.

    python -m benchmarks.scenes

One process draws at every size; then loaders with workers draw training examples, beside none.
"""

import itertools
from collections.abc import Callable

from torch.utils.data import DataLoader

from benchmarks.harness import Case, Report, parser, started
from ldm.data.playroom import PlayroomScenes

SIZES = (64, 128, 256, 512)
WORKERS = (0, 1, 2)


def drawing(size: int, count: int, *, masks: bool = False) -> Callable[[], None]:
    """Draw `count` scenes of `size` pixels that were not drawn before."""
    world, numbers = PlayroomScenes(size=size, length=10**8, masks=masks), itertools.count()

    def draw() -> None:
        for number in itertools.islice(numbers, count):
            world[number]

    return draw


def loading(workers: int, batch: int, batches: int) -> Callable[[], None]:
    """Draw `batches` batches of training examples by a loader that is already at work."""
    world = PlayroomScenes(size=64, length=10**8)
    loader = iter(DataLoader(world, batch_size=batch, num_workers=workers))
    next(loader)

    def load() -> None:
        for _ in itertools.islice(loader, batches):
            pass

    return load


def timed(report: Report, title: str, count: int, calls: dict[str, Callable[[], None]]) -> None:
    """A table of `calls`, each of which draws `count` scenes."""
    found = report.time(title, {name: Case(call) for name, call in calls.items()})
    rates = [{"name": one.name, "scenes_a_second": count / one.seconds} for one in found]
    report.add(f"{title}, rates", rates)


def main() -> int:
    """Measure sizes, then workers."""
    options = parser(__doc__, rounds=5).parse_args()
    report, batch = started("scenes", options), options.batch or 32
    sizes = {f"{size} pixels": drawing(size, batch) for size in SIZES}
    sizes["64 pixels with masks"] = drawing(64, batch, masks=True)
    timed(report, "one process", batch, sizes)
    # More batches than a worker has ready, so that it is not its store that is timed.
    loaders = {f"{n} workers": loading(n, batch, 8) for n in WORKERS}
    timed(report, "loaders", 8 * batch, loaders)
    report.finish()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
