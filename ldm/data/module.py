"""The data module that public configs name: datasets from configs, loaders that resume exactly.

A dataset that can be asked for :class:`~ldm.data.steps.StepKey` is served step by step, so that the
stream is the same after a resume, with any number of workers, and over any number of processes.
"""

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ldm.data.packed import PackedDataset
from ldm.data.steps import StepBatchSampler, StepKey, collate
from ldm.util import instantiate_from_config

Config = Mapping[str, Any]
#: What says where an example comes from: read by Python code, so it stays off the accelerator.
ON_HOST = frozenset({"step", "slot", "run", "image_id", "flip"})


def figures_on(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its figures on `device`; captions and origin (`ON_HOST`) stay."""
    return {
        name: value.to(device, non_blocking=True)
        if isinstance(value, Tensor) and name not in ON_HOST
        else value
        for name, value in batch.items()
    }


class WrappedDataset(Dataset[Any]):
    """Any object with a length and items as a dataset of :mod:`torch`."""

    def __init__(self, dataset: Any) -> None:
        self.data = dataset
        self.keyed = is_keyed(dataset)

    def __len__(self) -> int:
        """The length of the wrapped object."""
        return len(self.data)

    def __getitem__(self, key: Any) -> Any:
        """The item of the wrapped object."""
        return self.data[key]


def is_keyed(dataset: Any) -> bool:
    """Whether `dataset` can be asked for examples by `StepKey`."""
    return bool(getattr(dataset, "keyed", False))


class _Epoch(Sampler[list[StepKey]]):
    """The keys of the next `steps` steps, from wherever training stands when it is iterated."""

    def __init__(self, steps: int, sampler: Callable[[], StepBatchSampler]) -> None:
        self.steps, self.sampler = steps, sampler

    def __iter__(self) -> Iterator[list[StepKey]]:
        return iter(self.sampler())

    def __len__(self) -> int:
        return self.steps


class StepLoader:
    """The batches of a keyed dataset, one epoch of `steps` steps each time it is iterated.

    `first_step` is asked when an epoch begins; `group` is (rank, number of processes) and
    `batch_size` the part of one process. This is no `DataLoader` itself, because Lightning would
    put a sampler of its own into one when there are several processes.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        steps: int,
        first_step: Callable[[], int],
        *,
        group: tuple[int, int] = (0, 1),
        num_workers: int = 0,
    ) -> None:
        self.dataset, self.batch_size, self.num_workers = dataset, batch_size, num_workers
        total = batch_size * group[1]
        runs = getattr(dataset, "active", 1)
        epoch = _Epoch(
            steps, lambda: StepBatchSampler(total, first_step(), steps, *group, runs=runs)
        )
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=epoch,
            collate_fn=collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            # Of its own: beginning an epoch must not draw from the global generator.
            generator=torch.Generator().manual_seed(0),
        )

    def __iter__(self) -> Iterator[Any]:
        """The batches of the next epoch."""
        return iter(self._loader)

    def __len__(self) -> int:
        """The steps of an epoch."""
        return len(self._loader)


class DataModuleFromConfig(LightningDataModule):
    """Datasets and loaders from configs (``{"target": ..., "params": ...}``) for each stage.

    `batch_size` is that of one process. `num_workers` is chosen from the machine's cores if it is
    not given, none on one with two. Keyed datasets are served by step in training and validation,
    in the order of their keys, whatever `shuffle_val_dataloader` says. `next_step` is kept in
    checkpoints.

    Raises:
        ValueError: for a batch without examples.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the names that public configs use
        self,
        batch_size: int,
        train: Config | None = None,
        validation: Config | None = None,
        test: Config | None = None,
        predict: Config | None = None,
        wrap: bool = False,
        num_workers: int | None = None,
        shuffle_test_loader: bool = False,
        use_worker_init_fn: bool = False,
        shuffle_val_dataloader: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(
                f"batch_size={batch_size}: a step needs at least 1 example; give 1 or more with "
                "--batch_size or data.params.batch_size"
            )
        self.batch_size, self.wrap = batch_size, wrap
        self.num_workers = default_workers() if num_workers is None else num_workers
        self.shuffle_test_loader = shuffle_test_loader
        self.shuffle_val_dataloader = shuffle_val_dataloader
        self.use_worker_init_fn = use_worker_init_fn
        configs = {"train": train, "validation": validation, "test": test, "predict": predict}
        self.dataset_configs = {name: config for name, config in configs.items() if config}
        self.datasets: dict[str, Any] = {}
        self._offset = 0
        self._restored: int | None = None

    @classmethod
    def packed(cls, modules: Sequence["DataModuleFromConfig"]) -> "DataModuleFromConfig":
        """The training sets of several independent runs in one batch, `batch_size` of each run.

        Raises:
            ValueError: when a set cannot be asked for examples by step.
        """
        sets = [module._dataset("train") for module in modules]
        for dataset in sets:
            if not is_keyed(dataset):
                raise ValueError(
                    f"{type(dataset).__name__} cannot be asked for examples by step, so that its "
                    "runs cannot share a batch: learn them one by one"
                )
        together = cls(modules[0].batch_size, num_workers=modules[0].num_workers)
        together.dataset_configs = {"train": {}}
        together.datasets = {"train": PackedDataset(sets)}
        return together

    def setup(self, stage: str | None = None) -> None:
        """Build the datasets, each once."""
        for name, config in self.dataset_configs.items():
            if name not in self.datasets:
                dataset = instantiate_from_config(config)
                self.datasets[name] = WrappedDataset(dataset) if self.wrap else dataset

    def train_dataloader(self) -> StepLoader | DataLoader[Any]:
        """The training batches of one epoch, from `next_step` on."""
        if "train" not in self.dataset_configs:
            raise ValueError("there is nothing to train on: the config has no data.params.train")
        if self._restored is not None:
            self._offset, self._restored = self._restored - self._done(), None
        dataset = self._dataset("train")
        if not is_keyed(dataset):
            return self._plain("train", shuffle=not isinstance(dataset, IterableDataset))
        # Whole groups of accumulated batches only: an optimizer step never spans two epochs.
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        steps = max(1, len(dataset) // (self.batch_size * self._group()[1]))
        return self._by_step("train", steps + -steps % accumulate, lambda: self.next_step)

    def val_dataloader(self) -> Any:
        """The validation batches: with a keyed dataset the same ones each time."""
        if "validation" not in self.dataset_configs:
            return []
        dataset = self._dataset("validation")
        if not is_keyed(dataset):
            return self._plain("validation", shuffle=self.shuffle_val_dataloader)
        steps = -(-len(dataset) // (self.batch_size * self._group()[1]))
        return self._by_step("validation", steps, int)

    def test_dataloader(self) -> Any:
        """The test batches."""
        if "test" not in self.dataset_configs:
            return []
        return self._plain("test", shuffle=self.shuffle_test_loader)

    def predict_dataloader(self) -> Any:
        """The batches to predict, in order."""
        return self._plain("predict", shuffle=False) if "predict" in self.dataset_configs else []

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """The batch with its figures on `device`; captions and origin (`ON_HOST`) stay."""
        if not isinstance(batch, Mapping):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        return figures_on(batch, device)

    @property
    def next_step(self) -> int:
        """The first training step whose gradient has not been applied yet."""
        return self._offset + self._done() if self._restored is None else self._restored

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"next_step": self.next_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the step in `state_dict`."""
        self._restored = int(state_dict["next_step"])

    def _done(self) -> int:
        """How many batches the trainer has learned from, half-accumulated ones left out."""
        if self.trainer is None:
            return 0
        counted: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        done = int(counted.processed)
        return done - done % self.trainer.accumulate_grad_batches

    def _group(self) -> tuple[int, int]:
        """The rank of this process and the number of processes."""
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)

    def _dataset(self, name: str) -> Any:
        """The dataset of a stage, built if `setup` has not been called."""
        if name not in self.datasets:
            self.setup()
        return self.datasets[name]

    def _by_step(self, name: str, steps: int, first_step: Callable[[], int]) -> StepLoader:
        """A loader for a keyed dataset."""
        return StepLoader(
            self._dataset(name),
            self.batch_size,
            steps,
            first_step,
            group=self._group(),
            num_workers=self.num_workers,
        )

    def _plain(self, name: str, shuffle: bool) -> DataLoader[Any]:
        """A loader for any other dataset."""
        return DataLoader(
            self._dataset(name),
            batch_size=self.batch_size,
            shuffle=shuffle,
            collate_fn=collate,
            num_workers=self.num_workers,
            worker_init_fn=seed_worker if self.use_worker_init_fn else None,
        )


def default_workers() -> int:
    """How many loader processes suit this machine: none with two cores or fewer, four at most."""
    available = getattr(os, "sched_getaffinity", None)
    cores = len(available(0)) if available else os.cpu_count() or 1
    return 0 if cores <= 2 else min(4, cores - 1)


def seed_worker(worker: int) -> None:
    """Seed Python and numpy in loader process `worker` from its torch seed."""
    seed = (torch.initial_seed() + worker) % 2**32
    random.seed(seed)
    np.random.seed(seed)
