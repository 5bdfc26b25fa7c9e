"""MCPL as a whole: the released training step, gradients in every mode, resuming, the flags."""

import copy
from collections.abc import Sequence

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import Dataset

from ldm.callbacks import WholeSteps
from ldm.concepts.contrastive import PromptContrast
from ldm.concepts.masks import AttentionMask
from ldm.concepts.objective import TrainStep
from ldm.concepts.quirks import ReleasedContrast, ReleasedMask
from ldm.data.module import DataModuleFromConfig
from ldm.models.diffusion.mcpl import MCPL
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.prompts.sentence import apply_strategy, parse_sentence
from ldm.prompts.spans import Caption, WordSpan, find_words
from ldm.prompts.templates import fill as fill_template
from ldm.training.cli import parse
from ldm.training.config import load_config
from tests.golden import fill, golden, weight
from tests.networks import UNET

STEP = golden("mcpl_train_step")
TOY = {
    "timesteps": 20,
    "image_size": 8,
    "channels": 4,
    "cond_stage_key": "caption",
    "conditioning_key": "crossattn",
    "use_ema": False,
    "cond_stage_trainable": True,
    "unet_config": {
        "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
        "params": {**UNET, "context_dim": 16},
    },
    "first_stage_config": {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {
            "embed_dim": 4,
            "ddconfig": {
                "double_z": True, "z_channels": 4, "resolution": 16, "in_channels": 3, "out_ch": 3,
                "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [],
                "dropout": 0.0,
            },
            "lossconfig": {"target": "torch.nn.Identity"},
        },
    },
}  # fmt: skip
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a the photo of rendering on brown rolling bear board"
SENTENCE = "a [brown] <teddy:bear> on a [rolling] <board|2>"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(WORDS.split()))
    return path


def toy(vocabulary, **options) -> MCPL:
    """A whole model at the smallest size, with the recipe's weights."""
    text = {
        "target": "ldm.modules.encoders.modules.BERTEmbedder",
        "params": {"n_embed": 16, "n_layer": 1, "max_seq_len": 16,
                   "vocab_size": len(WORDS.split()), "vocab_file": str(vocabulary)},
    }  # fmt: skip
    model = MCPL(**copy.deepcopy(TOY), cond_stage_config=text, mask_resolution=[8], **options)
    for part in (model.model, model.first_stage_model, model.cond_stage_model):
        fill(part)
    model.learning_rate = 1e-2
    return model


# -- the released training step ------------------------------------------------------------------


@pytest.fixture(scope="module")
def released(bert_vocab):
    """The model of the recorded training step, before it is told which terms to have."""
    config = copy.deepcopy(STEP.config["latent_diffusion"])
    config.pop("personalization_config")
    config["cond_stage_config"]["params"]["vocab_file"] = bert_vocab
    model = MCPL(**config, reference_quirks=True)
    fill(model.model.diffusion_model)
    fill(model.cond_stage_model)
    return model


def adopt(model: MCPL, case: dict) -> MCPL:
    """`model` with the words and the terms of a recorded case."""
    options = case["personalization"]
    lists = ("attn_words", "presudo_words", "presudo_words_softmax", "presudo_words_infonce")
    listed = {key: [word for word in options[key] if word] for key in lists}
    bind = [word for word in options["adj_aug_infonce"] if word]
    infonce, softmax = listed["presudo_words_infonce"], listed["presudo_words_softmax"]
    model.quirk_softmax_words = tuple(softmax)
    model.attention_mask = ReleasedMask(
        kind=options["attn_mask_type"], words=listed["attn_words"], softmax_words=softmax
    )
    model.prompt_contrast = ReleasedContrast(
        words=infonce,
        temperature=options["infonce_temperature"],
        weight=options["infonce_scale"] if infonce else 0.0,
        bind_adjectives=bool(bind),
    )
    manager = EmbeddingManager(model.cond_stage_model, presudo_words=listed["presudo_words"])
    model._hold(manager)
    with torch.no_grad():
        for word, vectors in manager.string_to_param_dict.items():
            vectors.copy_(weight(f"embedding.{word}", tuple(vectors.shape)))
        for name, value in model.model.diffusion_model.named_parameters():
            if name.endswith("attn2.to_k.weight"):
                value.copy_(weight(name, tuple(value.shape)) * case["attn2_to_k_factor"])
    return model.eval()


def expanded(words: Sequence[str]) -> list[Caption]:
    """The released captions: every occurrence of a word is learned, the template's "a" too."""
    captions = []
    for prompt in STEP.config["prompts_before_expansion"]:
        text = prompt.replace("*", STEP.config["placeholder_string"])
        bound = [
            WordSpan(span.start, span.end, {"brown": "@", "rolling": "*"}[span.word])
            for span in find_words(text, ["brown", "rolling"])
        ]
        captions.append(Caption(text, find_words(text, words), tuple(bound)))
    return captions


QUICK = {"soft_cl", "hard_cl_sharp"}
CASES = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in STEP.config["cases"]
]


@pytest.mark.parametrize("name", CASES)
def test_released_training_step_golden(released, name):
    case = STEP.config["cases"][name]
    model = adopt(released, case)
    manager = model.embedding_manager
    assert list(manager.string_to_param_dict) == case["words"]
    captions = expanded(case["words"])
    tokens = model.cond_stage_model.tokenize(captions, manager.words)
    context = model.cond_stage_model.encode_tokens(tokens.ids, manager)
    if name == "skip_cl":
        STEP.check("cond", context[:, :24])
    seen = {}
    predict = model.predict

    def spy(*arguments, **details):
        prediction, seen["attention"] = predict(*arguments, **details)
        return prediction, seen["attention"]

    model.predict = spy
    try:
        loss, parts = model.p_losses(
            STEP["x_start"], context, STEP["t"], STEP["noise"],
            captions=captions, tokens=tokens, embeddings=manager,
        )  # fmt: skip
    finally:
        del model.predict
    gradients = torch.autograd.grad(loss, list(manager.embedding_parameters()))
    STEP.check(f"{name}.loss", loss)
    STEP.check(f"{name}.loss_simple", parts["val/loss_simple"])
    STEP.check(f"{name}.loss_vlb", parts["val/loss_vlb"])
    STEP.check(f"{name}.grads", torch.cat(gradients))
    if f"{name}.mask" in STEP.tensors:
        attention = seen["attention"]
        x, t = STEP["x_start"], STEP["t"]
        mask = model.attention_mask(TrainStep(x, x, t, model.schedule, attention=attention))
        STEP.check(f"{name}.mask", mask)
        first = attention.stored["down"][0].mean(0)
        STEP.check(f"{name}.down_cross0_mean", first[::32, :24])
        for place in ("down", "mid", "up"):
            assert len(attention.stored[place]) == case["n_stored"][f"{place}_cross"]


def test_quirks_are_off_by_default(vocabulary):
    options = {"mask": {}, "contrast": {}, "quirk_softmax_words": ["<teddy>"]}
    model = toy(vocabulary, **options)
    assert not model.reference_quirks
    assert type(model.attention_mask) is AttentionMask
    assert type(model.prompt_contrast) is PromptContrast
    assert model.attention_mask.threshold == 0.5
    quirky = toy(vocabulary, **options, reference_quirks=True)
    assert type(quirky.attention_mask) is ReleasedMask
    assert type(quirky.prompt_contrast) is ReleasedContrast
    assert quirky.attention_mask.threshold == 0.3
    assert quirky.attention_mask.softmax_words == ("<teddy>",)


# -- every mode ----------------------------------------------------------------------------------


def captions_of(mode: str):
    """Sentences of two images, and their learnable words, for a strategy."""
    sentence = parse_sentence(SENTENCE)
    if mode != "diverse":
        sentence = apply_strategy(sentence, mode)
        sentences = [sentence, sentence]
    else:
        sentences = [
            parse_sentence("a [brown] <teddy:bear> on a <board|2>"),
            parse_sentence("a <board|2> of a [brown] <teddy:bear>"),
        ]
    words = {word.name: word for sentence in sentences for word in sentence.words}
    templates = ("a photo of {}", "the rendering of {}")
    captions = [fill_template(t, s.caption) for t, s in zip(templates, sentences, strict=True)]
    return captions, list(words.values())


@pytest.mark.parametrize("mode", ["one", "all", "diverse"])
def test_the_contrast_reaches_every_word_in_every_mode(vocabulary, mode):
    captions, words = captions_of(mode)
    model = toy(vocabulary, contrast={})
    model.learn(words)
    manager = model.embedding_manager
    tokens = model.cond_stage_model.tokenize(captions, manager.words)
    context = model.cond_stage_model.encode_tokens(tokens.ids, manager)
    x = torch.randn(2, 4, 8, 8)
    details = {"captions": captions, "tokens": tokens, "embeddings": manager}
    t = torch.tensor([3, 4])
    _, parts = model.p_losses(x, context, t, **details)
    assert parts["train/loss_contrast"] > 0
    step = TrainStep(x, x, t, model.schedule, context, **details)
    value = model.prompt_contrast(step).loss.sum()
    gradients = torch.autograd.grad(value, list(manager.embedding_parameters()))
    assert len(gradients) == len(words)
    assert all(gradient.abs().amax(1).gt(0).all() for gradient in gradients)


class Pictures(Dataset):
    """Four noise pictures under the sentence, drawn by step."""

    keyed, cacheable = True, False

    def __len__(self) -> int:
        return 4

    def __getitem__(self, key):
        image = (key.step + key.slot) % 3
        flip = key.step % 2 == 1
        pixels = torch.randn(16, 16, 3, generator=torch.Generator().manual_seed(image))
        caption = captions_of("one")[0][key.slot % 2]
        return {
            "image": pixels.flip(1) if flip else pixels, "caption": caption, "image_id": image,
            "flip": flip, "step": key.step, "slot": key.slot, "run": key.run,
        }  # fmt: skip


def trained(vocabulary, folder, steps, resume=None, callbacks=(), **options) -> MCPL:
    torch.manual_seed(1)
    model = toy(vocabulary, mask={"kind": "soft", "average": "running"}, contrast={"weight": 0.1})
    model.learn(captions_of("one")[1], progressive_words=True)
    data = DataModuleFromConfig(2, train={"target": f"{__name__}.Pictures"}, num_workers=0)
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=bool(callbacks),
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(model, data, ckpt_path=resume, weights_only=False)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return model


def assert_same(mine: MCPL, theirs: MCPL) -> None:
    """Bit for bit the same words, counts and maps."""
    states = (dict(model.embedding_manager.state_dict()) for model in (mine, theirs))
    torch.testing.assert_close(*states, rtol=0, atol=0)
    ((mine_,), (theirs_,)) = (m.attention_mask.state_dict()["tables"] for m in (mine, theirs))
    assert torch.equal(mine_.pop("sums"), theirs_.pop("sums"))
    assert mine_ == theirs_


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(vocabulary, tmp_path):
    through = trained(vocabulary, tmp_path, 4)
    expected = torch.load(tmp_path / "4.ckpt", weights_only=False)
    trained(vocabulary, tmp_path, 2)
    assert_same(trained(vocabulary, tmp_path, 4, resume=tmp_path / "2.ckpt"), through)
    assert max(through.attention_mask.state_dict()["tables"][0]["counts"]) > 1
    assert {key.split(".")[0] for key in expected["state_dict"]} == {"embedding_manager"}


def test_words_learned_next_see_nothing_of_the_pictures_before(vocabulary, tmp_path):
    model = trained(vocabulary, tmp_path, 2)
    model.cache_posteriors()
    assert model.attention_mask.state_dict()["tables"]
    model.learn(captions_of("one")[1])
    assert not model.attention_mask.state_dict()["tables"]
    assert model.posteriors is None


class Outage(pl.Callback):
    """Fails once, in a hook of one batch."""

    def __init__(self, hook: str, batch: int) -> None:
        def fail(trainer, *_):
            if trainer.fit_loop.epoch_loop.batch_progress.total.ready == batch + 1:
                raise RuntimeError("outage")

        setattr(self, hook, fail)


def last_words(folder) -> pl.callbacks.ModelCheckpoint:
    """What keeps ``last.ckpt`` when a run fails, and at no other time."""
    return pl.callbacks.ModelCheckpoint(
        folder, save_last=True, save_on_exception=True, every_n_train_steps=100
    )


@pytest.mark.parametrize("hook", ["on_before_backward", "on_before_optimizer_step"])
def test_a_run_that_failed_in_a_step_continues_as_if_it_had_not(vocabulary, tmp_path, hook):
    through = trained(vocabulary, tmp_path, 4)
    with pytest.raises(RuntimeError, match="outage"):
        trained(vocabulary, tmp_path, 4, callbacks=[Outage(hook, 2), last_words(tmp_path)])
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert saved["DataModuleFromConfig"] == {"next_step": 2}
    assert sum(saved["attention_mask"]["tables"][0]["counts"]) == 2 * 2 * 4
    assert_same(trained(vocabulary, tmp_path, 4, resume=tmp_path / "last.ckpt"), through)


@pytest.mark.parametrize("batch", [3, 4, 5])
def test_a_run_that_failed_within_a_group_of_batches_learns_from_the_group_again(
    vocabulary, tmp_path, batch
):
    grouped = {"accumulate_grad_batches": 3}
    through = trained(vocabulary, tmp_path, 3, **grouped)
    callbacks = [Outage("on_before_backward", batch), last_words(tmp_path)]
    with pytest.raises(RuntimeError, match="outage"):
        trained(vocabulary, tmp_path, 3, callbacks=callbacks, **grouped)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert saved["DataModuleFromConfig"] == {"next_step": 3}
    assert sum(saved["attention_mask"]["tables"][0]["counts"]) == 3 * 2 * 4
    assert saved["state_dict"]["embedding_manager.progressive_counter"] == 3 * 2
    again = {"resume": tmp_path / "last.ckpt", "callbacks": [WholeSteps()]}
    assert_same(trained(vocabulary, tmp_path, 3, **again, **grouped), through)


def test_several_resolutions_and_rectangular_latents_make_masks(vocabulary):
    captions, words = captions_of("one")
    model = toy(vocabulary, mask={}, contrast={})
    model.mask_resolution = (8, 4)
    model.learn(words)
    tokens = model.cond_stage_model.tokenize(captions, model.embedding_manager.words)
    context = model.cond_stage_model.encode_tokens(tokens.ids, model.embedding_manager)
    x, t = torch.randn(2, 4, 8, 6), torch.tensor([3, 4])
    details = {"captions": captions, "tokens": tokens, "embeddings": model.embedding_manager}
    prediction, attention = model.predict(x, t, context, **details)
    assert prediction.shape == x.shape
    assert set(attention.sums) == {(8, 6), (4, 3)}
    assert attention.words == ["<teddy>", "<board>", "[<teddy>]", "[<board>]"]
    loss, parts = model.p_losses(x, context, t, **details)
    assert parts["train/loss_simple"] > 0
    assert loss.isfinite()


# -- the flags -----------------------------------------------------------------------------------


BASE = """
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params: {}
data: {target: x, params: {}}
"""
RELEASED = ["--placeholder_string", "a brown @ on a rolling *", "--presudo_words", "@,*"]
CONTRAST = ["--presudo_words_infonce", "@,*", "--adj_aug_infonce", "brown,rolling"]
MASK = ["--attn_words", "brown,rolling,@,*"]


def configured(tmp_path, *arguments, base=BASE):
    path = tmp_path / "base.yaml"
    path.write_text(base)
    return load_config(parse(["--base", str(path), *arguments])).model


def test_released_flags_choose_the_terms(tmp_path):
    params = configured(tmp_path, *RELEASED, *CONTRAST, *MASK).params
    assert params.mask == {"kind": "hard", "words": ["brown", "rolling", "@", "*"]}
    assert params.contrast == {
        "words": ["@", "*"], "temperature": 0.3, "weight": 0.00075, "bind_adjectives": True,
    }  # fmt: skip
    model = configured(tmp_path, *RELEASED, *CONTRAST, *MASK, "--attn_mask_type", "skip")
    assert model.target == "ldm.models.diffusion.mcpl.MCPL"
    assert "mask" not in model.params
    assert (model.params.contrast.temperature, model.params.contrast.weight) == (0.2, 0.0005)
    plain = configured(tmp_path, *RELEASED)
    assert plain.target.endswith("LatentDiffusion")
    assert "contrast" not in plain.params


MCPL_BASE = BASE.replace("ddpm.LatentDiffusion", "mcpl.MCPL").replace(
    "{}\ndata",
    "{mask: {kind: hard, average: running}, contrast: {temperature: 0.4, weight: 0.1}}\ndata",
)


def test_flags_change_what_the_configuration_says_and_nothing_else(tmp_path):
    params = configured(tmp_path, *RELEASED, *CONTRAST, *MASK, base=MCPL_BASE).params
    assert params.mask.average == "running"
    assert (params.contrast.temperature, params.contrast.weight) == (0.4, 0.1)
    given = ("--infonce_temperature", "0.2", "--attn_mask_type", "soft")
    params = configured(tmp_path, *RELEASED, *CONTRAST, *given, base=MCPL_BASE).params
    assert (params.contrast.temperature, params.mask.kind) == (0.2, "soft")
    params = configured(tmp_path, "--attn_mask_type", "skip", base=MCPL_BASE).params
    assert params.mask.kind == "skip"


def test_relate_with_quirks_is_told_to_the_released_contrast(tmp_path):
    relate = ["--placeholder_string", "a brown @ RELATE a rolling *", "--presudo_words", "@,*"]
    quirks = "model.params.reference_quirks=true"
    assert configured(tmp_path, *relate, *CONTRAST, quirks).params.contrast.relate
    assert "relate" not in configured(tmp_path, *relate, *CONTRAST).params.contrast
    assert "relate" not in configured(tmp_path, *RELEASED, *CONTRAST, quirks).params.contrast
