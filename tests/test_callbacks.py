"""Callbacks inside a real Trainer: folders, pictures, embedding files, progress, safe files."""

import io
import pickle
import sys

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from ldm import callbacks
from ldm.checkpoint import read_embeddings
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.modules.encoders.modules import BERTEmbedder
from ldm.prompts.sentence import LearnableWord

IMAGES = torch.linspace(-1, 1, 8 * 3 * 8 * 8).reshape(8, 3, 8, 8)


class Blur(pl.LightningModule):
    """Learns one number and draws pictures with the global random numbers, as samplers do."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = torch.nn.Parameter(torch.tensor(0.5))
        self.seen_training: list[bool] = []
        self.drawn: list[float] = []

    def training_step(self, batch, batch_idx):
        self.drawn.append(torch.rand(()).item())
        loss = (self.strength * batch - batch).square().mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", (self.strength * batch - batch).square().mean())

    def log_images(self, batch, split="train", noise=0.0):
        self.seen_training.append(self.training or torch.is_grad_enabled())
        self.last_noise = torch.rand(4)
        return {
            "inputs": batch,
            "samples": batch,
            "conditioning": ["a <word>"] * len(batch),
            "attention": [{"<word>": torch.rand(4, 4)}] * len(batch),
        }

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Words(Blur):
    """Carries real learned words, trained by a loss of their own."""

    def __init__(self, vocab_file) -> None:
        super().__init__()
        encoder = BERTEmbedder(8, 1, vocab_size=9, max_seq_len=8, vocab_file=str(vocab_file))
        words = [LearnableWord("<a>", "bear", 2), LearnableWord("<b>", "ball")]
        self.embedding_manager = EmbeddingManager(encoder, words=words)

    def training_step(self, batch, batch_idx):
        return sum(v.square().sum() for v in self.embedding_manager.embedding_parameters())

    def configure_optimizers(self):
        return torch.optim.SGD(self.embedding_manager.embedding_parameters(), lr=0.1)


@pytest.fixture
def words(tmp_path):
    """A module that learns two words."""
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "bear", "ball", "photo"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocab))
    return Words(tmp_path / "vocab.txt")


class TwoPhases(Blur):
    """Has an optimizer for each phase; the model's goes the other way, so that the swap shows."""

    def configure_opt_embedding(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def configure_opt_model(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(folder, *used, steps=4, module=None, board=False, **kwargs):
    """Train a tiny module for some steps; returns it and the Trainer."""
    module = module or Blur()
    loader = DataLoader(IMAGES, batch_size=2)
    progress = any(isinstance(c, callbacks.RunProgressBar) for c in used)
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        callbacks=list(used),
        logger=TensorBoardLogger(folder, name="", version="board") if board else False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in used),
        enable_progress_bar=progress,
        enable_model_summary=False,
        **{"plugins": [], **{k: v for k, v in kwargs.items() if k not in ("ckpt_path", "val")}},
    )
    val = DataLoader(IMAGES, batch_size=2) if kwargs.get("val") else None
    trainer.fit(module, loader, val, ckpt_path=kwargs.get("ckpt_path"))
    return module, trainer


def setup_callback(folder, now):
    """The run-folder callback for a run in `folder` started at `now`."""
    config = OmegaConf.create({"model": {"target": "x.Y", "base": 3, "twice": "${.base}"}})
    return callbacks.SetupCallback(
        resume="",
        now=now,
        logdir=str(folder),
        ckptdir=str(folder / "checkpoints"),
        cfgdir=str(folder / "configs"),
        config=config,
        lightning_config=OmegaConf.create({"trainer": {"max_steps": 4}}),
    )


def test_setup_makes_the_run_folder_and_keeps_both_configs(tmp_path):
    run = tmp_path / "logs" / "run"
    fit(tmp_path, setup_callback(run, "2024-01-01"), steps=1)
    assert sorted(p.name for p in run.iterdir()) == ["checkpoints", "configs", "images"]
    project = OmegaConf.load(run / "configs" / "2024-01-01-project.yaml")
    assert project.model.twice == 3
    lightning = OmegaConf.load(run / "configs" / "2024-01-01-lightning.yaml")
    assert lightning.lightning.trainer.max_steps == 4


def test_setup_of_a_resumed_run_leaves_earlier_configs_alone(tmp_path):
    fit(tmp_path, setup_callback(tmp_path, "first"), steps=1)
    written = tmp_path / "configs" / "first-project.yaml"
    written.write_text("edited: true\n")
    fit(tmp_path, setup_callback(tmp_path, "first"), steps=1)
    fit(tmp_path, setup_callback(tmp_path, "second"), steps=1)
    assert written.read_text() == "edited: true\n"
    assert len(list((tmp_path / "configs").iterdir())) == 4


def test_image_logger_writes_pictures_at_the_due_steps(tmp_path):
    logger = callbacks.ImageLogger(batch_frequency=3, max_images=1, increase_log_steps=False)
    module, _ = fit(tmp_path, logger, steps=7)
    files = sorted(p.name for p in (tmp_path / "images" / "train").iterdir())
    assert files == sorted(
        f"{key}_gs-{step:06}_e-{(step - 1) // 4:06}_b-{(step - 1) % 4:06}.png"
        for key in ("inputs", "samples", "conditioning", "attention")
        for step in (3, 6)
    )
    assert not any(module.seen_training), "drawn in evaluation mode and without gradients"
    with Image.open(tmp_path / "images" / "train" / files[-1]) as image:
        assert image.text == {"step": "6", "split": "train"}


def test_image_logger_is_denser_at_the_start():
    logger = callbacks.ImageLogger(batch_frequency=500, max_images=1)
    assert [s for s in range(1025) if logger.is_due(s)] == [
        1,
        2,
        4,
        8,
        16,
        32,
        64,
        128,
        256,
        500,
        1000,
    ]
    first = callbacks.ImageLogger(500, 1, increase_log_steps=False, log_first_step=True)
    assert [s for s in range(501) if first.is_due(s)] == [0, 500]


def test_image_logger_changes_nothing_in_the_training(tmp_path):
    torch.manual_seed(3)
    plain, _ = fit(tmp_path / "a", steps=6)
    torch.manual_seed(3)
    logger = callbacks.ImageLogger(batch_frequency=1, max_images=1)
    logged, _ = fit(tmp_path / "b", logger, steps=6)
    assert logged.drawn == plain.drawn
    assert torch.equal(logged.strength, plain.strength)
    assert logged.training


def test_image_logger_draws_with_the_same_noise_every_time(tmp_path):
    logger = callbacks.ImageLogger(batch_frequency=1, max_images=1)
    first, _ = fit(tmp_path, logger, steps=1)
    second, _ = fit(tmp_path, logger, steps=3)
    assert torch.equal(first.last_noise, second.last_noise)


def test_image_logger_logs_once_per_step_and_not_when_disabled(tmp_path):
    logger = callbacks.ImageLogger(batch_frequency=1, max_images=1)
    module, _ = fit(tmp_path / "a", logger, steps=2, accumulate_grad_batches=2)
    assert len(module.seen_training) == 2
    module, _ = fit(tmp_path / "b", callbacks.ImageLogger(1, 1, disabled=True), steps=2)
    assert module.seen_training == []
    assert not (tmp_path / "b" / "images").exists()


def test_image_logger_passes_its_keywords_and_reaches_tensorboard(tmp_path):
    logger = callbacks.ImageLogger(2, 2, log_images_kwargs={"noise": 1.0})
    fit(tmp_path, logger, steps=2, board=True)
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    shown = {"train/inputs", "train/samples", "train/conditioning", "train/attention"}
    assert set(events.Tags()["images"]) == shown
    assert (tmp_path / "images" / "train").is_dir()
    with pytest.raises(TypeError, match="unknown"):
        fit(tmp_path / "b", callbacks.ImageLogger(1, 1, log_images_kwargs={"unknown": 1}), steps=1)


def test_image_logger_logs_the_first_validation_batch_after_training_began(tmp_path):
    fit(tmp_path, callbacks.ImageLogger(100, 1, increase_log_steps=False), steps=4, val=True)
    names = [p.name for p in (tmp_path / "images" / "val").iterdir()]
    assert sorted(n.split("_")[0] for n in names) == [
        "attention",
        "conditioning",
        "inputs",
        "samples",
    ]
    assert all("gs-000004" in name and "b-000000" in name for name in names)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: callbacks.ImageLogger(0, 1), "batch_frequency=0"),
        (lambda: callbacks.EmbeddingCheckpoint(every_n_train_steps=0), "every_n_train_steps=0"),
        (lambda: callbacks.EmbeddingCheckpoint(keep_last=0), "keep_last=0"),
        (lambda: callbacks.RunProgressBar(0), "refresh_rate=0"),
    ],
)
def test_impossible_settings_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_mode_swap_exchanges_the_optimizer_at_its_step(tmp_path):
    alone, _ = fit(tmp_path, module=TwoPhases(), steps=3)
    swapped, trainer = fit(tmp_path, callbacks.ModeSwapCallback(3), module=TwoPhases(), steps=6)
    assert torch.equal(alone.strength, swapped.strength), "nothing moves after the swap"
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.0


def test_mode_swap_refuses_a_module_without_phases(tmp_path):
    with pytest.raises(ValueError, match=r"Blur.configure_opt_embedding\(\)"):
        fit(tmp_path, callbacks.ModeSwapCallback(3))


def names(folder):
    """The files of a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


def test_embeddings_are_saved_at_the_interval_and_at_the_end(tmp_path, words):
    run = tmp_path / "checkpoints"
    fit(tmp_path, callbacks.EmbeddingCheckpoint(every_n_train_steps=2), module=words, steps=5)
    stems = ["embeddings", "embeddings_gs-2", "embeddings_gs-4", "embeddings_gs-5"]
    assert names(run) == sorted(s + end for s in stems for end in (".pt", ".safetensors"))
    learned = words.embedding_manager.string_to_param_dict
    for stem in ("embeddings", "embeddings_gs-5"):
        for end in (".pt", ".safetensors"):
            vectors = read_embeddings(run / (stem + end)).vectors
            assert {k: tuple(v.shape) for k, v in vectors.items()} == {"<a>": (2, 8), "<b>": (1, 8)}
            assert all(torch.equal(vectors[k], learned[k].detach()) for k in vectors)
    early = read_embeddings(run / "embeddings_gs-2.pt").vectors
    assert not torch.equal(early["<a>"], learned["<a>"])


def test_only_the_last_embedding_files_are_kept_and_nothing_else_is_touched(tmp_path, words):
    mine = tmp_path / "kept" / "embeddings_gs-1.pt.backup"
    mine.parent.mkdir()
    mine.write_text("mine")
    saver = callbacks.EmbeddingCheckpoint(mine.parent, every_n_train_steps=1, keep_last=2)
    fit(tmp_path, saver, module=words, steps=11)
    numbered = ["embeddings_gs-10", "embeddings_gs-11", "embeddings"]
    files = [s + end for s in numbered for end in (".pt", ".safetensors")]
    assert names(mine.parent) == sorted([*files, mine.name])


def test_embeddings_go_beside_the_checkpoints_and_a_model_without_words_has_none(tmp_path, words):
    folder = tmp_path / "beside"
    checkpoints = ModelCheckpoint(folder, save_last=True, every_n_train_steps=2)
    fit(tmp_path, checkpoints, callbacks.EmbeddingCheckpoint(), module=words, steps=2)
    assert {"last.ckpt", "embeddings.pt", "embeddings_gs-2.pt"} <= set(names(folder))
    fit(tmp_path / "none", callbacks.EmbeddingCheckpoint(tmp_path / "none" / "c"), steps=2)
    assert not (tmp_path / "none" / "c").exists()


class Stops(Words):
    """Fails in its third step."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 2:
            raise KeyboardInterrupt
        return super().training_step(batch, batch_idx)


def test_embeddings_are_saved_when_the_training_is_interrupted(tmp_path, words):
    words.__class__ = Stops
    with pytest.raises(SystemExit):
        fit(tmp_path, callbacks.EmbeddingCheckpoint(every_n_train_steps=9), module=words, steps=5)
    saved = read_embeddings(tmp_path / "checkpoints/embeddings.pt").vectors
    assert (tmp_path / "checkpoints/embeddings_gs-2.pt").is_file()
    learned = words.embedding_manager.string_to_param_dict
    assert all(torch.equal(saved[word], learned[word].detach()) for word in saved)


@pytest.mark.parametrize("how", [True, "link"])
def test_the_last_checkpoint_is_of_the_end_whatever_the_interval(tmp_path, how):
    saver = callbacks.LastCheckpoint(
        tmp_path / "c", save_last=how, every_n_train_steps=2, save_top_k=-1
    )
    module, _ = fit(tmp_path, saver, steps=3)
    kept = torch.load(tmp_path / "c/last.ckpt", weights_only=False)
    assert kept["global_step"] == 3
    assert torch.equal(kept["state_dict"]["strength"], module.strength)
    assert (tmp_path / "c/last.ckpt").is_symlink() == (how == "link")


def test_the_end_is_saved_once_and_only_where_it_is_wanted(tmp_path):
    class Counting(callbacks.LastCheckpoint):
        saved = 0

        def _save_checkpoint(self, trainer, filepath):
            self.saved += 1
            super()._save_checkpoint(trainer, filepath)

    options = {"every_n_train_steps": 2, "save_top_k": 0}
    saver = Counting(tmp_path / "a", save_last=True, **options)
    fit(tmp_path, saver, steps=4)
    assert saver.saved == 2, "at steps 2 and 4"
    fit(tmp_path, callbacks.LastCheckpoint(tmp_path / "b", save_last=False, **options), steps=3)
    saver = callbacks.LastCheckpoint(tmp_path / "c", save_last=True, **options)
    fit(tmp_path, saver, steps=3, fast_dev_run=True)
    assert not list(tmp_path.glob("[bc]/*.ckpt"))


def test_cuda_callback_is_silent_on_the_cpu(tmp_path, caplog):
    with caplog.at_level("INFO", logger="ldm.callbacks"):
        fit(tmp_path, callbacks.CUDACallback())
    assert [r for r in caplog.records if r.name.startswith("ldm.callbacks")] == []


def test_progress_bar_ends_at_the_last_step_with_the_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    fit(tmp_path, callbacks.RunProgressBar(refresh_rate=2, quiet_seconds=0.0), steps=6, board=True)
    lines = [line.strip() for line in stream.getvalue().replace("\r", "\n").split("\n")]
    shown = [line for line in lines if line.startswith("learning")]
    assert "6/6" in shown[-1]
    assert "loss=" in shown[-1]
    assert "v_num" not in stream.getvalue()
    steps = [int(line.split()[1].split("/")[0]) for line in shown]
    assert steps == sorted(steps)


def test_progress_bar_counts_on_after_a_resume(tmp_path, monkeypatch):
    saver = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=2)
    fit(tmp_path, saver, steps=4)
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    bar = callbacks.RunProgressBar(refresh_rate=1, quiet_seconds=0.0)
    fit(tmp_path, bar, steps=6, ckpt_path=tmp_path / "last.ckpt")
    assert "learning 4/6" in stream.getvalue()
    assert "learning 6/6" in stream.getvalue()


def test_atomic_checkpoint_resumes_exactly(tmp_path):
    plugin = callbacks.AtomicCheckpointIO()
    whole, _ = fit(tmp_path / "a", steps=8)
    saver = ModelCheckpoint(tmp_path / "b", save_last=True, every_n_train_steps=1)
    fit(tmp_path / "b", saver, steps=4, plugins=[plugin])
    resumed, trainer = fit(
        tmp_path / "b", steps=8, plugins=[plugin], ckpt_path=tmp_path / "b" / "last.ckpt"
    )
    assert trainer.global_step == 8
    assert torch.equal(resumed.strength, whole.strength)
    assert not [p for p in (tmp_path / "b").rglob("*") if p.suffix == ".tmp"]


def test_a_failing_write_leaves_the_earlier_checkpoint(tmp_path):
    plugin, path = callbacks.AtomicCheckpointIO(), tmp_path / "last.ckpt"
    plugin.save_checkpoint({"step": torch.tensor(1)}, path)
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        plugin.save_checkpoint({"step": torch.tensor(2), "bad": lambda: None}, path)
    assert plugin.load_checkpoint(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


class Opens:
    """Unpickling this the ordinary way creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_cannot_run_code(tmp_path):
    torch.save(
        {"state_dict": {"w": torch.ones(2)}, "x": Opens(tmp_path / "ran")}, tmp_path / "a.ckpt"
    )
    content = callbacks.AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(content["state_dict"]["w"], torch.ones(2))
    assert not (tmp_path / "ran").exists()


def test_checkpoint_io_says_what_it_cannot_do(tmp_path):
    plugin = callbacks.AtomicCheckpointIO()
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        plugin.load_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(TypeError, match="remote stores"):
        plugin.save_checkpoint({}, tmp_path / "a.ckpt", storage_options={"key": 1})
