"""What the part ``lightning`` of a configuration makes of the trainer, and what it refuses."""

from datetime import timedelta

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from ldm.checkpoint import read_checkpoint
from ldm.errors import UserError
from ldm.training.cli import parse
from ldm.training.config import load_config
from ldm.training.folder import RunFolder
from ldm.training.trainer import build_trainer

VALIDATION = {"data": {"params": {"validation": {"target": "x.Y"}}}}


@pytest.fixture
def built(tmp_path):
    """A function that makes the trainer of a configuration's part ``lightning``."""

    def build(lightning=None, *, learns_words=True, network_too=False, **parts):
        lightning = {"trainer": {"accelerator": "cpu"}, **(lightning or {})}
        config = OmegaConf.create({"lightning": lightning, **parts})
        folder = RunFolder(tmp_path / "run", "now")
        return build_trainer(config, folder, learns_words=learns_words, network_too=network_too)

    return build


def trainer(**arguments):
    return {"trainer": {"accelerator": "cpu", **arguments}}


@pytest.mark.parametrize(
    ("features", "expected"), [({"bf16": True}, "bf16-mixed"), ({}, "32-true")]
)
def test_bfloat16_only_where_the_cpu_has_it(built, monkeypatch, features, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert built(trainer(precision="bf16-mixed")).precision == expected
    assert built(trainer(precision="bf16-true")).precision == "bf16-true", "weights are asked for"


class TestValidation:
    def test_it_is_off_where_words_are_learned_and_said_to_be(self, built, caplog):
        caplog.set_level("INFO")
        assert built().limit_val_batches == 0
        assert "validation" not in caplog.text, "there is nothing to validate on"
        assert built(**VALIDATION).limit_val_batches == 0
        assert "validation is off" in caplog.text
        assert "--val_check_interval" in caplog.text

    @pytest.mark.parametrize(
        "asked",
        [
            trainer(val_check_interval=5),
            trainer(check_val_every_n_epoch=2),
            trainer(limit_val_batches=1.0),
            {"modelcheckpoint": {"params": {"monitor": "val/loss_simple", "save_top_k": 3}}},
        ],
    )
    def test_it_is_on_where_it_is_asked_for(self, built, asked, caplog):
        caplog.set_level("INFO")
        made = built(asked, **VALIDATION)
        assert made.limit_val_batches == 1.0
        assert "validation is off" not in caplog.text
        given = asked.get("trainer", {})
        steps = "val_check_interval" in given
        expected = None if steps else given.get("check_val_every_n_epoch", 1)
        assert made.check_val_every_n_epoch == expected

    def test_it_is_on_where_a_network_is_trained(self, built):
        made = built(trainer(val_check_interval=None), learns_words=False, **VALIDATION)
        assert (made.limit_val_batches, made.check_val_every_n_epoch) == (1.0, 1)


class TestCheckpoints:
    def test_all_are_kept_where_they_hold_nothing_but_words(self, built):
        assert built().checkpoint_callback.save_top_k == -1
        assert built(network_too=True).checkpoint_callback.save_top_k == 0
        assert built(learns_words=False).checkpoint_callback.save_top_k == 0

    @pytest.mark.parametrize("place", ["modelcheckpoint", "checkpoint_callback"])
    def test_one_trigger_is_enough(self, built, place):
        def written(**params):
            part = {"params": params}
            part = {place: part} if place == "modelcheckpoint" else {"callbacks": {place: part}}
            made = built(part).checkpoint_callback
            return made._every_n_train_steps, made._every_n_epochs, made._train_time_interval

        assert written() == (500, 0, None)
        assert written(every_n_epochs=1) == (0, 1, None)
        assert written(train_time_interval={"minutes": 30}) == (0, 0, timedelta(minutes=30))
        assert written(every_n_train_steps=7) == (7, 0, None)

    def test_one_on_the_command_line_takes_the_place_of_the_files(self, toy):
        def said(*more):
            line = ["--base", str(toy.method), str(toy.backbone), *more]
            return load_config(parse(line)).lightning.modelcheckpoint.params

        params = "lightning.modelcheckpoint.params."
        assert said() == {"every_n_train_steps": 2}
        assert said(f"{params}every_n_epochs=1") == {"every_n_epochs": 1}
        assert said(f"{params}save_last=link") == {"every_n_train_steps": 2, "save_last": "link"}

    @pytest.mark.parametrize(
        ("params", "said"),
        [
            ({"save_top_k": 7}, "save_top_k=7"),
            ({"every_n_epochs": 1, "every_n_train_steps": 1}, "mutually exclusive"),
            ({"train_time_interval": {"minuts": 1}}, "minuts"),
            ({"save_topk": 1}, "save_topk"),
        ],
    )
    def test_what_lightning_refuses_is_one_message(self, built, params, said):
        with pytest.raises(UserError, match=rf"lightning\.modelcheckpoint\.params .*{said}"):
            built({"modelcheckpoint": {"params": params}})

    def test_a_time_without_units_is_refused(self, built):
        with pytest.raises(ValueError, match=r"train_time_interval=30.*minutes: 30"):
            built({"modelcheckpoint": {"params": {"train_time_interval": 30}}})


class TestLoggers:
    CSV = {"target": "pytorch_lightning.loggers.CSVLogger", "params": {"name": "mine"}}

    @pytest.mark.parametrize("several", [False, True])
    def test_a_configured_one_joins_ours(self, built, tmp_path, several):
        board, table, mine = built({"logger": {"mine": self.CSV} if several else self.CSV}).loggers
        assert isinstance(board, TensorBoardLogger)
        assert isinstance(table, CSVLogger)
        assert mine.log_dir.startswith(str(tmp_path / "run/mine"))

    def test_the_one_that_is_no_more_is_stood_in_for(self, built, caplog):
        caplog.set_level("INFO")
        gone = "pytorch_lightning.loggers.TestTubeLogger"
        assert len(built({"logger": {"target": gone}}).loggers) == 2
        assert "CSV and TensorBoard stand in" in caplog.text

    @pytest.mark.parametrize(
        ("entry", "said"),
        [
            ({"params": {"name": "x"}}, r"lightning\.logger\.params has no target"),
            ({"wandb": {"params": {}}}, r"lightning\.logger\.wandb has no target"),
            ({**CSV, "params": {"nam": "x"}}, r"lightning\.logger\.params do not fit .*nam"),
        ],
    )
    def test_what_is_no_logger_is_refused_by_name(self, built, entry, said):
        with pytest.raises(UserError, match=said):
            built({"logger": entry})


def test_our_values_are_defaults(built):
    made = built(learns_words=False)
    assert (made.num_sanity_val_steps, made.log_every_n_steps) == (0, 10)
    changed = built(trainer(num_sanity_val_steps=2, use_distributed_sampler=True,
                            enable_model_summary=True), learns_words=False)  # fmt: skip
    assert changed.num_sanity_val_steps == 2
    assert changed._accelerator_connector.use_distributed_sampler
    assert len(changed.callbacks) > len(made.callbacks), "the summary of the model"


@pytest.mark.parametrize("name", ["logger", "plugins", "callbacks"])
def test_what_a_run_makes_itself_is_no_argument(built, name):
    with pytest.raises(UserError, match=rf"trainer\.{name} is made by the run.*lightning\."):
        built(trainer(**{name: True}))


def adversarial(toy):
    """The configuration of an autoencoder with a discriminator, on four pictures."""
    size = {"z_channels": 4, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 16,
            "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": []}  # fmt: skip
    loss = {"target": "tests.models.test_autoencoder.TinyLPIPS", "params": {"disc_start": 0}}
    pictures = {"target": "ldm.data.imagenet.ImageFolder",
                "params": {"data_root": str(toy.images), "size": 16}}  # fmt: skip
    return {
        "model": {
            "base_learning_rate": 1e-3,
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {"embed_dim": 4, "ddconfig": size, "lossconfig": loss},
        },
        "data": {
            "target": "ldm.data.module.DataModuleFromConfig",
            "params": {"batch_size": 1, "num_workers": 0, "train": pictures},
        },
        "lightning": {
            "callbacks": {"image_logger": None},
            "trainer": {"accelerator": "cpu", "devices": 1, "accumulate_grad_batches": 3,
                        "max_epochs": 1, "enable_progress_bar": False},
        },
    }  # fmt: skip


class TestManualOptimisation:
    @pytest.fixture
    def line(self, toy, tmp_path):
        OmegaConf.save(OmegaConf.create(adversarial(toy)), tmp_path / "autoencoder.yaml")
        return ["--base", tmp_path / "autoencoder.yaml", "--logdir", tmp_path / "logs"]

    def test_accumulated_batches_are_the_models_own(self, line, tmp_path, command):
        outcome = command(line, tmp_path / "logs")
        assert outcome.code == 0, outcome.said
        assert "learning rate 0.003 = 3 x 0.001" in outcome.said
        # Four batches by threes are two steps, of two optimizers each.
        last = read_checkpoint(outcome.folder / "checkpoints/last.ckpt")
        assert last["global_step"] == 4

    def test_what_lightning_refuses_is_one_message(self, line, tmp_path, command):
        outcome = command([*line, "--gradient_clip_val", "1"], tmp_path / "logs")
        assert (outcome.code, outcome.folder) == (1, None)
        assert "gradient clipping" in outcome.error
        assert "lightning.trainer" in outcome.error
