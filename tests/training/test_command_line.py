"""What command lines mean: files, overrides, backbones, flags people already have."""

import shlex

import pytest
import torch
from omegaconf import OmegaConf

from ldm.checkpoint import read_embeddings
from ldm.errors import UserError
from ldm.training.cli import build_parser, parse
from ldm.training.config import load_config
from ldm.training.run import build_data, concept_sentence
from ldm.training.trainer import devices
from tests.training.toy import write_images, write_model

TI = "--base configs/latent-diffusion/txt2img-1p4B-finetune.yaml -t --actual_resume CKPT -n RUN"
TI += " --gpus 0, --data_root IMAGES --init_word"
SD = TI.replace("latent-diffusion/txt2img-1p4B-finetune", "stable-diffusion/v1-finetune")
BALL = f"{TI} ball --placeholder_string"
BEAR = (
    f"{TI} bear --placeholder_string 'a brown @ on a rolling * at times square' "
    "--presudo_words 'a,brown,on,rolling,at,times,square,@,*' --attn_words 'brown,rolling,@,*' "
    "--presudo_words_softmax '@,*' --presudo_words_infonce '@,*' --adj_aug_infonce 'brown,rolling' "
)
RELEASED = {
    "textual inversion": f"{TI} toy",
    "textual inversion, stable diffusion": f"{SD} toy",
    "all": f"{BALL} 'green * and orange @' --presudo_words 'green,*,and,orange,@'",
    "one": f"{BALL} 'green * and orange @' --presudo_words '*,@'",
    "diverse": f"{BALL} 'green * RELATE orange @' --presudo_words '*,@,on,under,next,front'",
    "contrast": f"{BEAR} --infonce_temperature 0.2 --infonce_scale 0.0005 --attn_mask_type 'skip'",
    "mask": f"{BEAR} --infonce_temperature 0.3 --infonce_scale 0.00075",
}
#: Command -> sentence, and what each word to learn starts from.
MEANING = {
    "textual inversion": ("*", {"*": "toy"}),
    "textual inversion, stable diffusion": ("*", {"*": "toy"}),
    "all": ("green * and orange @", {"green": "green", "*": "ball", "and": "and",
                                     "orange": "orange", "@": "ball"}),
    "one": ("green * and orange @", {"*": "ball", "@": "ball"}),
    "diverse": ("green * RELATE orange @", {"*": "ball", "@": "ball", "on": "on",
                                            "under": "under", "next": "next", "front": "front"}),
}  # fmt: skip
BEAR_WORDS = {word: word for word in ("a", "brown", "on", "rolling", "at", "times", "square")}
BEAR_WORDS |= {"@": "bear", "*": "bear"}


def configured(line, *more):
    return load_config(parse([*shlex.split(line), *map(str, more)]))


@pytest.fixture
def in_repo(repo, monkeypatch):
    monkeypatch.chdir(repo)


@pytest.mark.usefixtures("in_repo")
class TestReleasedCommands:
    @pytest.mark.parametrize("name", MEANING)
    def test_words(self, name):
        text, starts = MEANING[name]
        config = configured(RELEASED[name])
        sentence = concept_sentence(config)
        assert sentence.caption.text == text
        assert {word.name: word.start for word in sentence.words} == starts
        assert (config.weights, config.data.params.train.params.data_root) == ("CKPT", "IMAGES")
        assert config.model.target == "ldm.models.diffusion.ddpm.LatentDiffusion"

    @pytest.mark.parametrize("name", ["contrast", "mask"])
    def test_words_and_terms(self, name):
        config = configured(RELEASED[name])
        sentence = concept_sentence(config)
        assert {word.name: word.start for word in sentence.words} == BEAR_WORDS
        bound = {word.name: word.adjective for word in sentence.words if word.adjective}
        assert bound == {"@": "brown", "*": "rolling"}
        assert config.model.target == "ldm.models.diffusion.mcpl.MCPL"
        contrast = config.model.params.contrast
        expected = (0.2, 0.0005) if name == "contrast" else (0.3, 0.00075)
        assert (contrast.temperature, contrast.weight) == expected
        assert (list(contrast.words), contrast.bind_adjectives) == (["@", "*"], True)
        mask = config.model.params.get("mask")
        if name == "contrast":
            assert mask is None or mask.kind == "skip"
        else:
            assert (mask.kind, list(mask.words)) == ("hard", ["brown", "rolling", "@", "*"])

    @pytest.mark.parametrize("name", RELEASED)
    def test_the_right_spelling_means_the_same(self, name):
        right = RELEASED[name].replace("presudo", "pseudo")
        assert configured(right) == configured(RELEASED[name])

    def test_no_test_and_the_rest_of_the_flags(self):
        line = f"{TI} toy --no-test -f _x -l there -s 7 -d --scale_lr false --batch_size 3"
        flags = parse(shlex.split(line)).flags
        assert (flags.no_test, flags.postfix, flags.logdir) == (True, "_x", "there")
        config = configured(line)
        assert (config.seed, config.scale_lr, config.data.params.batch_size) == (7, False, 3)


class TestOnTheToy:
    """The same flags with a model that is there: the run, not only its configuration."""

    def run(self, command, toy, logs, *more):
        outcome = command([*toy.arguments(logs, "--max_steps", "1"), *map(str, more)], logs)
        assert outcome.code == 0, outcome.said
        return read_embeddings(outcome.folder / "checkpoints/embeddings.pt").vectors, outcome

    def test_textual_inversion(self, toy, tmp_path, command):
        words, outcome = self.run(
            command, toy, tmp_path, "-t", "--gpus", "0,", "--init_word", "toy", "-n", "RUN",
            "concept=null", "model.params.mask=null", "model.params.contrast=null",
        )  # fmt: skip
        assert set(words) == {"*"}
        assert outcome.folder.name.startswith("images2")
        assert outcome.folder.name.endswith("_RUN")
        if not torch.cuda.is_available():
            assert "--gpus 0, is read as the CPU" in outcome.said

    def test_one_picture_for_each_relation(self, toy, tmp_path, command):
        folder = write_images(tmp_path / "relations", 2)
        (folder / "0.png").rename(folder / "on.png")
        (folder / "1.png").rename(folder / "beside.png")
        words, outcome = self.run(
            command, toy, tmp_path / "logs", "--data_root", folder, "--init_word", "ball",
            "--placeholder_string", "green * RELATE orange @", "--pseudo_words", "*,@,on,under",
        )  # fmt: skip
        assert set(words) == {"*", "@", "on"}, "no picture shows 'under'"
        assert "not learned: there is under in no picture's sentence" in outcome.said

    def test_every_term(self, toy, tmp_path, command):
        words, outcome = self.run(
            command, toy, tmp_path, "--init_word", "bear",
            "--placeholder_string", "a brown @ on a rolling *", "--pseudo_words", "@,*",
            "--attn_words", "brown,@,*", "--pseudo_words_infonce", "@,*",
            "--adj_aug_infonce", "brown,rolling",
        )  # fmt: skip
        assert set(words) == {"@", "*"}
        project = next(outcome.folder.glob("configs/*-project.yaml"))
        assert list(OmegaConf.load(project).model.params.mask.words) == ["brown", "@", "*"]

    def test_all_words_of_drawn_pictures(self, toy, tmp_path, command):
        words, _ = self.run(
            command, toy, tmp_path, "--data_root", "playroom:bear-skateboard", "--strategy", "all",
            "concept.sentence=null",
        )  # fmt: skip
        assert {"<bear>", "<skateboard>", "brown", "on", "square"} <= set(words)


def drawn(toy, *more):
    """The toy's configuration with other arguments."""
    return load_config(parse(["--base", str(toy.method), str(toy.backbone), *map(str, more)]))


class TestFiles:
    def test_later_files_win(self, toy, tmp_path):
        for name, steps, rate in (("a", 1, 2), ("b", 5, None)):
            content = {"lightning": {"trainer": {"max_steps": steps}}}
            content |= {"model": {"base_learning_rate": rate}} if rate else {}
            OmegaConf.save(OmegaConf.create(content), tmp_path / f"{name}.yaml")
        config = drawn(toy, "--base", tmp_path / "a.yaml", tmp_path / "b.yaml")
        assert config.lightning.trainer.max_steps == 5
        assert config.model.base_learning_rate == 2
        assert config.data.params.batch_size == 2, "what no later file names stays"

    def test_a_method_goes_over_its_backbone(self, toy):
        config = drawn(toy)
        assert config.model.target == "ldm.models.diffusion.mcpl.MCPL"
        assert config.model.params.mask_resolution == [8, 4]
        assert config.model.params.unet_config.params.model_channels == 32
        assert config.data.params.train.params.size == 16

    def test_the_last_backbone_counts_whole(self, toy, tmp_path):
        other = {
            "backbone": {
                "name": "other",
                "size": 8,
                "mask_resolution": [4],
                "model": {"base_learning_rate": 1, "params": {"image_size": 4}},
            }
        }
        OmegaConf.save(OmegaConf.create(other), tmp_path / "other.yaml")  # fmt: skip
        config = drawn(toy, "--base", tmp_path / "other.yaml")
        assert "weights" not in config.backbone
        assert "unet_config" not in config.model.params
        assert config.model.params.image_size == 4
        assert config.data.params.train.params.size == 8

    @pytest.mark.usefixtures("in_repo")
    def test_a_backbone_by_name(self):
        config = configured("--base configs/mcpl.yaml")
        assert config.backbone.name == "playroom"
        assert config.model.params.unet_config.target.endswith("UNetModel")

    @pytest.mark.usefixtures("in_repo")
    def test_a_backbone_in_place_of_the_named_one(self, toy):
        config = configured("--base configs/mcpl.yaml", toy.backbone)
        assert config.backbone.name == "toy"
        assert config.model.params.image_size == 8
        assert config.model.target.endswith("MCPL")


class TestOverrides:
    @pytest.mark.usefixtures("in_repo")
    def test_of_what_comes_from_the_backbone(self):
        config = configured(
            "--base configs/mcpl.yaml backbone.size=32 model.params.unet_config.params.dropout=0.5 "
            "model.params.cond_stage_config.params.n_layer=3 backbone.weights=null"
        )
        assert config.backbone.size == config.data.params.train.params.size == 32
        assert config.backbone.weights is None
        unet, text = config.model.params.unet_config, config.model.params.cond_stage_config
        assert (unet.params.dropout, unet.params.context_dim) == (0.5, 128)
        assert (text.params.n_layer, text.params.n_embed) == (3, 128)

    def test_of_the_backbone_itself(self, toy):
        config = load_config(parse(["--base", str(toy.method), f"backbone={toy.backbone}"]))
        assert config.backbone.name == "toy"
        assert config.model.params.image_size == 8

    def test_values_are_yaml(self, toy):
        config = drawn(toy, "model.params.mask_resolution=[4]", "summary={steps: 3}", "seed=9")
        assert config.model.params.mask_resolution == [4]
        assert (config.summary.steps, config.seed) == (3, 9)

    def test_wherever_they_stand(self):
        for line in (
            "--base a.yaml b.yaml x.y=1 -t --max_steps 3",
            "-t x.y=1 -b a.yaml -b b.yaml --max_steps=3",
            "x.y=1 --max_steps 3 --base a.yaml b.yaml -t",
        ):
            options = parse(line.split())
            assert options.flags.base == ["a.yaml", "b.yaml"]
            assert (options.flags.train, options.overrides) == (True, ["x.y=1"])
            assert options.trainer == {"max_steps": "3"}

    @pytest.mark.parametrize(
        "flag", ["-t", "--train", "--no-test", "-d", "--scale_lr", "--datadir_in_name"]
    )
    def test_of_one_name_after_a_switch(self, flag):
        for line in (f"-b a.yaml {flag} seed=1 pack=4", f"{flag} x.y=1 seed=1 pack=4 -b a.yaml"):
            options = parse(line.split())
            assert options.overrides == [
                entry for entry in ("x.y=1", "seed=1", "pack=4") if entry in line
            ]
            assert options.flags.base == ["a.yaml"]
            given = {f"--{name.replace('_', '-')}": v for name, v in vars(options.flags).items()}
            name = {"-t": "--train", "-d": "--debug"}.get(flag, flag)
            assert given[name.replace("_", "-")] is True
        assert parse([flag, "no", "seed=1"]).overrides == ["seed=1"]

    def test_of_one_name_after_a_switch_of_the_trainer(self):
        options = parse(["-b", "a.yaml", "--fast_dev_run", "seed=1"])
        assert (options.trainer, options.overrides) == ({"fast_dev_run": "true"}, ["seed=1"])
        assert parse(["-n", "seed=1"]).flags.name == "seed=1", "where a value is needed it is one"

    def test_arguments_of_the_trainer(self, toy):
        config = drawn(toy, "--fast_dev_run", "--max_steps", "-1", "--precision", "bf16-mixed")
        given = config.lightning.trainer
        assert (given.fast_dev_run, given.max_steps, given.precision) == (True, -1, "bf16-mixed")
        assert given.log_every_n_steps == 2, "the file's own stay"

    def test_flags_win_over_files(self, toy):
        config = drawn(toy, "-s", "5", "--batch_size", "3", "--actual_resume", "W", "--gpus", "1,")
        assert (config.seed, config.data.params.batch_size, config.weights) == (5, 3, "W")
        assert config.lightning.trainer.gpus == "1,"


class TestData:
    def test_a_folder_for_training_and_validation(self, toy):
        validation = "data.params.validation={target: a.B, params: {data_root: x, size: 4}}"
        config = drawn(toy, "--data_root", "IMAGES", validation)
        for part in ("train", "validation"):
            assert config.data.params[part].params.data_root == "IMAGES"
        assert config.data.params.validation.params.size == 4

    @pytest.mark.usefixtures("in_repo")
    def test_drawn_pictures_give_way_to_a_folder(self):
        train = configured("--base configs/mcpl.yaml --data_root IMAGES").data.params.train
        assert train.target == "ldm.data.personalized.PersonalizedBase"
        assert dict(train.params) == {"size": 64, "data_root": "IMAGES"}

    def test_a_folder_gives_way_to_drawn_pictures(self, toy):
        train = drawn(toy, "--data_root", "playroom:cactus-ball").data.params.train
        assert train.target == "ldm.data.playroom.PlayroomConcepts"
        assert (train.params.name, train.params.size) == ("cactus-ball", 16)

    def test_strategy_reaches_pictures_with_sentences_of_their_own(self, toy, tmp_path):
        folder = write_images(tmp_path / "own", 1)
        (folder / "0.txt").write_text("a <teddy:bear> on grass")
        config = drawn(toy, "--data_root", folder, "--strategy", "all", "concept.sentence=null")
        words = build_data(config, concept_sentence(config)).datasets["train"].words
        assert {word.name for word in words} == {"a", "<teddy>", "on", "grass"}


class TestParser:
    @pytest.mark.parametrize(
        ("argument", "expected"),
        [
            ("--data_rot", "did you mean --data_root?"),
            ("--no_test", "did you mean --no-test?"),
            ("--max_step", "did you mean --max_steps?"),
            ("--quite_unlike_anything", "see --help"),
            ("stray", "an override such as a.b=c"),
        ],
    )
    def test_unknown_arguments(self, argument, expected):
        with pytest.raises(UserError, match="unknown argument") as caught:
            parse(["-t", "true", argument])
        assert str(caught.value).endswith(expected)

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("--seed x", "invalid int value: 'x'"),
            ("-t maybe", "'maybe' is neither true nor false"),
            ("--attn_mask_type blue", "choose from"),
            ("--strategy", "expected one argument"),
        ],
    )
    def test_bad_values(self, line, expected):
        with pytest.raises(UserError, match="see --help") as caught:
            parse(line.split())
        assert expected in str(caught.value)

    def test_training_is_the_default(self):
        assert parse([]).flags.train is None
        assert parse(["-t"]).flags.train is True
        assert parse(["-t", "false"]).flags.train is False

    def test_help_names_every_flag(self):
        text = build_parser().format_help()
        for flag in ("--sentence", "--attn_mask_type", "--presudo_words_infonce", "--no-test"):
            assert flag in text

    @pytest.mark.parametrize("gpus", [None, "", "0,", "0", "0,1", "-1", 0, "1,"])
    def test_gpus_without_one_are_the_cpu(self, gpus, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert devices(gpus) == {"accelerator": "auto", "devices": 1}

    @pytest.mark.parametrize(
        ("gpus", "expected"), [("0,", [0]), ("0,1", [0, 1]), (2, [2]), ("-1", -1)]
    )
    def test_gpus_by_number(self, gpus, expected, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert devices(gpus) == {"accelerator": "gpu", "devices": expected}

    def test_gpus_that_are_no_numbers(self):
        with pytest.raises(UserError, match="--gpus all"):
            devices("all")


def test_a_run_is_described_well_enough_to_be_repeated(toy, tmp_path, command):
    """The saved configuration alone, without any of the flags, gives the same words."""
    first = command(
        toy.arguments(tmp_path / "1", "--max_steps", "2", "--seed", "4"), tmp_path / "1"
    )
    saved = sorted(first.folder.glob("configs/*.yaml"))
    assert [path.stem.rpartition("-")[2] for path in saved] == ["lightning", "project"]
    assert OmegaConf.load(saved[0]).lightning.trainer.max_steps == 2
    again = command(["--base", saved[1], "--logdir", tmp_path / "2"], tmp_path / "2")
    words, repeated = (
        read_embeddings(run.folder / "checkpoints/embeddings.pt").vectors for run in (first, again)
    )
    assert words.keys() == repeated.keys()
    assert all(torch.equal(words[name], repeated[name]) for name in words)


def test_weights_of_another_file(toy, tmp_path, command):
    """``--actual_resume`` wins over the weights that the backbone names."""
    write_model(tmp_path, "other")
    more = (
        "backbone.weights=missing.safetensors",
        "--actual_resume",
        tmp_path / "other.safetensors",
    )
    outcome = command(toy.arguments(tmp_path / "logs", "--max_steps", "1", *map(str, more)))
    assert outcome.code == 0
    assert f"{tmp_path / 'other.safetensors'}: loaded" in outcome.said
