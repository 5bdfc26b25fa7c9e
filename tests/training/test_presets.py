"""Configurations laid over others, and the strategies that come as configurations of their own."""

import pytest

from ldm.config_files import read_yaml
from ldm.errors import UserError
from ldm.training.cli import parse
from ldm.training.config import load_config
from ldm.training.run import build_data, concept_sentence
from tests.contracts.published import REPO


def loaded(name, *more):
    """One of the shipped configurations."""
    return load_config(parse(["--base", str(REPO / "configs" / name), *more]))


def sentences(config):
    """Text of each picture's sentence, and the names of the words to learn."""
    dataset = build_data(config, concept_sentence(config)).datasets["train"]
    texts = [dataset.sentence_of(i).caption.text for i in range(dataset.num_images)]
    return texts, [word.name for word in dataset.words]


class TestBase:
    def test_a_file_is_laid_over_its_base(self, tmp_path):
        (tmp_path / "a.yaml").write_text("model: {target: x.Y, params: {mask: {kind: hard}, k: 1}}")
        (tmp_path / "b.yaml").write_text("base: a.yaml\nmodel: {params: {mask: null, z: 2}}")
        (tmp_path / "c.yaml").write_text("base: b.yaml\nmodel: {params: {k: 3}}")
        config = read_yaml(tmp_path / "c.yaml")
        assert config == {"model": {"target": "x.Y", "params": {"mask": None, "k": 3, "z": 2}}}

    def test_a_backbone_replaces_that_of_the_base(self, tmp_path):
        (tmp_path / "a.yaml").write_text("backbone: {name: one, size: 64}")
        (tmp_path / "b.yaml").write_text("base: a.yaml\nbackbone: {name: two}")
        assert read_yaml(tmp_path / "b.yaml") == {"backbone": {"name": "two"}}

    def test_a_circle_and_a_missing_base_are_refused(self, tmp_path):
        (tmp_path / "a.yaml").write_text("base: b.yaml")
        (tmp_path / "b.yaml").write_text("base: a.yaml")
        (tmp_path / "c.yaml").write_text("base: nothing.yaml")
        with pytest.raises(UserError, match=r"a\.yaml is its own base: a\.yaml > b\.yaml"):
            read_yaml(tmp_path / "a.yaml")
        with pytest.raises(UserError, match=r"nothing\.yaml does not exist"):
            read_yaml(tmp_path / "c.yaml")


@pytest.mark.parametrize("name", ["text2img-large", "sd-v1", "sd-v2"])
def test_a_backbone_says_where_its_weights_are_to_be_had(name):
    """The page that the files name is there, and says which file each of them looks for."""
    path, page = REPO / f"configs/backbones/{name}.yaml", "models/ldm/text2img-large/README.md"
    assert page in path.read_text()
    assert read_yaml(path).backbone.weights in (REPO / page).read_text()


class TestStrategies:
    def test_mcpl_is_one_with_all_regularisation(self):
        full, plain = loaded("mcpl.yaml"), loaded("mcpl-one.yaml")
        assert full.model.params.mask.kind == "hard"
        assert full.model.params.contrast.bind_adjectives
        assert (plain.model.params.mask, plain.model.params.contrast) == (None, None)
        for config in (full, plain):
            config.model.params.mask = config.model.params.contrast = None
        assert full == plain

    def test_all_learns_every_word(self):
        (text, *_), words = sentences(loaded("mcpl-all.yaml"))
        assert set(words) == set(text.split())
        assert {"<bear>", "brown", "a"} <= set(words)
        assert sentences(loaded("mcpl-one.yaml"))[1] == ["<bear>", "<skateboard>"]

    def test_a_sentence_leaves_the_rest_of_the_concept(self):
        given = ("--sentence", "a [red] <x:dog> on a <y:mat>", "concept.embeddings=words.pt")
        found = loaded("mcpl-all.yaml", *given).concept
        assert (found.strategy, found.embeddings) == ("all", "words.pt")
        assert loaded("mcpl-all.yaml", *given, "--strategy", "one").concept.strategy == "one"
        assert loaded("mcpl.yaml", *given).concept.strategy == "one"
        released = ("--placeholder_string", "a *", "--pseudo_words", "*", given[-1])
        assert loaded("mcpl.yaml", *released).concept.embeddings == "words.pt"

    def test_lists_of_words_may_be_text(self):
        concept = "concept={placeholder_string: green * and a @, pseudo_words: '*,@'}"
        assert concept_sentence(loaded("mcpl.yaml", concept)).names == ("*", "@")

    def test_diverse_has_a_relation_for_each_picture(self):
        texts, words = sentences(loaded("mcpl-diverse.yaml"))
        assert len(set(texts)) >= 3
        assert {"<ball>", "<box>", "<on>", "<under>", "<beside>"} == set(words)
        config = loaded("mcpl-diverse.yaml")
        named = {w for prompt in config.summary.prompts for w in prompt.split() if w[0] == "<"}
        assert named <= set(words)

    @pytest.mark.parametrize("name", ["mcpl.yaml", "mcpl-one.yaml", "mcpl-all.yaml",
                                      "mcpl-diverse.yaml", "lego.yaml"])  # fmt: skip
    def test_terms_can_be_put_in_from_the_command_line(self, name):
        config = loaded(name, "model.params.mask={kind: soft}")
        assert config.model.params.mask.kind == "soft"
        assert "base" not in config
