"""Which pictures a model encodes, how it scales them, and what it samples: the public methods."""

import copy
import inspect

import pytest
import torch

from ldm.models.diffusion.ancestral import sample_ddpm
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.prompts.sentence import LearnableWord
from tests.models.small import BATCH, small_model

CLASSES = {
    "cond_stage_key": "class_label",
    "cond_stage_config": {
        "target": "ldm.modules.encoders.modules.ClassEmbedder",
        "params": {"embed_dim": 32, "n_classes": 5, "key": "class_label"},
    },
}


def toy(**options) -> LatentDiffusion:
    """The small model, over 12 timesteps."""
    few = {"timesteps": 12, "linear_start": 0.07, "linear_end": 0.5, "log_every_t": 4}
    return small_model(**few, **options)


@pytest.fixture
def model():
    return toy().train()


class TestKeptPosteriors:
    """They are those of the training set."""

    def test_a_validation_set_has_pictures_of_its_own(self, model):
        model.cache_posteriors()
        learned, _ = model.latents(BATCH)
        others = BATCH | {"image": -BATCH["image"]}
        validated, _ = model.eval().latents(others)
        model.posteriors = None
        torch.testing.assert_close(validated, model.latents(others)[0])
        assert not torch.allclose(validated, learned, atol=1e-3)

    def test_what_was_validated_is_not_learned_from(self, model):
        model.cache_posteriors()
        model.eval().latents(BATCH | {"image": -BATCH["image"]})
        learned, _ = model.train().latents(BATCH)
        model.posteriors = None
        torch.testing.assert_close(learned, model.latents(BATCH)[0])

    def test_a_validation_set_may_have_another_size_and_no_numbers(self, model):
        model.cache_posteriors()
        model.latents(BATCH)
        wide = {"image": torch.zeros(2, 16, 32, 3), "caption": BATCH["caption"]}
        assert model.eval().latents(wide)[0].shape == (2, 4, 8, 16)
        assert model.train().latents(wide)[0].shape == (2, 4, 8, 16)

    def test_input_under_another_name_is_encoded(self, model):
        model.cache_posteriors()
        batch = BATCH | {"hint": -BATCH["image"]}
        learned, captions = model.get_input(batch, "image", bs=1)
        hint, _ = model.get_input(batch, "hint", bs=1)
        assert captions == BATCH["caption"][:1]
        assert torch.equal(learned, model.latents(BATCH)[0][:1])
        model.posteriors = None
        expected, _ = model.latents(BATCH | {"image": batch["hint"]})
        torch.testing.assert_close(hint, expected[:1])


class TestScale:
    """``scale_by_std`` is for models that start from nothing."""

    def begin(self, model):
        model.on_train_batch_start(BATCH, 0)
        return model.scale_factor.item()

    def test_a_new_model_gets_latents_of_deviation_one(self):
        model = toy(scale_by_std=True, scale_factor=0.5)
        scale = self.begin(model)
        assert scale != 0.5
        assert model.latents(BATCH)[0].std().item() == pytest.approx(1, abs=1e-4)

    def test_weights_that_were_loaded_keep_their_scale(self, tmp_path):
        model = toy(scale_by_std=True)
        other = toy(scale_by_std=True, scale_factor=0.25)
        torch.save(other.state_dict(), tmp_path / "whole.ckpt")
        model.init_from_ckpt(str(tmp_path / "whole.ckpt"))
        assert self.begin(model) == 0.25
        built = toy(scale_by_std=True, ckpt_path=str(tmp_path / "whole.ckpt"))
        assert self.begin(built) == 0.25

    def test_a_first_stage_alone_is_no_start(self, tmp_path):
        first = toy().first_stage_model.state_dict()
        torch.save(first, tmp_path / "first.ckpt")
        model = toy(scale_by_std=True, first_stage_ckpt=str(tmp_path / "first.ckpt"))
        assert self.begin(model) != 0.5

    def test_words_are_learned_at_the_scale_of_the_network(self):
        model = toy(scale_by_std=True)
        model.learn([LearnableWord("<teddy>", "bear")])
        assert self.begin(model) == 0.5


class TestPreviews:
    def test_pictures_of_any_shape(self, model):
        batch = {"image": torch.zeros(2, 16, 32, 3), "caption": ["a bear", "a skateboard"]}
        logged = model.log_images(batch, N=2, ddim_steps=2)
        for name in ("inputs", "reconstruction", "samples"):
            assert logged[name].shape == (2, 3, 16, 32)

    def test_classes_in_a_batch_of_more_than_are_shown(self):
        model, images = toy(**CLASSES), BATCH["image"]
        batch = {"image": images, "class_label": torch.tensor([3, 1])}
        shown = model.log_images(batch, N=1, ddim_steps=2)["samples"]
        assert shown.shape == (1, 3, 16, 16)
        first = {"image": images[:1], "class_label": torch.tensor([3])}
        torch.testing.assert_close(model.log_images(first, N=1, ddim_steps=2)["samples"], shown)
        last = {"image": images[:1], "class_label": torch.tensor([1])}
        others = model.log_images(last, N=1, ddim_steps=2)["samples"]
        assert not torch.allclose(others, shown, atol=1e-3)


class TestSample:
    """The public signature, by name and by position."""

    def test_the_arguments_are_the_public_ones(self):
        names = list(inspect.signature(LatentDiffusion.sample).parameters)
        assert names == [
            "self", "cond", "batch_size", "return_intermediates", "x_T", "verbose", "timesteps",
            "quantize_denoised", "mask", "x0", "shape", "kwargs",
        ]  # fmt: skip

    def test_all_timesteps_from_given_noise(self, model):
        cond, x_T = model.get_learned_conditioning(["a bear"] * 2), torch.randn(2, 4, 8, 16)
        torch.manual_seed(3)
        latents, on_the_way = model.sample(cond, 2, True, x_T, False)
        torch.manual_seed(3)
        expected, _ = sample_ddpm(model, 2, (4, 8, 16), cond, x_T=x_T, verbose=False)
        assert torch.equal(latents, expected)
        assert torch.equal(on_the_way[0], x_T)
        assert torch.equal(on_the_way[-1], latents)
        assert len(on_the_way) == 1 + 1 + 12 // 4, "the noise, the first step, every fourth"

    def test_shape_and_number_of_timesteps(self, model):
        cond, times = model.get_learned_conditioning(["a bear"] * 3), []
        apply = model.apply_model
        model.apply_model = lambda x, t, c: (times.append(t[0].item()), apply(x, t, c))[1]
        latents = model.sample(cond=cond, shape=(3, 4, 8, 4), timesteps=5, verbose=False)
        assert latents.shape == (3, 4, 8, 4)
        assert times == [4, 3, 2, 1, 0]
        assert model.sample(cond, batch_size=3, verbose=False).shape == (3, 4, 8, 8)

    def test_what_the_mask_covers_stays(self, model):
        cond, known = model.get_learned_conditioning(["a bear"]), torch.randn(1, 4, 8, 8)
        mask = torch.zeros(1, 1, 8, 8)
        mask[..., :4] = 1
        torch.manual_seed(0)
        kept = model.sample(cond, 1, mask=mask, x0=known, verbose=False)
        torch.manual_seed(0)
        free = model.sample(cond, 1, verbose=False)
        gaps = [(latents - known)[..., :4].abs().mean() for latents in (kept, free)]
        assert gaps[0] < gaps[1]

    def test_starts_are_quantised_where_there_is_a_codebook(self, model):
        cond = model.get_learned_conditioning(["a bear"])
        with pytest.raises(ValueError, match=r"quantize_denoised.*codebook"):
            model.sample(cond, 1, quantize_denoised=True, verbose=False)
        stage = copy.deepcopy(model.first_stage_model)
        stage.quantize = lambda x: (x.round(), None, None)
        model.first_stage_model = stage
        latents = model.sample(cond, 1, quantize_denoised=True, verbose=False)
        assert torch.equal(latents, latents.round()), "the last step lands on its start"
