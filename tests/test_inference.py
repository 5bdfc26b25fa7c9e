"""Load a model with its words and sample: what the scripts are made of, on the toy model."""

import pytest
import torch
from omegaconf import OmegaConf

from ldm.checkpoint import read_state_dict, save_torch
from ldm.editing import ExciteOptions
from ldm.inference import (
    SAMPLERS,
    SamplingOptions,
    check_prompts,
    context_width,
    latent_shape,
    load_model,
    load_model_from_config,
    load_words,
    read_model_config,
    rooted,
    sample_images,
    sample_latents,
)
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.prompts.sentence import LearnableWord
from tests.training.toy import METHOD, write_toy

QUICK = SamplingOptions(steps=3, scale=2.0)


def load_model_of_few_steps(model):
    """The same network over a schedule of 12 timesteps, all of which are visited."""
    model.register_schedule(timesteps=12, linear_start=0.07, linear_end=0.5)
    return model


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def model(toy):
    return load_model(toy.weights, toy.backbone)


@pytest.fixture
def words(model, tmp_path):
    """Files of learned words, one with one vector and one with two."""
    files = []
    for number, word in enumerate([LearnableWord("<cat>"), LearnableWord("<x>", "random", 2)]):
        manager = EmbeddingManager(model.cond_stage_model, words=[word])
        for vectors in manager.embedding_parameters():
            torch.nn.init.normal_(vectors)
        files.append(tmp_path / f"{number}.pt")
        manager.save(files[-1])
    return files


class TestLoading:
    def test_averaged_weights_are_used_where_the_configuration_says_so(self, toy, tmp_path):
        config = OmegaConf.load(toy.backbone)
        config.backbone.model.params.use_ema = True
        OmegaConf.save(config, tmp_path / "config.yaml")
        raw = read_state_dict(toy.weights)
        torch.save({"state_dict": raw}, tmp_path / "raw.ckpt")
        model = load_model(tmp_path / "raw.ckpt", tmp_path / "config.yaml")
        state = model.state_dict()
        assert state.keys() - raw.keys() >= {"model_ema.decay"}
        name = "model.diffusion_model.out.2.weight"
        assert torch.equal(state[name], raw[name]), "not averages that nothing filled"
        state["model_ema.diffusion_modelout2weight"] = raw[name] + 1
        torch.save({"state_dict": state}, tmp_path / "averaged.ckpt")
        found = load_model(tmp_path / "averaged.ckpt", tmp_path / "config.yaml").state_dict()
        torch.testing.assert_close(found[name], raw[name] + 1)

    def test_everything_is_frozen_and_in_evaluation_mode(self, model):
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(m.training for m in model.modules())

    def test_the_configuration_of_a_run(self, toy, tmp_path):
        merged = OmegaConf.merge(METHOD, OmegaConf.load(toy.backbone))
        OmegaConf.save(merged, tmp_path / "run.yaml")
        config = read_model_config(tmp_path / "run.yaml")
        assert config.target.endswith("MCPL")
        assert config.params.mask_resolution == [8, 4], "references are followed"
        assert load_model(toy.weights, tmp_path / "run.yaml").mask_resolution == (8, 4)

    def test_a_method_that_names_its_backbone(self, tmp_path):
        (tmp_path / "method.yaml").write_text("backbone: playroom\nmodel: {target: a.B}\n")
        config = read_model_config(tmp_path / "method.yaml")
        assert config.target == "a.B"
        assert config.params.unet_config.target.endswith("UNetModel")

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("data: {}", "describes no model"),
            ("model: [", "not valid YAML"),
            (None, "not exist"),
            ("model:", r"a\.yaml: 'model' is None"),
            ("model: x", r"a\.yaml: 'model' is 'x'"),
            ("model: {target: a.B}", r"a\.yaml: .*no mapping 'params'.*has \['target'\]"),
            ("model: {target: a.B, params: 3}", r"a\.yaml: .*no mapping 'params'"),
        ],
    )
    def test_files_that_are_no_configuration(self, content, expected, tmp_path):
        if content is not None:
            (tmp_path / "a.yaml").write_text(content)
        with pytest.raises(ValueError, match=expected):
            read_model_config(tmp_path / "a.yaml")

    def test_a_width_that_no_known_configuration_has(self, toy):
        with pytest.raises(ValueError, match=r"32 wide.*--config"):
            load_model(toy.weights)

    def test_a_configuration_that_does_not_fit(self, toy):
        with pytest.raises(ValueError, match="another architecture"):
            load_model(toy.weights, "configs/backbones/playroom.yaml")

    def test_a_configuration_without_parameters(self, toy):
        config = OmegaConf.create({"target": "ldm.models.diffusion.ddpm.LatentDiffusion"})
        with pytest.raises(ValueError, match=r"model\.params do not fit .*LatentDiffusion"):
            load_model_from_config(config, toy.weights)

    def test_a_misspelt_parameter(self, toy, tmp_path):
        config = OmegaConf.load(toy.backbone)
        config.backbone.model.params.chanels = 4
        OmegaConf.save(config, tmp_path / "a.yaml")
        with pytest.raises(ValueError, match=r"model\.params.*chanels"):
            load_model(toy.weights, tmp_path / "a.yaml")

    def test_files_are_looked_for_in_the_project_too(self, repo, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert rooted("configs/mcpl.yaml") == repo / "configs/mcpl.yaml"
        (tmp_path / "configs").mkdir()
        (tmp_path / "configs/mcpl.yaml").touch()
        assert rooted("configs/mcpl.yaml").resolve() == tmp_path / "configs/mcpl.yaml"

    def test_the_width_is_read_from_the_attention(self):
        key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
        assert context_width({key: torch.zeros(8, 5)}) == 5
        assert context_width({key.replace("attn2", "attn1"): torch.zeros(8, 5)}) is None


class TestWords:
    def test_several_files(self, model, words):
        assert load_words(model, words) == ["<cat>", "<x>"]
        assert {w: token.vectors for w, token in model.embedding_manager.words.items()} == {
            "<cat>": 1, "<x>": 2,
        }  # fmt: skip

    def test_they_have_their_meaning(self, model, words):
        before = model.get_learned_conditioning(["a photo of a <cat>"])
        load_words(model, words)
        after = model.get_learned_conditioning(["a photo of a <cat>"])
        assert not torch.allclose(before, after)
        plain = model.get_learned_conditioning(["a photo of a bear"])
        model.embedding_manager = None
        assert torch.equal(plain, model.get_learned_conditioning(["a photo of a bear"]))

    def test_a_name_without_known_letters_says_nothing(self, model, tmp_path, caplog):
        save_torch({"\u2603": torch.ones(1, 32)}, tmp_path / "snow.pt")
        assert load_words(model, [tmp_path / "snow.pt"]) == ["\u2603"]
        assert "vocabulary" not in caplog.text

    def test_one_word_in_two_files(self, model, words):
        with pytest.raises(ValueError, match=r"<cat>.*0\.pt.*--rename"):
            load_words(model, [words[0], words[0]])

    def test_a_clash_is_renamed(self, model, words):
        renames = {(str(words[0]), "<cat>"): "<tom>"}
        assert load_words(model, words, renames) == ["<tom>", "<x>"]
        with pytest.raises(ValueError, match=r"no word <dog>.*<cat>"):
            load_words(model, words, {(None, "<dog>"): "<tom>"})

    def test_words_of_another_width(self, model, tmp_path):
        save_torch({"<cat>": torch.ones(1, 768)}, tmp_path / "sd.pt")
        with pytest.raises(ValueError, match=r"768 wide.*32.*stable-diffusion/v1-inference"):
            load_words(model, [tmp_path / "sd.pt"])

    def test_prompts_with_words_that_are_not_loaded(self):
        check_prompts(["a <cat>", "no word at all, but 1 < 2"], ["<cat>"])
        with pytest.raises(ValueError, match=r"<cta>.*did you mean <cat>"):
            check_prompts(["a <cat>", "a <cta>"], ["<cat>", "<dog>"])
        with pytest.raises(ValueError, match="no learned words are loaded"):
            check_prompts(["a <cat>"], [])


class TestSampling:
    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_a_picture_does_not_depend_on_its_batch(self, model, sampler):
        options = SamplingOptions(sampler=sampler, steps=4, scale=2.0, seed=5,
                                  eta=0.5 if sampler == "ddim" else 0.0)  # fmt: skip
        prompts = ["a photo of a bear"] * 3
        together = sample_latents(model, prompts, options, progress=False)
        last = sample_latents(model, prompts[:1], options, first=2, progress=False)
        torch.testing.assert_close(last, together[2:], rtol=1e-3, atol=1e-4)
        assert not torch.allclose(together[0], together[1], atol=1e-2)

    def test_same_seed_same_latents(self, model):
        first = sample_latents(model, ["a bear"], QUICK, progress=False)
        torch.manual_seed(12345)
        assert torch.equal(sample_latents(model, ["a bear"], QUICK, progress=False), first)
        other = SamplingOptions(steps=3, scale=2.0, seed=43)
        assert not torch.equal(sample_latents(model, ["a bear"], other, progress=False), first)

    def test_one_start_for_all(self, model):
        fixed = SamplingOptions(steps=3, fixed_code=1)
        latents = sample_latents(model, ["a bear", "a bear"], fixed, progress=False)
        torch.testing.assert_close(latents[0], latents[1], rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("sampler", [*SAMPLERS, "ancestral"])
    def test_a_picture_to_begin_with(self, model, sampler):
        """The less strength, the nearer to it; at full strength another picture."""
        if sampler == "ancestral":
            model = load_model_of_few_steps(model)
        start = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
        gaps = []
        for strength in (0.2, 0.6, 1.0):
            options = SamplingOptions(sampler=sampler, steps=5, scale=1.0, strength=strength)
            latents = sample_latents(model, ["a bear"] * 2, options, start=start, progress=False)
            assert latents.shape == (2, 4, 8, 8)
            gaps.append((latents - start).square().mean().item())
        assert gaps[0] < gaps[1]
        assert gaps[0] < gaps[2]

    def test_a_picture_to_begin_with_is_encoded_and_decoded_as_in_the_public_script(self, model):
        start = torch.randn(1, 4, 8, 8)
        options = SamplingOptions(steps=10, scale=2.0, strength=0.5, seed=3)
        found = sample_latents(model, ["a bear"], options, start=start, progress=False)
        sampler = SAMPLERS["ddim"](model)
        sampler.make_schedule(10, ddim_eta=0.0, verbose=False)
        noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3))[None]
        noisy = sampler.stochastic_encode(start, torch.tensor([5]), noise=noise)
        cond, uncond = (model.get_learned_conditioning([text]) for text in ("a bear", ""))
        expected = sampler.decode(
            noisy, cond, 5, unconditional_guidance_scale=2.0, unconditional_conditioning=uncond
        )
        assert torch.equal(found, expected)

    def test_every_picture_has_a_seed_of_its_own(self, model):
        together = sample_latents(model, ["a bear"] * 2, QUICK, progress=False)
        own = SamplingOptions(steps=3, scale=2.0, seed=QUICK.seed_of(1))
        alone = sample_latents(model, ["a bear"], own, progress=False)
        torch.testing.assert_close(alone, together[1:], rtol=1e-3, atol=1e-4)
        fixed = SamplingOptions(fixed_code=3)
        assert [fixed.seed_of(number) for number in range(5)] == [42, 43, 44, 42, 43]

    def test_ancestral_sampling_cannot_be_excited(self, model):
        options = SamplingOptions(sampler="ancestral")
        with pytest.raises(ValueError, match=r"Attend-and-Excite.*ddim"):
            sample_latents(model, ["a bear"], options, excite=ExciteOptions(["bear"]))

    def test_pictures(self, model):
        options = SamplingOptions(steps=1, height=16, width=32)
        batches = list(sample_images(model, "a bear", options, count=2, batches=2, progress=False))
        assert [batch.shape for batch in batches] == [(2, 3, 16, 32)] * 2
        assert all(batch.abs().max() <= 1 for batch in batches)

    def test_sizes(self, model):
        assert latent_shape(model, SamplingOptions()) == [4, 8, 8]
        assert latent_shape(model, SamplingOptions(height=32)) == [4, 16, 8]
        for wrong in (15, 0, -16, 18):
            with pytest.raises(ValueError, match=f"--W {wrong}: .*multiple of 4"):
                latent_shape(model, SamplingOptions(width=wrong))

    @pytest.mark.parametrize("wrong", [{"steps": 0}, {"sampler": "magic"}, {"strength": 1.5}])
    def test_options_out_of_range(self, wrong):
        with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
            SamplingOptions(**wrong)


def test_full_strength_is_all_visited_steps_where_some_coincide(toy):
    """50 karras timesteps of the usual schedule are 49: two of them round to one."""
    model = load_model(toy.weights, toy.backbone)
    sampler = SAMPLERS["dpm"](model)
    sampler.make_schedule(50, verbose=False)
    assert sampler.steps == 49
    start = torch.randn(1, 4, 8, 8)
    options = SamplingOptions(sampler="dpm", steps=50, scale=1.0, strength=1.0, seed=3)
    found = sample_latents(model, ["a bear"], options, start=start, progress=False)
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3))[None]
    noisy = sampler.stochastic_encode(start, 49, noise=noise)
    cond = model.get_learned_conditioning(["a bear"])
    assert torch.equal(found, sampler.decode(noisy, cond, 49))


@pytest.mark.parametrize("sampler", ["ddim", "plms"])
def test_uniform_steps_count_as_released_where_there_are_more_than_asked_for(toy, sampler):
    model = load_model(toy.weights, toy.backbone)
    sampler_ = SAMPLERS[sampler](model)
    sampler_.make_schedule(7, verbose=False)
    assert sampler_.steps == 8
    start = torch.randn(1, 4, 8, 8)
    options = SamplingOptions(sampler=sampler, steps=7, scale=1.0, strength=1.0, seed=3)
    found = sample_latents(model, ["a bear"], options, start=start, progress=False)
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3))[None]
    noisy = sampler_.stochastic_encode(start, 7, noise=noise)
    cond = model.get_learned_conditioning(["a bear"])
    assert torch.equal(found, sampler_.decode(noisy, cond, 7))
