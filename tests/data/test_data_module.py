"""The data module under a real trainer: the same stream whatever happens."""

from itertools import islice

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ldm.data.module import DataModuleFromConfig, StepLoader, WrappedDataset, default_workers
from ldm.data.steps import StepKey

SETS = "ldm.data.personalized.PersonalizedBase"


@pytest.fixture
def folder(tmp_path):
    values = np.random.default_rng(3)
    root = tmp_path / "images"
    root.mkdir()
    for number in range(3):
        pixels = values.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    return root


def config(folder, repeats=4, **params):
    params = {"data_root": str(folder), "size": 8, "repeats": repeats, **params}
    return {"target": SETS, "params": params}


def module(folder, batch_size=4, **options):
    """Three pictures, four times each, in batches of four: epochs of three steps."""
    options = {"num_workers": 0, "train": config(folder), **options}
    return DataModuleFromConfig(batch_size, **options)


@pytest.mark.parametrize("size", [0, -2])
def test_a_batch_of_nothing_is_refused(folder, size):
    with pytest.raises(ValueError, match=rf"batch_size={size}: .*--batch_size"):
        module(folder, batch_size=size)


class Learner(pl.LightningModule):
    """Learns something from every batch, and notes which batches it saw."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.seen, self.validated, self.fail_at = [], [], fail_at

    def training_step(self, batch, batch_idx):
        (step,) = batch["step"].unique().tolist()
        if step == self.fail_at:
            raise KeyError("the machine went down")
        self.seen.append((step, str(batch["caption"]), batch["image"].sum().item()))
        return (
            (self.weight - batch["image"].mean((0, 1, 2)) * (1 + batch["flip"].sum()))
            .square()
            .sum()
        )

    def validation_step(self, batch, batch_idx):
        self.validated.append((batch["step"].tolist(), str(batch["caption"])))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fit(data, learner, steps, folder, ckpt_path=None, **options):
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(learner, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def test_steps_are_numbered_through_all_epochs(folder, tmp_path):
    learner = Learner()
    trainer = fit(module(folder), learner, 8, tmp_path)
    assert [step for step, *_ in learner.seen] == list(range(8))
    assert trainer.current_epoch == 3
    assert len({caption for _, caption, _ in learner.seen}) == 8


@pytest.mark.parametrize(("stop", "accumulate"), [(2, 1), (3, 1), (2, 2)])
def test_a_resumed_run_is_the_same_run(folder, tmp_path, stop, accumulate):
    options = {"accumulate_grad_batches": accumulate}
    whole = Learner()
    fit(module(folder), whole, 7, tmp_path, **options)
    first, second = Learner(), Learner()
    fit(module(folder), first, stop, tmp_path, **options).save_checkpoint(tmp_path / "last.ckpt")
    data = module(folder)
    fit(data, second, 7, tmp_path, tmp_path / "last.ckpt", **options)
    assert len(second.seen) == (7 - stop) * accumulate
    assert first.seen + second.seen == whole.seen
    assert torch.equal(second.weight, whole.weight)
    assert data.state_dict() == {"next_step": 7 * accumulate}


def test_a_step_that_failed_is_done_again(folder, tmp_path):
    whole = Learner()
    fit(module(folder), whole, 6, tmp_path)
    path = tmp_path / "rescue.ckpt"

    class Rescue(pl.Callback):
        def on_exception(self, trainer, pl_module, exception):
            trainer.save_checkpoint(path)

    broken, mended = Learner(fail_at=4), Learner()
    with pytest.raises(KeyError):
        fit(module(folder), broken, 6, tmp_path, callbacks=[Rescue()])
    fit(module(folder), mended, 6, tmp_path, path)
    assert broken.seen + mended.seen == whole.seen
    assert torch.equal(mended.weight, whole.weight)


def test_only_what_the_network_reads_is_moved(folder):
    data = module(folder)
    (batch, *_) = data.train_dataloader()
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    places = {name: value.device.type for name, value in moved.items() if name != "caption"}
    origin = dict.fromkeys(("image_id", "flip", "step", "slot", "run"), "cpu")
    assert places == {"image": "meta", **origin}
    assert moved["caption"] is batch["caption"]
    assert data.transfer_batch_to_device([batch["image"]], torch.device("meta"), 0)[0].is_meta


def test_workers_change_nothing(folder, tmp_path):
    learners = [Learner(), Learner()]
    for learner, workers in zip(learners, (0, 2), strict=True):
        fit(module(folder, num_workers=workers), learner, 7, tmp_path)
    assert learners[0].seen == learners[1].seen
    assert torch.equal(learners[0].weight, learners[1].weight)


def test_loading_draws_nothing_from_the_global_generator(folder):
    data = module(folder)
    data.setup()
    before = torch.get_rng_state()
    assert len(list(data.train_dataloader())) == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_two_processes_share_the_batch_of_one(folder):
    data = module(folder)
    data.setup()

    def stream(batch_size, group):
        loader = StepLoader(data.datasets["train"], batch_size, 5, lambda: 2, group=group)
        return list(loader)

    whole, left, right = stream(4, (0, 1)), stream(2, (0, 2)), stream(2, (1, 2))
    assert len(whole) == 5
    for batch, one, two in zip(whole, left, right, strict=True):
        assert torch.equal(batch["image"], torch.cat([one["image"], two["image"]]))
        assert batch["caption"] == one["caption"] + two["caption"]


def test_validation_is_the_same_every_time(folder, tmp_path):
    learner = Learner()
    data = module(folder, validation=config(folder, set="val"), shuffle_val_dataloader=True)
    fit(data, learner, 6, tmp_path, num_sanity_val_steps=0)
    assert len(learner.validated) == 2
    assert learner.validated[0] == learner.validated[1]
    assert learner.validated[0][0] == [0] * 4
    assert [step for step, *_ in learner.seen] == list(range(6))


def test_without_a_trainer_an_epoch_begins_at_the_restored_step(folder):
    data = module(folder)
    assert data.state_dict() == {"next_step": 0}
    data.load_state_dict({"next_step": 11})
    assert data.next_step == 11
    batches = list(data.train_dataloader())
    assert [batch["step"][0].item() for batch in batches] == [11, 12, 13]
    assert data.state_dict() == {"next_step": 11}


def test_an_epoch_has_at_least_one_step(folder):
    data = module(folder, batch_size=20)
    (batch,) = data.train_dataloader()
    assert batch["image"].shape == (20, 8, 8, 3)


class Squares:
    """Not a torch dataset, and not keyed."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if not 0 <= index < 10:
            raise IndexError(index)
        return {"value": index * index, "name": f"{index}"}


@pytest.mark.parametrize("wrap", [False, True])
def test_other_datasets_are_loaded_as_usual(wrap):
    parts = {name: {"target": f"{__name__}.Squares"} for name in ("train", "validation", "test")}
    data = DataModuleFromConfig(4, **parts, predict=parts["test"], wrap=wrap, num_workers=0)
    data.prepare_data()
    data.setup()
    assert isinstance(data.datasets["train"], WrappedDataset) == wrap
    train = [name for batch in data.train_dataloader() for name in batch["name"]]
    assert train != sorted(train)
    assert sorted(train) == [str(number) for number in range(10)]
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert isinstance(loader, DataLoader)
        values = torch.cat([batch["value"] for batch in loader])
        assert values.tolist() == [number * number for number in range(10)]


@pytest.mark.parametrize("option", ["shuffle_val_dataloader", "shuffle_test_loader"])
def test_shuffling_when_asked(option):
    part = {"target": f"{__name__}.Squares"}
    data = DataModuleFromConfig(10, validation=part, test=part, num_workers=0, **{option: True})
    loader = data.val_dataloader() if "val" in option else data.test_dataloader()
    (batch,) = loader
    assert batch["name"] != sorted(batch["name"])


def test_a_wrapped_dataset_stays_keyed(folder):
    data = module(folder, wrap=True)
    batches = list(islice(data.train_dataloader(), 3))
    assert batches[0]["step"].tolist() == [0] * 4
    assert data.datasets["train"][StepKey(0, 1)]["caption"] == batches[0]["caption"][1]
    assert len(data.datasets["train"]) == 12


def test_datasets_are_built_once(folder):
    data = module(folder)
    data.setup("fit")
    dataset = data.datasets["train"]
    data.setup("test")
    assert data.datasets["train"] is dataset


def test_missing_parts(folder):
    data = DataModuleFromConfig(2, num_workers=0)
    with pytest.raises(ValueError, match="train"):
        data.train_dataloader()
    assert data.val_dataloader() == data.test_dataloader() == data.predict_dataloader() == []


def test_workers_follow_the_cores(monkeypatch):
    for cores, workers in ((1, 0), (2, 0), (3, 2), (64, 4)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False)
        assert default_workers() == workers
        assert DataModuleFromConfig(1).num_workers == workers
    assert DataModuleFromConfig(1, num_workers=5).num_workers == 5


def test_workers_are_seeded_when_asked():
    part = {"target": f"{__name__}.Noise"}
    streams = []
    for _ in range(2):
        torch.manual_seed(5)
        data = DataModuleFromConfig(2, test=part, num_workers=2, use_worker_init_fn=True)
        streams.append([batch["value"].tolist() for batch in data.test_dataloader()])
    assert streams[0] == streams[1]
    assert streams[0][0] != streams[0][1]


class Noise(Squares):
    """What a dataset draws from numpy's global generator."""

    def __getitem__(self, index):
        return {"value": float(np.random.random())}
