"""How much memory learning words takes, what a step keeps for its backward pass, and does it fit.

    python -m benchmarks.memory
    python -m benchmarks.memory --config configs/latent-diffusion/txt2img-1p4B-finetune.yaml \\
        --rounds 0 --json benchmarks/results/memory_full.json

Every case is a process of its own. `kept` are the bytes that the forward pass keeps for the
backward pass, counted tensor by tensor, which are the same on every device; `peak` is what the
process (on a GPU: torch) held at most during a step. `counted` is all weights, what is kept, and
what a GPU's driver takes, to be compared with the memory of a card.

The last table compares steps with the memory of freed tensors given back to the system, as the C
library does by default, and kept (``ldm/training/host.py``); ``--rounds 0`` leaves it out.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from typing import Any

import torch
from torch import nn

from benchmarks import workload
from benchmarks.harness import (
    Clock,
    forget_peak,
    parser,
    peak_bytes,
    quartiles,
    saved_bytes,
    started,
)
from benchmarks.step import within
from benchmarks.workload import Workload
from ldm.inference import ROOT
from ldm.training.host import keep_freed_memory

WAYS: dict[str, tuple[Any, ...]] = {
    "float32": (),
    "float32, checkpointing": (workload.checkpointing,),
    "bfloat16 weights": (workload.narrow,),
    "bfloat16 weights, checkpointing": (workload.narrow, workload.checkpointing),
}
#: What is done with freed memory, by case.
FREED = {"given back": False, "kept": True}
GIB = 2**30
#: A small card, and what its driver takes before the first tensor.
CARD, DRIVER = 8 * GIB, GIB // 2


def size(module: nn.Module) -> int:
    """Bytes of the weights of a module."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """What one case takes, in this process."""
    work = Workload.of(options.config, options.batch, options.device, options.overrides)
    with within(work, *WAYS[options.child]):
        weights = sum(map(size, [*work.network, work.model.first_stage_model]))
        kept = saved_bytes(work.loss, list(work.model.parameters()))
        forget_peak(options.device)
        work.step()
        return {"weights": weights, "kept": kept, "peak": peak_bytes(options.device)}


def steps(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step and pages asked for, with freed memory kept or given back."""
    if FREED[options.child]:
        keep_freed_memory()
    clock = Clock(options.clock, options.device)
    work = Workload.of(options.config, options.batch, options.device, options.overrides)
    for _ in range(3):
        work.step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    taken = [clock.of(work.step) for _ in range(10)]
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {"seconds": quartiles(taken)[1], "pages": pages / len(taken)}


def child(options: argparse.Namespace, case: str, batch: int | None) -> dict[str, Any]:
    """What a process of its own finds for a case."""
    command = [sys.executable, "-m", "benchmarks.memory", *options.overrides]
    command += ["--child", case, "--device", options.device, "--clock", options.clock]
    command += ["--config", *options.config]
    command += ["--batch", str(batch)] if batch else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(name: str, batch: int, found: dict[str, Any]) -> dict[str, Any]:
    """A line of the table, in GiB."""
    counted = found["weights"] + found["kept"] + DRIVER
    sizes = {key: value / GIB for key, value in {**found, "counted": counted}.items()}
    fits = "yes" if counted < CARD else "no"
    return {"name": name, "images": batch, **sizes, "fits_8_gib": fits}


def freed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps of processes that give memory back and that keep it, in turn."""
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in FREED}
    for _ in range(options.rounds):
        for case in FREED:
            found[case].append(child(options, case, options.batch))
    middle = {
        case: {key: quartiles([each[key] for each in rounds])[1] for key in rounds[0]}
        for case, rounds in found.items()
    }
    first = middle["given back"]["seconds"]
    return [{"name": n, **each, "ratio": each["seconds"] / first} for n, each in middle.items()]


def main() -> int:
    """Measure all cases, each in a process of its own."""
    options = parser(__doc__, rounds=3)
    options.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    options.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options.add_argument("--child", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.child:
        if os.environ.get("LDM_THREADS"):
            torch.set_num_threads(int(os.environ["LDM_THREADS"]))
        print(json.dumps((steps if chosen.child in FREED else measured)(chosen)))
        return 0
    report = started("memory", chosen)
    cases = [(way, batch) for batch in chosen.batches for way in chosen.ways]
    rows = [row(way, batch, child(chosen, way, batch)) for way, batch in cases]
    report.add("memory of a step, GiB", rows)
    if chosen.device == "cpu" and chosen.rounds:
        report.add("memory of freed tensors", freed(chosen))
    report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
