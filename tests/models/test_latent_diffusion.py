"""`LatentDiffusion`: recorded losses and gradients, what is trained, what stays as it is."""

import copy

import pytest
import torch

from ldm.concepts.recorder import WordAttention
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.optim import adamw
from ldm.models.diffusion.posteriors import PosteriorCache
from ldm.modules.attention_control import attention_sites, controlling
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.prompts.sentence import LearnableWord
from tests.golden import fill, golden
from tests.models.small import BATCH, small_model

LOSS, WORD = golden("ldm_loss"), golden("textual_inversion_grad")


def build(config, vocab, **options) -> LatentDiffusion:
    """The recorded model without its weights."""
    params = copy.deepcopy(config) | options
    params["cond_stage_config"]["params"]["vocab_file"] = str(vocab)
    return LatentDiffusion(**params)


def fill_parts(model):
    """Weights of the recipe: U-Net, first stage and text encoder are filled one by one."""
    for part in (model.model.diffusion_model, model.first_stage_model, model.cond_stage_model):
        fill(part)
    return model.eval()


@pytest.fixture(scope="module")
def recorded(bert_vocab):
    return fill_parts(build(LOSS.config["latent_diffusion"], bert_vocab))


class TestRecordedLoss:
    @pytest.mark.parametrize("case", LOSS.config["cases"])
    def test_values_and_gradient(self, case, recorded, bert_vocab):
        model, options = recorded, LOSS.config["cases"][case]
        if options:
            model = build(LOSS.config["latent_diffusion"], bert_vocab, **options).eval()
            model.load_state_dict(recorded.state_dict(), strict=False)
        cond = LOSS["cond"].clone().requires_grad_()
        loss, parts = model.p_losses(LOSS["x_start"], cond, LOSS["t"], LOSS["noise"])
        loss.backward()
        recorded = {k.split(".")[1] for k in LOSS.tensors if k.startswith(f"{case}.loss")}
        assert {name.removeprefix("val/") for name in parts} >= recorded
        for name in recorded:
            LOSS.check(f"{case}.{name}", parts[f"val/{name}"])
        LOSS.check(f"{case}.grad_cond", cond.grad)
        torch.testing.assert_close(loss, parts["val/loss"])

    def test_the_names_say_whether_it_trains(self, recorded):
        inputs = (LOSS["x_start"], LOSS["cond"], LOSS["t"], LOSS["noise"])
        _, parts = recorded.train().p_losses(*inputs)
        recorded.eval()
        assert set(parts) == {"train/loss", "train/loss_simple", "train/loss_vlb"}

    def test_network_and_posterior(self, recorded):
        model, x, t = recorded, LOSS["x_start"], LOSS["t"]
        schedule = model.schedule
        with torch.no_grad():
            noisy = model.q_sample(x, t, LOSS["noise"])
            LOSS.check("model_output", model.apply_model(noisy, t, LOSS["cond"]))
            output = model.apply_model(x, t, LOSS["cond"])
            start = schedule.prediction("eps", output, x, t).start
            mean, variance, log_variance = schedule.q_posterior(start, x, t)
        LOSS.check("pmv_x0", start)
        LOSS.check("pmv_mean", mean)
        LOSS.check("pmv_var", variance)
        LOSS.check("pmv_logvar", log_variance)


@pytest.fixture(scope="module")
def model(bert_vocab):
    """The recorded model of textual inversion, before it has words."""
    config = dict(WORD.config["latent_diffusion"])
    config.pop("personalization_config")
    return fill_parts(build(config, bert_vocab))


class TestRecordedWord:
    """Textual inversion: the gradient of the loss in the vectors of a word."""

    @pytest.mark.parametrize("vectors", [1, 3])
    @pytest.mark.parametrize("weight", [0.0, 0.05])
    def test_values_and_gradient(self, model, vectors, weight):
        case = f"nv{vectors}.reg{weight}"
        model.embedding_reg_weight = weight
        personalization = copy.deepcopy(WORD.config["latent_diffusion"]["personalization_config"])
        personalization["params"]["num_vectors_per_token"] = vectors
        manager = model.instantiate_embedding_manager(personalization, model.cond_stage_model)
        vector = manager.string_to_param_dict["*"]
        with torch.no_grad():
            vector.copy_(WORD[f"nv{vectors}.param"])
        cond = model.get_learned_conditioning(WORD.config["prompts"])
        if not weight:
            WORD.check(f"{case}.cond", cond)
        loss, parts = model.p_losses(WORD["x_start"], cond, WORD["t"], WORD["noise"])
        loss.backward()
        recorded = {k.split(".")[-1] for k in WORD.tensors if k.startswith(f"{case}.loss")}
        for name in recorded:
            WORD.check(f"{case}.{name}", parts[f"val/{name}"])
        assert ("val/loss_emb_reg" in parts) == bool(weight)
        WORD.check(f"{case}.grad_param", vector.grad)
        others = [n for n, p in model.named_parameters() if p.grad is not None and p is not vector]
        assert others == [], "only the word learns"


@pytest.fixture
def toy():
    """A function that makes the small model."""
    return small_model


SCHEDULE = {
    "target": "ldm.lr_scheduler.LambdaLinearScheduler",
    "params": {"warm_up_steps": [10], "cycle_lengths": [100], "f_start": [0.1],
               "f_max": [1.0], "f_min": [0.5]},
}  # fmt: skip


class TestWhatIsTrained:
    def test_words_alone(self, toy):
        model = toy()
        model.learn([LearnableWord("<teddy>", "bear")])
        model.learning_rate = 0.1
        trained = [p for g in model.configure_optimizers().param_groups for p in g["params"]]
        assert [id(p) for p in trained] == [id(p) for p in model.embedding_manager.parameters()
                                            if p.requires_grad]  # fmt: skip
        model.train()
        assert not any(m.training for m in model.model.modules())
        assert not any(m.training for m in model.cond_stage_model.modules())

    def test_words_have_the_decay_and_the_schedule_of_the_model(self, toy):
        plain, model = toy(), toy(scheduler_config=SCHEDULE, weight_decay=0.3)
        for each in (plain, model):
            each.learn([LearnableWord("<teddy>", "bear")])
            each.learning_rate = 1.0
        assert plain.configure_optimizers().param_groups[0]["weight_decay"] == 0.01
        (optimizer,), (schedule,) = model.configure_optimizers()
        (group,) = optimizer.param_groups
        assert (group["weight_decay"], schedule["interval"]) == (0.3, "step")
        assert group["lr"] == pytest.approx(0.1)

    def test_words_and_network(self, toy):
        model = toy(unfreeze_model=True, model_lr=1e-5)
        model.learn([LearnableWord("<teddy>", "bear")])
        model.learning_rate = 0.1
        network, words = model.configure_optimizers().param_groups
        assert (network["lr"], words["lr"]) == (1e-5, 0.1)
        assert len(words["params"]) == 1
        assert model.strict_loading, "a checkpoint of such a run holds everything"

    def test_network_from_scratch_with_a_schedule_of_the_rate(self, toy):
        model = toy(scheduler_config=SCHEDULE)
        model.learning_rate = 1.0
        (optimizer,), (schedule,) = model.configure_optimizers()
        assert schedule["interval"] == "step"
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
        trained = {id(p) for p in optimizer.param_groups[0]["params"]}
        assert {id(p) for p in model.cond_stage_model.parameters()} <= trained
        assert not trained & {id(p) for p in model.first_stage_model.parameters()}

    def test_nothing_to_train_is_said(self):
        with pytest.raises(ValueError, match=r"nothing to train.*--sentence"):
            adamw([], 0.1)

    def test_averages_of_frozen_weights_stay(self, toy):
        model = toy(use_ema=True)
        model.learn([LearnableWord("<teddy>", "bear")])
        before = copy.deepcopy(model.model_ema.state_dict())
        model.on_train_batch_end()
        for name, value in model.model_ema.state_dict().items():
            assert torch.equal(value, before[name]), name


class TestRandomness:
    def test_a_step_is_a_function_of_its_number(self, toy):
        model = toy(seed=3)
        first = model.shared_step(BATCH)[0]
        torch.manual_seed(99)
        assert torch.equal(model.shared_step(BATCH)[0], first)
        later = model.shared_step(BATCH | {"step": torch.tensor([6, 6])})[0]
        assert not torch.equal(later, first)
        assert not torch.equal(toy(seed=4).shared_step(BATCH)[0], first)

    def test_a_picture_does_not_depend_on_its_neighbours(self, toy):
        model = toy()
        both = model.latents(BATCH)
        alone = model.latents({k: v[1:] for k, v in BATCH.items()})
        assert torch.equal(both[1].noise[1:], alone[1].noise)
        assert torch.equal(both[1].t[1:], alone[1].t)
        torch.testing.assert_close(both[0][1:], alone[0])

    def test_without_step_numbers_torch_decides(self, toy):
        model = toy()
        plain = {key: BATCH[key] for key in ("image", "caption")}
        torch.manual_seed(1)
        first = model.shared_step(plain)[0]
        assert not torch.equal(model.shared_step(plain)[0], first)
        torch.manual_seed(1)
        assert torch.equal(model.shared_step(plain)[0], first)


class TestPosteriors:
    def test_kept_ones_give_the_same_latents(self, toy):
        model = toy().train()
        fresh, _ = model.latents(BATCH)
        model.cache_posteriors()
        first, _ = model.latents(BATCH)
        torch.testing.assert_close(first, fresh)
        # A second look does not encode: other pixels under the same number change nothing.
        again, _ = model.latents(BATCH | {"image": torch.zeros_like(BATCH["image"])})
        assert torch.equal(again, first)
        assert len(model.posteriors) == 2

    def test_a_flip_is_a_picture_of_its_own(self, toy):
        model = toy().train()
        model.cache_posteriors()
        model.latents(BATCH)
        model.latents(BATCH | {"flip": torch.tensor([True, True])})
        assert set(model.posteriors.kept) == {(0, 0, False), (0, 1, True), (0, 0, True)}

    def test_first_stages_without_a_distribution(self):
        cache = PosteriorCache(lambda images: images * 2)
        keys = torch.tensor([0, 0]), torch.tensor([4, 7]), torch.tensor([False, False])
        assert torch.equal(cache(torch.ones(2, 3, 4, 4), *keys), torch.full((2, 3, 4, 4), 2.0))

    def test_a_distribution_keeps_its_spread(self):
        parameters = torch.randn(1, 8, 2, 2)
        cache = PosteriorCache(lambda images: DiagonalGaussianDistribution(parameters))
        keys = torch.tensor([0]), torch.tensor([0]), torch.tensor([False])
        assert torch.equal(cache(torch.ones(1, 3, 4, 4), *keys).std, cache(None, *keys).std)


def test_resuming_with_other_words_is_refused(toy):
    model = toy()
    model.learn([LearnableWord("<teddy>", "bear")])
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    assert set(checkpoint["state_dict"]) == {
        "embedding_manager.string_to_param_dict.<teddy>",
        "embedding_manager.initial_embeddings.<teddy>",
    }
    model.on_load_checkpoint(checkpoint)
    model.learn([LearnableWord("<board>", "skateboard")])
    with pytest.raises(ValueError, match=r"<teddy>.*<board>"):
        model.on_load_checkpoint(checkpoint)


def test_pictures_of_a_step(toy):
    model = toy(mask_resolution=[8])
    model.learn([LearnableWord("<teddy>", "bear")])
    logged = model.log_images(BATCH, N=1, ddim_steps=2)
    assert logged["conditioning"] == ["a photo of a <teddy>"]
    for name in ("inputs", "reconstruction", "samples"):
        assert logged[name].shape == (1, 3, 16, 16)
    assert torch.equal(model.log_images(BATCH, N=1, ddim_steps=2)["samples"], logged["samples"])
    assert list(logged["attention"][0]) == ["<teddy>"]


def test_pictures_of_a_step_show_where_the_words_of_each_caption_look(toy):
    model, images = toy(mask_resolution=[8]), torch.zeros(2, 16, 16, 3)
    batch = {"image": images, "caption": ["a photo of a bear on a skateboard", "a photo"]}
    first, second = model.log_images(batch, N=2, ddim_steps=2)["attention"]
    assert list(first) == ["bear", "skateboard"]
    assert second == {}, "words that mean little are not shown"
    assert all(grid.max() > 0 for grid in first.values())
    assert all(module.controller is None for module, _ in attention_sites(model.model)), "undone"


def test_attention_of_a_preview_is_that_of_its_conditional_half(toy):
    model, batch = (
        toy(mask_resolution=[8]),
        {"image": torch.zeros(1, 16, 16, 3), "caption": ["a bear"]},
    )
    recorder = WordAttention([{"bear": [2]}], model.mask_resolution)
    context = model.get_learned_conditioning(["a bear"])
    guided = {
        "unconditional_guidance_scale": 3.0,
        "unconditional_conditioning": model.get_learned_conditioning([""]),
        "on_step": recorder.begin_step,
    }
    shape, noise = (1, *model.latent_shape()), torch.Generator().manual_seed(0)
    with torch.no_grad(), controlling(model.model.diffusion_model, recorder):
        x_T = torch.randn(shape, generator=noise)
        model.sample_log(context, 1, ddim_steps=2, x_T=x_T, **guided)
    shown = model.log_images(batch, N=1, ddim_steps=2, unconditional_guidance_scale=3.0)
    torch.testing.assert_close(shown["attention"][0]["bear"], recorder.maps()[0, 0])
