"""Lego as a whole: what each word learns from, the switches of the ablation, ReVersion, files."""

import copy

import pytest
import torch
from omegaconf import OmegaConf

from ldm.concepts.context_loss import context_loss
from ldm.data.playroom import PlayroomConcepts
from ldm.data.playroom.sets import LEGO_SETS
from ldm.data.steps import StepKey, collate
from ldm.inference import load_words
from ldm.models.diffusion.draws import importance_weights
from ldm.models.diffusion.lego import Lego
from ldm.prompts import LearnableWord
from ldm.training.cli import parse
from ldm.training.config import load_config
from ldm.training.run import concept_sentence
from ldm.util import instantiate_from_config
from tests.conftest import REPO
from tests.golden import fill
from tests.training.toy import PIXELS, VOCAB, backbone

CONTEXT = {"weight": 0.3, "lists": "playroom"}
STEERING = {"lists": "playroom", "words": {"<R>": "relation"}}
R = (LearnableWord("<R>", "and", role="concept"),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lego")


@pytest.fixture(scope="module")
def data(folder):
    return PlayroomConcepts("lego-frozen", PIXELS, folder=folder / "frozen")


@pytest.fixture(scope="module")
def two(folder):
    return PlayroomConcepts("lego-frozen-multi", PIXELS, folder=folder / "frozen-multi")


def build(words=(), **options) -> Lego:
    """A whole model at toy size, with the recipe's weights, learning `words`."""
    described = backbone(VOCAB, VOCAB)["model"]["params"]
    model = Lego(**copy.deepcopy(described), **options)
    for part in (model.model, model.first_stage_model, model.cond_stage_model):
        fill(part)
    if words:
        model.learn(words)
    model.learning_rate = 0.01
    return model.train()


def batch_of(data, kinds=("concept", "subject"), step=0, size=4):
    """A step of the data, or the part of it that shows pictures of `kinds`."""
    keys = (StepKey(step, slot) for slot in range(size))
    examples = [data[key] for key in keys]
    return collate([e for e in examples if data.items[e["image_id"]].kind in kinds])


def gradients(model, batch):
    """The gradient of every word after one step."""
    model.zero_grad()
    model.shared_step(batch)[0].backward()
    held = model.embedding_manager.string_to_param_dict.items()
    return {name: None if v.grad is None else v.grad.clone() for name, v in held}


def moves(gradient) -> bool:
    return gradient is not None and bool(gradient.abs().max() > 0)


class TestWhatAWordLearnsFrom:
    def test_pictures_of_the_subject_move_only_the_subject(self, data):
        model = build(data.words)
        found = gradients(model, batch_of(data, ["subject"]))
        assert {name for name, each in found.items() if moves(each)} == {"<subject>"}

    def test_pictures_of_the_concept_move_all_words(self, data):
        found = gradients(build(data.words), batch_of(data, ["concept"]))
        assert all(moves(each) for each in found.values())
        assert set(found) == {"<subject>", "<frozen>", "<ice>"}

    def test_the_subject_learns_from_both_sets(self, data):
        model = build(data.words)
        both, concept, subject = (
            gradients(model, batch_of(data, kinds))["<subject>"]
            for kinds in (("concept", "subject"), ("concept",), ("subject",))
        )
        torch.testing.assert_close(both, (concept + subject) / 2)

    def test_the_context_term_adds_to_concept_words_and_leaves_the_subject(self, data):
        batch = batch_of(data)
        plain, steered = gradients(build(data.words), batch), build(data.words, context=CONTEXT)
        found = gradients(steered, batch)
        assert torch.equal(found["<subject>"], plain["<subject>"])
        for word in ("<frozen>", "<ice>"):
            vector = steered.embedding_manager.string_to_param_dict[word]
            loss = context_loss(vector, *steered.context_loss.neighbours[word]).sum()
            (pull,) = torch.autograd.grad(loss, vector)
            torch.testing.assert_close(found[word], plain[word] + 0.3 * pull)
            assert moves(pull)

    def test_with_pictures_of_the_subject_concept_words_feel_the_context_alone(self, data):
        model = build(data.words, context=CONTEXT)
        found = gradients(model, batch_of(data, ["subject"]))
        vector = model.embedding_manager.string_to_param_dict["<ice>"]
        loss = context_loss(vector, *model.context_loss.neighbours["<ice>"]).sum()
        torch.testing.assert_close(found["<ice>"], 0.3 * torch.autograd.grad(loss, vector)[0])

    @pytest.mark.parametrize("off", [{"context": None}, {"context": {**CONTEXT, "weight": 0.0}}])
    def test_no_context_loss_is_textual_inversion(self, data, off):
        batch = batch_of(data)
        loss, parts = build(data.words, **off).shared_step(batch)
        plain, plain_parts = build(data.words).shared_step(batch)
        assert torch.equal(loss, plain)
        assert parts.keys() == plain_parts.keys()
        assert not any("context" in name for name in parts)

    def test_a_word_of_several_vectors_is_steered_and_learned(self, data):
        words = [LearnableWord(w.name, w.init, 2, role=w.role) for w in data.words]
        found = gradients(build(words, context=CONTEXT), batch_of(data))
        for each in found.values():
            assert each.shape[0] == 2
            assert (each.abs().amax(1) > 0).all()

    def test_steps_change_the_words_and_nothing_else(self, data):
        model = build(data.words, context={**CONTEXT, "similarity": "cosine", "weight": 5.0})
        before = {name: value.clone() for name, value in model.state_dict().items()}
        share = []
        optimizer = model.configure_optimizers()
        optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
        for step in range(6):
            optimizer.zero_grad()
            loss, parts = model.shared_step(batch_of(data, step=step))
            loss.backward()
            optimizer.step()
            share.append(parts["train/context_share"].item())
        after = model.state_dict()
        changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
        words = ("<subject>", "<frozen>", "<ice>")
        assert changed == {f"embedding_manager.string_to_param_dict.{word}" for word in words}
        assert share == sorted(share)


class TestTwoSubjects:
    def batch_showing(self, data, image_id):
        examples = (data[StepKey(step, slot)] for step in range(20) for slot in range(4))
        return collate([next(each for each in examples if each["image_id"] == image_id)])

    def test_each_learns_from_its_own_pictures_and_the_concept_from_both(self, two):
        model, concept = build(two.words), {"<frozen>", "<ice>"}
        moved = [
            {name for name, each in gradients(model, self.batch_showing(two, i)).items()
             if moves(each)}
            for i in range(4)
        ]  # fmt: skip
        assert moved == [concept | {"<subject>"}, concept | {"<other>"}, {"<subject>"}, {"<other>"}]

    def test_the_context_term_leaves_both_subjects(self, two):
        plain = gradients(build(two.words), batch_of(two))
        steered = gradients(build(two.words, context=CONTEXT), batch_of(two))
        changed = {n for n, each in plain.items() if not torch.equal(each, steered[n])}
        assert changed == {"<frozen>", "<ice>"}

    def test_without_separation_both_are_described(self, folder, two):
        off = PlayroomConcepts(
            "lego-frozen-multi", PIXELS, folder=two.folder, subject_separation=False
        )
        assert {word.name for word in off.words} == {"<frozen>", "<ice>"}
        assert {str(sentence) for sentence in off.sentences} == {
            "a photo of a toy that is <frozen> in <ice>",
            "a photo of a thing that is <frozen> in <ice>",
        }


class TestReVersion:
    def test_steers_one_word_and_draws_late_timesteps(self, data):
        model = build(R, steering=STEERING, timestep_skew=0.5)
        assert [term.name for term in model.objective.terms] == ["simple", "steering"]
        expected = importance_weights(model.num_timesteps, 0.5)
        assert torch.equal(model.timestep_weights, expected)
        t = torch.cat([model.draws(batch_of(data, step=n), (4, 4, 2, 2)).t for n in range(60)])
        assert t.float().mean() > 560
        assert build(R).timestep_weights is None

    def test_a_step_is_a_function_of_its_number(self, folder):
        options = {"own_sentences": False, "subject_separation": False}
        data = PlayroomConcepts(
            "lego-frozen", PIXELS, folder=folder / "frozen", sentence="a toy that is <R:and>",
            **options,
        )  # fmt: skip
        assert data.words == R
        model = build(data.words, steering={**STEERING, "weight": 1.0}, timestep_skew=0.5)
        first, second = (model.shared_step(batch_of(data, step=n))[1] for n in (1, 2))
        torch.manual_seed(77)
        again = model.shared_step(batch_of(data, step=1))[1]
        assert torch.equal(again["train/loss"], first["train/loss"])
        assert not torch.equal(first["train/loss_steering"], second["train/loss_steering"])
        assert moves(gradients(model, batch_of(data))["<R>"])

    def test_draws_follow_the_seed_of_the_run(self, data):
        losses = []
        for seed in (5, 5, 6):
            model = build(steering=STEERING)
            model.seed = seed
            model.learn(R)
            steering = (model.shared_step(batch_of(data, step=n))[1] for n in range(4))
            losses.append([parts["train/loss_steering"].item() for parts in steering])
        assert losses[0] == losses[1] != losses[2]


class TestConfigs:
    def load(self, file, *arguments):
        return load_config(parse(["--base", str(REPO / file), *arguments]))

    def dataset(self, config, folder):
        params = OmegaConf.to_container(config.data.params.train, resolve=True)
        sentence = concept_sentence(config)
        options = {} if sentence is None else {"sentence": sentence}
        name = params["params"].get("name", "")
        return instantiate_from_config(params, folder=folder / f"64-{name}", **options)

    def test_lego(self, folder):
        config = self.load("configs/lego.yaml")
        assert config.model.target == "ldm.models.diffusion.lego.Lego"
        data = self.dataset(config, folder)
        assert sorted({item.kind for item in data.items}) == ["concept", "subject"]
        model = build(data.words, context=OmegaConf.to_container(config.model.params.context))
        assert list(model.context_loss.neighbours) == ["<frozen>", "<ice>"]

    def test_every_set_of_the_playroom_finds_its_lists(self, folder):
        context = self.load("configs/lego.yaml").model.params.context
        model = build(context=OmegaConf.to_container(context))
        for one in LEGO_SETS:
            root = f"playroom:{one.name}"
            config = self.load("configs/lego.yaml", "--data_root", root)
            words = self.dataset(config, folder).words
            model.learn(words)
            steered = {word.name for word in words} - {"<subject>"}
            assert set(model.context_loss.neighbours) == steered
            assert steered

    @pytest.mark.parametrize("separated", [True, False])
    @pytest.mark.parametrize("steered", [True, False])
    def test_the_four_cells_of_the_ablation(self, folder, separated, steered):
        switch = f"data.params.train.params.subject_separation={str(separated).lower()}"
        context = [] if steered else ["model.params.context=null"]
        config = self.load("configs/lego.yaml", switch, *context)
        data = self.dataset(config, folder)
        assert ("<subject>" in {word.name for word in data.words}) == separated
        assert len(data.items) == (4 if separated else 2)
        given = config.model.params.context
        model = build(data.words, context=OmegaConf.to_container(given) if given else None)
        assert [term.name for term in model.objective.terms] == ["simple", *["context"] * steered]

    def test_reversion(self, folder):
        config = self.load("configs/reversion.yaml", "--data_root", "playroom:lego-melted")
        params = config.model.params
        assert (params.steering.weight, params.steering.temperature) == (0.01, 0.07)
        assert (params.steering.positives_per_step, params.timestep_skew) == (4, 0.5)
        data = self.dataset(config, folder)
        assert [str(each) for each in data.sentences] == ["a photo of a toy that is <R>"]
        assert data.num_images == 2
        options = OmegaConf.to_container(params.steering)
        model = build(data.words, steering=options, timestep_skew=params.timestep_skew)
        assert list(model.steering.neighbours) == ["<R>"]

    def test_the_number_of_pictures_goes_with_another_set(self, folder):
        number = "data.params.train.params.n_images=10"
        config = self.load("configs/lego.yaml", "--data_root", "playroom:lego-melted", number)
        data = self.dataset(config, folder / "ten")
        kinds = [item.kind for item in data.items]
        assert (data.name, kinds.count("concept"), kinds.count("subject")) == ("lego-melted", 5, 5)

    def test_textual_inversion(self, folder):
        config = self.load("configs/textual-inversion.yaml", "--data_root", "playroom:lego-rope")
        assert config.model.target == "ldm.models.diffusion.ddpm.LatentDiffusion"
        data = self.dataset(config, folder)
        assert [(word.name, word.start) for word in data.words] == [("<concept>", "strange")]
        assert {item.kind for item in data.items} == {"concept"}
        assert "<concept>" in str(data[StepKey(0, 0)]["caption"])


def test_words_of_separate_runs_compose_in_one_prompt(folder, tmp_path):
    model, files, vectors = build(), [], {}
    for name, keep in (("frozen", ("<frozen>", "<ice>")), ("rope", ("<walking>", "<rope>"))):
        data = PlayroomConcepts(f"lego-{name}", PIXELS, folder=folder / name)
        model.learn([word for word in data.words if word.name in keep])
        held = model.embedding_manager.string_to_param_dict
        with torch.no_grad():
            for value in held.values():
                value.normal_()
        vectors |= {word: value.detach().clone() for word, value in held.items()}
        files.append(tmp_path / f"{name}.pt")
        model.embedding_manager.save(files[-1])
    known = load_words(model, files)
    assert known == ["<frozen>", "<ice>", "<walking>", "<rope>"]
    prompt = "a photo of a bear that is <frozen> in <ice> and <walking> on a <rope>"
    encoder, manager = model.cond_stage_model, model.embedding_manager
    tokens = encoder.tokenize([prompt], manager.words)
    embedded = manager(tokens.ids, torch.zeros(1, tokens.ids.shape[1], encoder.width))
    for word, value in vectors.items():
        assert torch.equal(embedded[0, tokens.learnable[0][word]], value)


def test_the_learned_subject_is_usable_alone(folder, data, tmp_path):
    model = build(data.words, context=CONTEXT)
    model.embedding_manager.save(tmp_path / "words.pt")
    assert "<subject>" in load_words(model, [tmp_path / "words.pt"])
    prompts = ["a photo of a <subject> on the beach", "a photo of a <subject> that is <frozen>"]
    context = model.get_learned_conditioning(prompts)
    assert context.shape[0] == 2
    model.embedding_manager.string_to_param_dict["<frozen>"].data.add_(1)
    again = model.get_learned_conditioning(prompts)
    assert torch.equal(again[0], context[0])
    assert not torch.equal(again[1], context[1])
