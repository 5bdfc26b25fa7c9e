"""How much faster runs learn when they share a batch, and how far they are from learning alone.

    python -m benchmarks.packed [--runs 1 2 4 8 16] [--device cuda]

A step of a pack is everything but the loading of images: captions, loss, gradients, update. The
images are encoded before.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Case, Report, parser, started
from ldm.data.packed import PackedDataset
from ldm.data.steps import StepKey, collate
from ldm.models.diffusion.packed import PackedRuns
from ldm.training.cli import parse
from ldm.training.config import load_config
from ldm.training.packed import Job, models_around, prepare
from ldm.training.run import build_model


class Pack:
    """Some runs in one batch; a call is a step of all of them."""

    def __init__(self, models: list[Any], sets: list[Any], batch: int, rate: float) -> None:
        self.module = PackedRuns(models).train()
        self.module.learning_rate = rate
        self.optimizer = self.module.configure_optimizers()
        self.data, self.batch, self.step = PackedDataset(sets), batch, 0

    def __call__(self) -> None:
        """One step: examples, loss, gradients, update."""
        keys = [StepKey(self.step, s, r) for r in self.data.active for s in range(self.batch)]
        examples = collate([self.data[key] for key in keys])
        examples["image"] = examples["image"].to(self.module.runs[0].device)
        self.optimizer.zero_grad()
        self.module.shared_step(examples)[0].backward()
        self.optimizer.step()
        self.step += 1

    def words(self) -> torch.Tensor:
        """All vectors of all runs, in a row."""
        managers = [run.embedding_manager for run in self.module.runs]
        values = [v.detach().flatten() for m in managers for v in m.embedding_parameters()]
        return torch.cat(values)


class Bench:
    """A network, and runs of one configuration around it with their images encoded."""

    def __init__(self, options: Any) -> None:
        config = load_config(parse(["--base", *options.config, *options.overrides]))
        self.batch = options.batch or config.data.params.batch_size
        self.rate = config.model.base_learning_rate * self.batch
        self.network = build_model(config).to(options.device)
        jobs = [Job(f"run{i}", "", None, seed=i) for i in range(max(options.runs))]
        self.members = [prepare(config, job, Path(job.name)) for job in jobs]
        self.sets = [member.data.datasets["train"] for member in self.members]

    def models(self, first: int, last: int) -> list[Any]:
        """New models of the runs from `first` up to `last`."""
        models = models_around(self.network, self.members[first:last])
        for model, dataset in zip(models, self.sets[first:last], strict=True):
            model.embedding_manager.to(model.device)
            for image_id, flip, array in dataset.images():
                image = torch.from_numpy(array.copy()).movedim(-1, 0)[None].to(model.device)
                keys = (torch.tensor([n]) for n in (0, image_id, int(flip)))
                model.posteriors(image, *keys)
        return models

    def pack(self, models: list[Any], first: int = 0) -> Pack:
        """`models` of the runs from `first` on, in one batch."""
        return Pack(models, self.sets[first : first + len(models)], self.batch, self.rate)

    def throughput(self, sizes: list[int], report: Report) -> None:
        """Seconds per step of packs of each size, and image-steps per second."""
        models = self.models(0, max(sizes))
        cases = {f"{size} runs": Case(self.pack(models[:size])) for size in sizes}
        found = report.time("steps of packs", cases)
        rates = {size: size * self.batch / timing.seconds
                 for size, timing in zip(sizes, found, strict=True)}  # fmt: skip
        report.add(
            "throughput",
            [
                {"name": f"{size} runs", "image-steps per second": rate,
                 "ratio": rate / rates[sizes[0]]}
                for size, rate in rates.items()
            ],
        )  # fmt: skip

    def difference(self, count: int, steps: int, report: Report) -> None:
        """The largest difference of the words of `count` runs, packed and each alone."""
        together = self.pack(self.models(0, count))
        alone = [self.pack(self.models(i, i + 1), i) for i in range(count)]
        start = together.words().clone()
        for _ in range(steps):
            for pack in (together, *alone):
                pack()
        apart = torch.cat([pack.words() for pack in alone])
        row = {
            "name": f"{count} runs, {steps} steps",
            "largest difference": (together.words() - apart).abs().max().item(),
            "largest way of a word": (apart - start).abs().max().item(),
        }
        report.add("packed and alone", [row])


def main() -> int:
    """Measure both."""
    made = parser(__doc__, rounds=5)
    made.add_argument("--runs", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    made.add_argument("--compared", type=int, default=4, help="runs compared with runs alone")
    made.add_argument("--steps", type=int, default=10, help="steps that are compared")
    options = made.parse_args()
    report = started("packed", options)
    bench = Bench(options)
    bench.throughput(options.runs, report)
    bench.difference(min(options.compared, max(options.runs)), options.steps, report)
    report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
