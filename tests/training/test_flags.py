"""No flag and no public option is dropped without a word: it holds, or is refused by name."""

import pytest
import torch

from ldm.checkpoint import read_embeddings, save_safetensors
from ldm.errors import UserError
from ldm.training.cli import parse
from ldm.training.config import load_config, point_at
from ldm.training.jobs import Job, job_config
from ldm.training.run import build_data, concept_sentence
from tests.contracts.published import REPO
from tests.training.toy import write_images

PUBLIC = REPO / "configs/latent-diffusion/txt2img-1p4B-finetune.yaml"
WORDS = "model.params.personalization_config.params."
COARSE = "data.params.train.params.coarse_class_text=dog"


def public(*more):
    """The released configuration with other arguments."""
    return load_config(parse(["--base", str(PUBLIC), *map(str, more)]))


def own(toy, *more):
    """The toy's configuration, with a mask and a contrast, with other arguments."""
    return load_config(parse(["--base", str(toy.method), str(toy.backbone), *map(str, more)]))


class TestContrast:
    def test_temperature_and_weight_alone_change_the_configured_one(self, toy):
        contrast = own(toy, "--infonce_temperature", "0.7").model.params.contrast
        assert contrast == {"temperature": 0.7, "weight": 0.00075, "bind_adjectives": True}
        contrast = own(toy, "--infonce_scale", "0.5").model.params.contrast
        assert contrast == {"temperature": 0.3, "weight": 0.5, "bind_adjectives": True}

    @pytest.mark.parametrize("flag", ["--infonce_temperature", "--infonce_scale"])
    def test_they_are_refused_where_there_is_none(self, flag):
        with pytest.raises(UserError, match=rf"{flag}.*--pseudo_words_infonce"):
            public(flag, "0.1")

    def test_an_empty_list_of_words_switches_it_off(self, toy):
        off = ("--presudo_words_infonce", "", "--infonce_scale", "0.1")
        config = public(*off)
        assert "contrast" not in config.model.params
        assert config.model.target == "ldm.models.diffusion.ddpm.LatentDiffusion"
        assert own(toy, *off).model.params.contrast is None

    def test_bound_adjectives_stay_unless_a_flag_says_which(self, toy):
        words = ("--pseudo_words_infonce", "<teddy>,<board>")
        assert own(toy, *words).model.params.contrast.bind_adjectives
        plain = ("--placeholder_string", "brown *", "--pseudo_words", "*")
        assert not own(toy, *words, *plain).model.params.contrast.bind_adjectives
        bound = own(toy, *words, *plain, "--adj_aug_infonce", "brown")
        assert bound.model.params.contrast.bind_adjectives
        off = "model.params.contrast.bind_adjectives=false"
        assert not own(toy, *words, off).model.params.contrast.bind_adjectives


class TestMask:
    @pytest.mark.parametrize("kind", ["hard", "soft"])
    def test_its_kind_switches_it_on(self, kind):
        config = public("--attn_mask_type", kind)
        assert config.model.params.mask == {"kind": kind}
        assert config.model.target == "ldm.models.diffusion.mcpl.MCPL"

    def test_skipping_one_that_there_is_not_changes_nothing(self, toy):
        assert "mask" not in public("--attn_mask_type", "skip").model.params
        assert own(toy, "--attn_mask_type", "skip").model.params.mask.kind == "skip"

    def test_words_of_a_public_configuration_make_it(self):
        given = f"{WORDS}attn_words=['*']"
        assert public(given) == public("--attn_words", "*", given)
        assert public(given).model.params.mask == {"kind": "hard", "words": ["*"]}
        assert "mask" not in public(given, "--attn_mask_type", "skip").model.params
        assert "words" not in public(given, "model.params.mask={kind: soft}").model.params.mask
        assert "mask" not in public(given, "--attn_words", "").model.params


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("--adj_aug_infonce", "brown"), "--adj_aug_infonce 'brown'.*in brackets"),
        (
            ("--sentence", "a <b>", "--adj_aug_infonce", "brown"),
            "--adj_aug_infonce 'brown'.*in brackets",
        ),
        (
            ("--placeholder_string", "a *", "--pseudo_words", "*", "--strategy", "all"),
            "--strategy all.*--pseudo_words",
        ),
    ],
)
def test_flags_that_would_have_no_effect_are_refused(line, said):
    with pytest.raises(UserError, match=said):
        public(*line)
    public("--adj_aug_infonce", "")


class TestPublicWords:
    """A public ``personalization_config`` without any flags."""

    def starts(self, *more):
        sentence = concept_sentence(public(*more))
        return sentence.caption.text, {word.name: word.start for word in sentence.words}

    def test_words_of_a_sentence(self):
        given = (f"{WORDS}placeholder_strings=['green * and @']", f"{WORDS}presudo_words=['*','@']")
        starts = {"*": "sculpture", "@": "sculpture"}
        assert self.starts(*given) == ("green * and @", starts)

    def test_a_placeholder_alone_keeps_the_configured_start(self, toy):
        words = "{initializer_words: [sculpture, cup], placeholder_strings: ['*', '@']}"
        given = (f"model.params.personalization_config.params={words}", "--placeholder_string")
        assert self.starts(*given, "?") == ("?", {"?": "sculpture"})
        more = ("green # and red ?", "--pseudo_words", "#,green,?")
        assert self.starts(*given, *more)[1] == {"#": "sculpture", "green": "green", "?": "cup"}

    def test_an_init_word_alone_is_that_of_its_own_placeholder(self, toy):
        given = (f"{WORDS}placeholder_strings=['@']", f"{WORDS}presudo_words=['@']")
        assert self.starts(*given, "--init_word", "toy") == ("@", {"@": "toy"})
        config = own(toy, "concept=null", "--init_word", "toy")
        assert concept_sentence(config).caption.text == "*"

    def test_an_init_word_alone_leaves_the_configured_sentence(self):
        given = "concept={placeholder_string: a green *, pseudo_words: ['*'], adjectives: [green]}"
        sentence = concept_sentence(public(given, "--init_word", "toy"))
        (word,) = sentence.words
        assert sentence.caption.text == "a green *"
        assert (word.start, word.adjective) == ("toy", "green")

    @pytest.mark.parametrize(
        "more", [(), ("--init_word", "toy"), ("--placeholder_string", "*", "--init_word", "toy")]
    )
    def test_the_class_goes_before_the_placeholder(self, toy, more):
        config = public(COARSE, "--data_root", toy.images, *more)
        dataset = build_data(config, concept_sentence(config)).datasets["train"]
        assert dataset.sentence_of(0).caption.text == "dog *"
        assert {word.name: word.start for word in dataset.words} == {
            "*": "toy" if more else "sculpture"
        }

    def test_a_class_beside_a_sentence_is_refused(self, toy):
        for sentence in ("a <teddy>", "dog <teddy>"):
            config = public(COARSE, "--data_root", toy.images, "--sentence", sentence)
            with pytest.raises(ValueError, match="coarse_class_text 'dog'"):
                build_data(config, concept_sentence(config))

    def test_saved_words_are_the_start(self, toy, tmp_path, command):
        saved = {"<teddy>": torch.ones(1, 32), "<board>": torch.zeros(1, 32)}
        save_safetensors(saved, tmp_path / "words.safetensors")
        params = f"embedding_manager_ckpt: {tmp_path / 'words.safetensors'}"
        words = "target: ldm.modules.embedding_manager.EmbeddingManager, params: "
        words += "{placeholder_strings: ['<teddy>', '<board>'], "
        outcome = command(toy.arguments(
            tmp_path / "logs", "--max_steps", "1", "model.base_learning_rate=0",
            f"model.params.personalization_config={{{words}{params}}}}}",
        ), tmp_path / "logs")  # fmt: skip
        assert outcome.code == 0, outcome.said
        learned = read_embeddings(outcome.folder / "checkpoints/embeddings.pt").vectors
        assert all(torch.equal(learned[word], saved[word]) for word in saved)


class TestPictures:
    def test_options_stay_with_other_pictures(self):
        drawn = load_config(parse([
            "--base", str(REPO / "configs/mcpl.yaml"), "--data_root", "IMAGES",
            "data.params.train.params.center_crop=true", "data.params.train.params.n_images=8",
        ])).data.params.train  # fmt: skip
        assert dict(drawn.params) == {"size": 64, "center_crop": True, "data_root": "IMAGES"}
        folder = drawn
        folder.params.folder = "X"
        drawn = point_at(folder, "playroom:cactus-ball")
        assert dict(drawn.params) == {"size": 64, "center_crop": True, "name": "cactus-ball"}
        drawn.params.n_images = 3
        again = point_at(drawn, "playroom:bear-skateboard").params
        assert (again.n_images, again.name) == (3, "bear-skateboard")

    def test_a_misspelt_option_is_refused(self, toy):
        config = own(toy, "--data_root", "playroom:cactus-ball", "data.params.train.params.sise=3")
        with pytest.raises(UserError, match="sise"):
            build_data(config, concept_sentence(config))

    def test_those_of_one_run_of_many_are_validated_on_as_well(self, toy, tmp_path):
        validation = "{target: ldm.data.personalized.PersonalizedBase, params: {size: 16}}"
        config = own(toy, f"data.params.validation={validation}")
        folder = write_images(tmp_path / "those", 2)
        wording = {"image": "a <cube:toy>"}
        for sentence in (None, "a <cube:toy>", wording):
            job = job_config(config, Job("x", str(folder), sentence, 3))
            parts = job.data.params.train, job.data.params.validation
            assert [part.params.data_root for part in parts] == [str(folder)] * 2
            if sentence is wording:
                assert [part.params.sentence for part in parts] == [wording] * 2
            sets = build_data(job, concept_sentence(job)).datasets
            assert len(sets["validation"].items) == 2

    def test_those_to_validate_on_need_no_options_to_be_found(self, toy):
        target = "data.params.validation.target=ldm.data.personalized.PersonalizedBase"
        config = own(toy, target, "--data_root", toy.images)
        assert config.data.params.validation.params == {"data_root": str(toy.images)}

    @pytest.mark.parametrize("part", ["train", "validation"])
    def test_a_folder_that_nobody_names(self, toy, part):
        missing = f"data.params.{part}={{target: ldm.data.personalized_style.PersonalizedBase, "
        missing += "params: {data_root: null}}"
        train = f"data.params.train.params.data_root={toy.images}"
        config = own(toy, train, missing)
        with pytest.raises(UserError, match=rf"params\.{part} .*no pictures: give --data_root"):
            build_data(config, None)
