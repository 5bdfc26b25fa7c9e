"""How benchmarks measure: in turn, against what the machine can do at that moment.

Cases are timed one after the other, round after round, so that whatever else the machine does falls
on all of them alike; what counts is the ratio to the first case of the same round. The floor of a
piece of work is its operations, counted by torch, over the rate at which this machine, in the same
run, multiplies large matrices.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ldm.training.run import limit_threads

#: Where results go unless ``--json`` says otherwise.
RESULTS = Path(__file__).resolve().parent / "results"
#: Side of the matrices whose product gives the floor, by kind of device.
SIDES = {"cpu": 1536, "cuda": 8192}
CLOCKS = ("wall", "cpu")
#: What Linux tells of this process.
STATUS = Path("/proc/self/status")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """Something to be timed, within a context that is entered and left off the clock."""

    call: Call
    within: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class Timing:
    """Seconds of a case: the median and the quartiles, and its ratio to the first case."""

    name: str
    seconds: float
    low: float
    high: float
    ratio: float


@dataclass(frozen=True)
class Clock:
    """What seconds are: of the clock on the wall, or of the processor (on a busy machine)."""

    kind: str = "wall"
    device: str = "cpu"

    def __call__(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.process_time() if self.kind == "cpu" else time.perf_counter()

    def of(self, call: Call) -> float:
        """Seconds that a call takes."""
        began = self()
        call()
        return self() - began


def side_by_side(
    cases: Mapping[str, Case], clock: Clock, rounds: int = 7, warmup: int = 2
) -> list[Timing]:
    """Time `cases` in turn, `rounds` times after `warmup` rounds that do not count.

    The ratio of a case is the median over rounds of its time over that of the first case.
    """
    names = list(cases)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warmup + rounds):
        turn = number % len(names)  # nobody is always the one after the same other
        for name in [*names[turn:], *names[:turn]]:
            with cases[name].within():
                seconds = clock.of(cases[name].call)
            if number >= warmup:
                times[name].append(seconds)
    return [summarise(name, times[name], times[names[0]]) for name in names]


def summarise(name: str, times: Sequence[float], reference: Sequence[float]) -> Timing:
    """The timing of a case from its rounds and those of the first case."""
    low, middle, high = quartiles(times)
    ratio = statistics.median(a / b for a, b in zip(times, reference, strict=True))
    return Timing(name, middle, low, high, ratio)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The quartiles of one value or more."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def flops(call: Call) -> int:
    """Floating-point operations of the matrix products and convolutions of a call.

    torch does not count the fused attention of CPUs, which is a small part of every network here.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def matrix_rate(dtype: torch.dtype, device: str, clock: Clock, products: int = 5) -> float:
    """Operations a second of the product of two large square matrices: the best of some."""
    side = SIDES[torch.device(device).type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    clock.of(lambda: a @ b)
    return 2 * side**3 / min(clock.of(lambda: a @ b) for _ in range(products))


def saved_bytes(call: Callable[[], Any], apart: Sequence[Tensor] = ()) -> int:
    """Bytes that a forward pass keeps for its backward pass, each memory counted once.

    The memory of the tensors `apart` (the weights) does not count.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in apart}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    total = sum(storage.nbytes() for storage in kept.values())
    del result
    return total


def forget_peak(device: str) -> None:
    """Begin to measure the most memory held anew, with unused memory given back."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif STATUS.exists():
        ctypes.CDLL(None).malloc_trim(0)
        STATUS.with_name("clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    """The most memory held since `forget_peak`: on the accelerator, or resident on the host.

    On a host that is not Linux, since the process began.
    """
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


@contextmanager
def switched(target: Any, **values: Any) -> Iterator[None]:
    """Attributes of an object set to `values` within the block."""
    before = {name: getattr(target, name) for name in values}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


@dataclass
class Report:
    """The tables of one benchmark, printed as they come and written as JSON at the end."""

    name: str
    options: argparse.Namespace
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def clock(self) -> Clock:
        """The clock that was asked for."""
        return Clock(self.options.clock, self.options.device)

    def time(self, title: str, cases: Mapping[str, Case], **more: Any) -> list[Timing]:
        """Time cases side by side and make a table of them; `more` are further columns."""
        found = side_by_side(cases, self.clock, self.options.rounds)
        rows = [asdict(timing) for timing in found]
        for column, values in more.items():
            for row in rows:
                if row["name"] in values:
                    row[column] = values[row["name"]]
        self.add(title, rows)
        return found

    def add(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print a table and keep it."""
        self.tables[title] = [dict(row) for row in rows]
        Console().print(as_table(title, rows))

    def rates(self) -> dict[str, float]:
        """The matrix rates of this machine now, in GFLOP a second, as a table and by type."""
        device = self.options.device
        found = {
            name: matrix_rate(DTYPES[name], device, self.clock) / 1e9
            for name in ("float32", "bfloat16")
        }
        self.add("matrix rate", [{"name": n, "gflop_per_s": rate} for n, rate in found.items()])
        return found

    def finish(self) -> None:
        """Write everything, with what it was measured on."""
        path = Path(self.options.json or RESULTS / f"{self.name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {key: value for key, value in vars(self.options).items() if key != "json"}
        content = {
            "benchmark": self.name,
            "options": told,
            "machine": machine(self.options.device),
            "tables": self.tables,
        }
        path.write_text(json.dumps(content, indent=1) + "\n")
        Console().print(f"written to {path}")


def machine(device: str) -> dict[str, Any]:
    """What figures were measured on."""
    return {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else processor(),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def processor() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def as_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows as a table; columns are the keys in the order in which they first come."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "name" else "right")
    for row in rows:
        table.add_row(*(shown(row.get(column)) for column in columns))
    return table


def shown(value: Any) -> str:
    """A figure with three significant digits, anything else as it is, nothing for ``None``."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def parser(description: str | None, *, rounds: int = 7) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--config", nargs="+", metavar="YAML", default=["configs/mcpl.yaml"],
                      help="as --base of main.py; by default the playroom model")  # fmt: skip
    made.add_argument("--batch", type=int, help="images a step (default: as configured)")
    made.add_argument("--rounds", type=int, default=rounds, help="how often each case is timed")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--clock", choices=CLOCKS, default="wall",
                      help="cpu: time of the processor, for busy machines")  # fmt: skip
    made.add_argument("--json", metavar="FILE", help="default: benchmarks/results/NAME.json")
    made.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as those of main.py")
    return made


def started(name: str, options: argparse.Namespace) -> Report:
    """A report of benchmark `name`, on a host that is set up as for training."""
    limit_threads()
    return Report(name, options)
