"""Words that a run has and does not learn: from an earlier file, or only one picture's own."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from ldm.concepts.recorder import concept_words
from ldm.data.personalized import PersonalizedBase
from ldm.errors import UserError
from ldm.inference import load_model
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.prompts.sentence import LearnableWord
from ldm.prompts.templates import PER_IMAGE_TOKENS
from ldm.training.words import learn_words
from tests.training.toy import write_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def model(toy):
    return load_model(toy.weights, toy.backbone).train()


@pytest.fixture
def earlier(model, tmp_path):
    """A file of two words."""
    words = [LearnableWord("<bear>"), LearnableWord("<old>", "tree", 2)]
    manager = EmbeddingManager(model.cond_stage_model, words=words)
    for vectors in manager.embedding_parameters():
        torch.nn.init.normal_(vectors)
    manager.save(tmp_path / "earlier.pt")
    return tmp_path / "earlier.pt"


def continued(model, toy, path, sentence):
    """The words of a run over `sentence` that starts from the file `path`."""
    data = SimpleNamespace(datasets={"train": PersonalizedBase(toy.images, 16, sentence=sentence)})
    config = OmegaConf.create({"seed": 0, "model": {}, "concept": {"embeddings": str(path)}})
    learn_words(model, data, config, trained=True, quiet=True)
    return model.embedding_manager


def test_words_without_a_sentence_stay_bit_for_bit_and_in_the_file(model, toy, earlier, tmp_path):
    manager = continued(model, toy, earlier, "a <bear> here")
    before = {name: v.detach().clone() for name, v in manager.string_to_param_dict.items()}
    model.learning_rate = 0.1
    optimizer = model.configure_optimizers()
    for _ in range(3):
        optimizer.zero_grad()
        text = model.get_learned_conditioning(["a <bear> here"])
        text.square().sum().backward()
        optimizer.step()
    assert torch.equal(manager.string_to_param_dict["<old>"], before["<old>"])
    assert not torch.equal(manager.string_to_param_dict["<bear>"], before["<bear>"])
    learned = list(manager.embedding_parameters())
    assert len(learned) == 1
    assert learned[0] is manager.string_to_param_dict["<bear>"]
    manager.save(tmp_path / "later.pt")
    later = EmbeddingManager(
        model.cond_stage_model, ["?"], embedding_manager_ckpt=tmp_path / "later.pt"
    )
    assert list(later.words) == ["<bear>", "<old>"]
    assert torch.equal(later.string_to_param_dict["<old>"], before["<old>"])


def test_they_start_from_the_file_as_it_is(model, toy, earlier, caplog):
    """Not from the sentence's init word, nor with the vectors that it asks for."""
    manager = continued(model, toy, earlier, "a <bear:dog|3> here")
    (word,) = (word for word in manager.learnable if word.name == "<bear>")
    assert (word.start, word.vectors) == (str(earlier), 1)
    assert torch.equal(manager.initial_embeddings["<bear>"], manager.string_to_param_dict["<bear>"])
    assert "<bear> with 1 vectors, which it keeps: not the 3" in caplog.text


def test_they_still_have_their_meaning_in_text(model, toy, earlier):
    continued(model, toy, earlier, "a <bear> here")
    found = model.get_learned_conditioning(["an <old> one"])
    plain = EmbeddingManager(model.cond_stage_model, ["?"], embedding_manager_ckpt=earlier)
    assert torch.equal(found, model.cond_stage_model.encode(["an <old> one"], plain))


def test_a_file_without_a_word_of_the_sentence_is_refused(model, toy, earlier):
    with pytest.raises(UserError, match=r"<new>.*<bear>.*<old>"):
        continued(model, toy, earlier, "a <new> here")


def test_what_is_special_about_a_picture_is_no_concept(model):
    manager = EmbeddingManager(
        model.cond_stage_model, words=[LearnableWord("<bear>")], per_image_tokens=True
    )
    names = ["<bear>", *PER_IMAGE_TOKENS[:3]]
    assert set(names) <= set(manager.words)
    assert concept_words(names, manager) == ["<bear>"]
