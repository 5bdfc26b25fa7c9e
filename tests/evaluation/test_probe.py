"""One look is like another: it depends on the words and on nothing else, and it leaves no trace."""

import pytest
import torch

from ldm.evaluation.looking import as_started
from ldm.evaluation.probe import Probe
from ldm.training.cli import parse
from ldm.training.config import load_config
from ldm.training.run import build_model, concept_sentence, read_data
from ldm.training.words import learn_words
from tests.training.toy import write_toy


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The toy model with its words, and its training set."""
    toy = write_toy(tmp_path_factory.mktemp("toy"))
    config = load_config(parse(toy.arguments(toy.root / "logs")))
    data = read_data(config, concept_sentence(config))
    model = build_model(config)
    learn_words(model, data, config, trained=True)
    return model, data.datasets["train"]


def test_two_looks_are_equal_and_draw_nothing(parts):
    model, dataset = parts
    model.train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    once, again = Probe(model, dataset)(), Probe(model, dataset)()
    assert torch.equal(torch.rand(3), expected)
    assert once.loss == again.loss
    assert all(torch.equal(once.maps[word], again.maps[word]) for word in once.maps)
    assert model.training
    assert not any(p.grad is not None for p in model.parameters())


def test_other_words_give_another_loss_and_the_start_comes_back(parts):
    model, dataset = parts
    probe, manager = Probe(model, dataset), model.embedding_manager
    before = probe().loss
    with torch.no_grad():
        manager.string_to_param_dict["<teddy>"][0, ::2] += 1.0  # all alike, the norms would undo
    learned = {w: v.detach().clone() for w, v in manager.string_to_param_dict.items()}
    assert probe().loss != before
    with as_started(manager):
        assert probe().loss == before
    assert all(torch.equal(learned[w], v) for w, v in manager.string_to_param_dict.items())
    with torch.no_grad():
        manager.string_to_param_dict["<teddy>"].copy_(manager.initial_embeddings["<teddy>"])


def test_a_picture_is_seen_the_same_beside_others(parts):
    model, dataset = parts
    few, all_of_them = Probe(model, dataset, images=2)(), Probe(model, dataset, images=4)()
    assert few.maps["<teddy>"].shape == (2, 8, 8)
    for word, maps in few.maps.items():
        torch.testing.assert_close(maps, all_of_them.maps[word][:2], rtol=1e-4, atol=1e-6)


def test_templates_vary_over_the_noise_levels(parts):
    _, dataset = parts
    texts = [dataset.caption_of(0, number).text for number in range(8)]
    assert len(set(texts)) > 4  # templates that differ in an article alone give one caption
    assert all("brown <teddy> on a <board>" in text for text in texts)


def test_a_network_without_maps_of_that_size_shows_what_it_has(parts, monkeypatch):
    model, dataset = parts
    monkeypatch.setattr(model, "mask_resolution", (64,))
    assert Probe(model, dataset, images=1)().maps["<teddy>"].shape == (1, 8, 8)


def test_no_picture_is_refused(parts):
    with pytest.raises(ValueError, match="images=0"):
        Probe(*parts, images=0)
