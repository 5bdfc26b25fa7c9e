"""Runs that share a network in one batch are the same runs as alone, whatever they learn."""

import copy
import json

import pytest
import pytorch_lightning as pl
import torch

from ldm.data.module import DataModuleFromConfig
from ldm.data.packed import PackedDataset
from ldm.data.personalized import PersonalizedBase
from ldm.data.playroom import PlayroomConcepts
from ldm.data.steps import StepBatchSampler, StepKey, collate
from ldm.models.diffusion.lego import Lego
from ldm.models.diffusion.mcpl import MCPL
from ldm.models.diffusion.packed import PackedRuns, checkpoint_of
from ldm.modules.encoders.text import distinct
from tests.golden import fill
from tests.training.toy import PIXELS, VOCAB, backbone, write_images

BATCH, STEPS = 3, 3
#: Words of one spelling in several runs, several vectors, more or fewer words.
SENTENCES = (
    "a [brown] <teddy:bear> on a <board:skateboard>",
    "a <board:bear|3>",
    "the [brown] <teddy> and a <ball> beside [brown] <board:skateboard|2>",
)
LEGO = {"context": {"weight": 0.3, "lists": "playroom"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("packed")
    for name in ("plain", "told"):
        write_images(root / name, 3)
    rows = [("0.png", SENTENCES[0]), ("1.png", "a <ball> on a <teddy>"), ("2.png", SENTENCES[2])]
    table = "".join(json.dumps({"file_name": n, "text": t}) + "\n" for n, t in rows)
    (root / "told" / "metadata.jsonl").write_text(table)
    return root


@pytest.fixture(scope="module")
def described():
    return backbone(VOCAB, VOCAB)["model"]["params"]


def sets(kind, folder):
    """The data of three runs."""
    if kind == "lego":
        names = ("lego-frozen", "lego-melted", "lego-frozen")
        return [PlayroomConcepts(n, PIXELS, seed=s, folder=folder / f"{n}-{s}")
                for s, n in enumerate(names)]  # fmt: skip
    if kind == "told":
        return [PersonalizedBase(folder / "told", PIXELS, seed=seed) for seed in range(3)]
    strategies = ("all", "one", "all") if kind == "all" else ("one",) * 3
    return [
        PersonalizedBase(folder / "plain", PIXELS, seed=seed, sentence=text, strategy=strategy)
        for seed, (text, strategy) in enumerate(zip(SENTENCES, strategies, strict=True))
    ]


def models(described, data, target=MCPL, **options):
    """A model for each set, around one network with the recipe's weights."""
    network = target(**copy.deepcopy(described), mask_resolution=[8, 4], **options)
    for part in (network.model, network.first_stage_model, network.cond_stage_model):
        fill(part)
    found = []
    for seed, each in enumerate(data):
        own = network.twin()
        own.seed, own.learning_rate = seed, 1e-2
        own.learn(each.words)
        own.cache_posteriors()
        found.append(own.train())
    return found


def step_by_step(module, optimizer, batches):
    """What a module says at every step of a training on `batches`."""
    said = []
    for batch in batches:
        optimizer.zero_grad()
        loss, reports = module.shared_step(batch)
        loss.backward()
        optimizer.step()
        said.append(reports)
    return said


def keys(steps, runs):
    return list(StepBatchSampler(BATCH, max_steps=steps, runs=runs))


def alone(model, data, steps=STEPS):
    batches = [collate([data[key] for key in step]) for step in keys(steps, 1)]
    return step_by_step(model, model.configure_optimizers(), batches)


def packed(runs, data, steps=STEPS):
    together = PackedRuns(runs)
    together.learning_rate = 1e-2
    side_by_side = PackedDataset(data)
    batches = [collate([side_by_side[key] for key in step]) for step in keys(steps, len(runs))]
    return step_by_step(together.train(), together.configure_optimizers(), batches)


def words_of(model):
    return {word: v.detach() for word, v in model.embedding_manager.string_to_param_dict.items()}


MASK = {"kind": "soft", "average": "step"}
CASES = {
    "diffusion loss and anchor": ("one", MCPL, {"embedding_reg_weight": 0.1}),
    "mask of this step": ("one", MCPL, {"mask": {"kind": "hard", "average": "step"}}),
    "running mask": ("one", MCPL, {"mask": {"kind": "hard", "average": "running"}}),
    "soft running mask, named words": (
        "one", MCPL, {"mask": {"kind": "soft", "average": "running", "words": ["<board>", "a"]}},
    ),
    "contrast": ("one", MCPL, {"contrast": {"weight": 1.0, "bind_adjectives": False}}),
    "bound adjectives": ("one", MCPL, {"contrast": {"weight": 1.0}}),
    "all words and all terms": ("all", MCPL, {"mask": MASK, "contrast": {"weight": 1.0}}),
    "a sentence for each image": ("told", MCPL, {"mask": MASK, "contrast": {"weight": 1.0}}),
    "context loss": ("lego", Lego, LEGO),
    "timesteps of another frequency": ("one", Lego, {"timestep_skew": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_packed_run_is_the_run_alone(described, folder, name):
    kind, target, options = CASES[name]
    data = sets(kind, folder)
    apart, together = (models(described, data, target, **options) for _ in range(2))
    said = packed(together, data)
    for run, (own, model) in enumerate(zip(data, apart, strict=True)):
        expected = alone(model, own)
        torch.testing.assert_close([step[run] for step in said], expected)
        torch.testing.assert_close(words_of(together[run]), words_of(model), rtol=0, atol=1e-5)
        assert all(
            (vectors - model.embedding_manager.initial_embeddings[word]).abs().max() > 1e-3
            for word, vectors in words_of(model).items()
        )


def test_a_packed_run_with_the_released_soft_mask_is_the_run_alone(described, folder):
    """The gradient that reaches the words through such a mask is there in a pack, too."""
    larger = copy.deepcopy(described) | {"image_size": 16}  # the released masks read 16x16 maps
    larger["unet_config"]["params"] |= {"image_size": 16, "num_res_blocks": 2}
    data = [PersonalizedBase(folder / "plain", 32, seed=s, sentence=SENTENCES[0]) for s in (0, 1)]
    options = {"mask": {"kind": "soft"}, "reference_quirks": True}
    apart, together = (models(larger, data, **options) for _ in range(2))
    said = packed(together, data, 2)
    for run, (own, model) in enumerate(zip(data, apart, strict=True)):
        expected = alone(model, own, 2)
        torch.testing.assert_close([step[run] for step in said], expected)
        torch.testing.assert_close(words_of(together[run]), words_of(model), rtol=0, atol=1e-5)


def test_checkpoints_have_the_running_maps_of_every_step_that_was_taken(described, folder):
    data = sets("one", folder)[:2]
    runs = models(described, data, mask={"kind": "hard", "average": "running"})
    sources = [DataModuleFromConfig(BATCH, num_workers=0) for _ in data]
    for source, own in zip(sources, data, strict=True):
        source.datasets["train"] = own
    together = PackedRuns(runs)
    together.learning_rate = 1e-2
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(together, DataModuleFromConfig.packed(sources))
    for run in runs:
        ((size, counts),) = run.attention_mask.kept.counts.items()
        assert size == (8, 8)
        (table,) = run.attention_mask.state_dict()["tables"]
        assert table["counts"] == counts
        assert sum(counts) >= 2 * BATCH


def test_one_run_of_a_pack_alone_is_that_run_bit_for_bit(described, folder):
    data = sets("one", folder)[:1]
    (apart,), together = (models(described, data, mask=MASK) for _ in range(2))
    packed(together, data)
    alone(apart, data[0])
    torch.testing.assert_close(words_of(together[0]), words_of(apart), rtol=0, atol=0)


def test_the_order_of_the_runs_does_not_matter(described, folder):
    data, order = sets("one", folder), [2, 0, 1]
    forth, other = (models(described, data, mask=MASK) for _ in range(2))
    packed(forth, data)
    back = [other[i] for i in order]
    packed(back, [data[i] for i in order])
    for run, model in enumerate(forth):
        torch.testing.assert_close(words_of(other[run]), words_of(model), rtol=0, atol=1e-5)


def test_no_run_feels_the_loss_of_another(described, folder):
    data = sets("one", folder)
    together = PackedRuns(models(described, data, mask=MASK, contrast={"weight": 1.0})).train()
    side_by_side = PackedDataset(data)
    parts = together.parts(collate([side_by_side[key] for key in keys(1, 3)[0]]))
    context = together.encode(parts)
    words = [list(run.embedding_manager.embedding_parameters()) for run in together.runs]
    first = parts[0].rows
    gradients = torch.autograd.grad(context[first].sum(), words[0] + words[1], allow_unused=True)
    own, other = gradients[: len(words[0])], gradients[len(words[0]) :]
    assert all(gradient.abs().max() > 0 for gradient in own)
    assert all(gradient is None or gradient.abs().max() == 0 for gradient in other)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_run_by_run(described, folder, algorithm):
    runs = models(described, sets("one", folder)[:2])
    together = PackedRuns(runs)
    for scale, run in zip((1.0, 1000.0), runs, strict=True):
        for vectors in run.embedding_manager.embedding_parameters():
            vectors.grad = torch.full_like(vectors, scale)
    small = [v.grad.clone() for v in runs[0].embedding_manager.embedding_parameters()]
    together.configure_gradient_clipping(None, 100.0, algorithm)
    now = [v.grad for v in runs[0].embedding_manager.embedding_parameters()]
    torch.testing.assert_close(now, small, rtol=0, atol=0)
    big = torch.cat([v.grad for v in runs[1].embedding_manager.embedding_parameters()])
    assert (big.norm() if algorithm == "norm" else big.max()) <= 100.001


def test_the_decay_and_the_schedule_are_those_of_a_run_alone(described, folder):
    schedule = {
        "target": "ldm.lr_scheduler.LambdaLinearScheduler",
        "params": {"warm_up_steps": [4], "cycle_lengths": [100], "f_start": [0.1],
                   "f_max": [1.0], "f_min": [0.5]},
    }  # fmt: skip
    recipe = {"scheduler_config": schedule, "weight_decay": 0.3}
    runs = models(described, sets("one", folder), **recipe)
    together = PackedRuns(runs)
    together.learning_rate = 1e-2
    (packed_,), (described_,) = together.configure_optimizers()
    assert len(packed_.param_groups) == len(runs)
    assert {group["weight_decay"] for group in packed_.param_groups} == {0.3}
    for _ in range(2):
        packed_.step()
        described_["scheduler"].step()
    # What a run takes out of the pack continues where it was.
    checkpoint = {"optimizer_states": [packed_.state_dict()], "active": [0, 1, 2],
                  "lr_schedulers": [described_["scheduler"].state_dict()],
                  "runs": [{"state_dict": {}}] * 3}  # fmt: skip
    own = checkpoint_of(checkpoint, 1)
    (alone_,), (schedule_,) = runs[1].configure_optimizers()
    alone_.load_state_dict(own["optimizer_states"][0])
    schedule_["scheduler"].load_state_dict(own["lr_schedulers"][0])
    for optimizer, scheduler in ((packed_, described_), (alone_, schedule_)):
        optimizer.step()
        scheduler["scheduler"].step()
    assert alone_.param_groups[0]["lr"] == packed_.param_groups[1]["lr"]
    assert 1e-3 < alone_.param_groups[0]["lr"] < 1e-2


def test_runs_that_train_the_network_cannot_share_it(described, folder):
    data = sets("one", folder)[:1]
    runs = models(described, data, unfreeze_model=True)
    with pytest.raises(ValueError, match="unfreeze_model"):
        PackedRuns(runs)


def test_a_twin_shares_the_network_and_nothing_else(described, folder):
    data = sets("one", folder)[:2]
    one, two = models(described, data, mask={"average": "running"})
    assert one.model is two.model
    assert one.cond_stage_model is two.cond_stage_model
    assert one.first_stage_model is two.first_stage_model
    assert one.attention_mask is not two.attention_mask
    assert one.objective is not two.objective
    assert {id(p) for p in one.embedding_manager.parameters()}.isdisjoint(
        id(p) for p in two.embedding_manager.parameters()
    )


def test_a_caption_that_occurs_twice_is_encoded_once(described, folder):
    (data,) = sets("one", folder)[:1]
    (model,) = models(described, [data])
    encoder, manager = model.cond_stage_model, model.embedding_manager
    captions = [data[StepKey(step, 0)]["caption"] for step in (0, 1)]
    ids = encoder.tokenize([captions[i] for i in (1, 0, 1, 1, 0)], manager.words).ids
    rows, index = distinct(ids)
    assert len(rows) == 2
    assert torch.equal(rows[index], ids)
    seen = []
    hook = encoder.transformer.norm.register_forward_hook(lambda _m, x, _y: seen.append(len(x[0])))
    weights = torch.randn(5, *rows.shape[1:], encoder.width)
    found = []
    for encode in (encoder.encode_distinct, encoder.encode_tokens):
        context = encode(ids, manager)
        parameters = list(manager.embedding_parameters())
        found.append((context, torch.autograd.grad((context * weights).sum(), parameters)))
    hook.remove()
    assert seen == [2, 5]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-4)


def test_captions_that_all_differ_keep_their_order():
    ids = torch.tensor([[3, 1], [1, 2], [2, 9]])
    rows, index = distinct(ids)
    assert rows is ids
    assert index.tolist() == [0, 1, 2]
