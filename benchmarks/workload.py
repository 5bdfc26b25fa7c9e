"""What is measured: learning words on real modules, in steps that can be taken apart.

A `Workload` is the run that ``main.py`` would make of the same configuration files. Where there are
no weights they are random, which changes the numbers but not the time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from benchmarks.harness import Clock, switched
from ldm.concepts.masks import AttentionMask
from ldm.data.steps import StepKey, collate
from ldm.inference import ROOT
from ldm.training.cli import parse
from ldm.training.config import load_config
from ldm.training.run import build_data, build_model, concept_sentence
from ldm.util import count_params

#: The pictures: drawn, so that nothing has to be fetched.
PICTURES = "playroom:bear-skateboard"
VOCABULARY = "models/ldm/playroom/vocab.txt"
MCPL = "ldm.models.diffusion.mcpl.MCPL"
#: MCPL's terms, for configurations that have none.
TERMS = {"mask": {"kind": "hard"}, "contrast": {"temperature": 0.3, "weight": 0.00075}}
#: More parameters than this, and a model is not built twice.
LARGE = 200_000_000


def configuration(files: Sequence[str], overrides: Sequence[str] = ()) -> DictConfig:
    """What ``main.py --base FILES`` would run, on drawn pictures and with MCPL's terms."""
    paths = [path if Path(path).is_file() else str(ROOT / path) for path in files]
    config = load_config(parse(["--base", *paths, "--data_root", PICTURES, *overrides]))
    if config.model.target != MCPL:
        config.model.target = MCPL
        config.model.params.update(TERMS)
    encoder = config.model.params.cond_stage_config
    if encoder.target.endswith("BERTEmbedder") and "vocab_file" not in encoder.params:
        OmegaConf.update(encoder, "params.vocab_file", VOCABULARY, force_add=True)
    return config


@dataclass
class Workload:
    """A model that learns words, and the batches it learns from."""

    model: Any
    dataset: Any
    batch_size: int
    number: int = 0

    @classmethod
    def of(
        cls,
        files: Sequence[str],
        batch_size: int | None = None,
        device: str = "cpu",
        overrides: Sequence[str] = (),
    ) -> "Workload":
        """Build model and data of a configuration, and encode all pictures."""
        torch.manual_seed(0)
        config = configuration(files, overrides)
        dataset = build_data(config, concept_sentence(config)).datasets["train"]
        model = build_model(config)
        wake(model.model)
        model.learn(dataset.words)
        model.to(device).train()
        model.cache_posteriors()
        made = cls(model, dataset, batch_size or config.data.params.batch_size)
        for image_id, flip, array in dataset.images():
            image = torch.from_numpy(array.copy()).movedim(-1, 0)[None].to(device)
            model.posteriors(image, *(torch.tensor([n]) for n in (0, image_id, int(flip))))
        return made

    @property
    def network(self) -> list[nn.Module]:
        """What is frozen and takes part in every step: the U-Net and the text encoder."""
        return [self.model.model, self.model.cond_stage_model]

    @property
    def is_large(self) -> bool:
        """Whether this model should not be in memory twice, nor have weight gradients."""
        return count_params(self.model) > LARGE

    def described(self) -> dict[str, Any]:
        """How large all of it is."""
        millions = count_params(self.model) / 1e6
        size = self.dataset.size
        return {"million_parameters": millions, "images": self.batch_size, "pixels": size}

    def batch(self, step: int) -> dict[str, Any]:
        """The batch of a training step, on the model's device."""
        batch = collate([self.dataset[StepKey(step, slot)] for slot in range(self.batch_size)])
        batch["image"] = batch["image"].to(self.model.device)
        return batch

    def loss(self) -> Tensor:
        """The loss of the next step, as the trainer computes it."""
        self.number += 1
        loss, _ = self.model.shared_step(self.batch(self.number))
        return loss

    def step(self) -> None:
        """Loss and gradients of the next step."""
        for parameter in self.model.parameters():
            parameter.grad = None
        self.loss().backward()

    def gradient(self, step: int) -> Tensor:
        """The gradient of all words at a step, in a row, as if it was the first step."""
        mask: AttentionMask | None = getattr(self.model, "attention_mask", None)
        if mask is not None:
            mask.forget()  # maps of earlier steps would make it another mask
        self.number = step - 1
        self.step()
        words = self.model.embedding_manager.embedding_parameters()
        return torch.cat([word.grad.flatten() for word in words]).clone()


def wake(module: nn.Module) -> None:
    """Give layers that start at zero small random weights, so that gradients pass through them."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.02)


# Ways to run a step -------------------------------------------------------------------------------


@contextmanager
def encoding_every_step(work: Workload) -> Iterator[None]:
    """Nothing kept of the pictures."""
    with switched(work.model, posteriors=None):
        yield


@contextmanager
def weight_gradients(work: Workload) -> Iterator[None]:
    """Gradients of all weights of the U-Net and the text encoder, as if they were trained."""
    for part in work.network:
        part.requires_grad_(True)
    try:
        yield
    finally:
        for part in work.network:
            part.requires_grad_(False)


@contextmanager
def checkpointing(work: Workload, flag: bool = True) -> Iterator[None]:
    """Blocks of the U-Net recomputed in the backward pass, or not."""
    before = []
    for module in work.model.model.modules():
        for name in ("checkpoint", "use_checkpoint"):
            if isinstance(getattr(module, name, None), bool):
                before.append((module, name, getattr(module, name)))
                setattr(module, name, flag)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


@contextmanager
def channels_last(work: Workload) -> Iterator[None]:
    """The channels of a pixel side by side in memory."""
    work.model.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        work.model.to(memory_format=torch.contiguous_format)


@contextmanager
def autocast(work: Workload) -> Iterator[None]:
    """Products in bfloat16, of weights that are converted in every step."""
    with torch.autocast(work.model.device.type, torch.bfloat16):
        yield


@contextmanager
def narrow(work: Workload) -> Iterator[None]:
    """The frozen network in bfloat16 (afterwards in float32 again, rounded)."""
    for part in work.network:
        part.to(torch.bfloat16)
    try:
        yield
    finally:
        for part in work.network:
            part.to(torch.float32)


# A step taken apart -------------------------------------------------------------------------------


@dataclass
class Laps:
    """How long the parts of one step take, in the order in which they come."""

    clock: Clock
    seconds: dict[str, float] = field(default_factory=dict)
    last: float = 0.0

    def lap(self, name: str) -> None:
        """What was done since the last lap is called `name`."""
        now = self.clock()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now

    def wrapped(self, call: Callable[..., Any], before: str, name: str) -> Callable[..., Any]:
        """`call` as a lap `name`; what came before it is `before`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.lap(before)
            result = call(*args, **kwargs)
            self.lap(name)
            return result

        return timed


def taken_apart(work: Workload, clock: Clock) -> dict[str, float]:
    """Seconds of the parts of one step in which pictures are encoded, too."""
    laps, model, rest = Laps(clock), work.model, "data, noise, loss"
    encoder = model.cond_stage_model
    encode, text = model.encode_first_stage, encoder.encode_tokens

    def context(*args: Any, **kwargs: Any) -> Tensor:
        result = laps.wrapped(text, rest, "text forward")(*args, **kwargs)
        result.register_hook(lambda _: laps.lap("U-Net backward"))
        return result

    network = laps.wrapped(model.apply_model, rest, "U-Net forward")
    with (
        encoding_every_step(work),
        switched(model, encode_first_stage=laps.wrapped(encode, rest, "encode"),
                 apply_model=network),
        switched(encoder, encode_tokens=context),
    ):  # fmt: skip
        laps.last = clock()
        loss = work.loss()
        laps.lap(rest)
        loss.backward()
        laps.lap("text backward")
    return laps.seconds
