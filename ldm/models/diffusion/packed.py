"""Several independent runs of one frozen model in one batch.

The text encoder and the U-Net see the images of all runs at once. Everything else belongs to a run
alone: its words, its terms with what they remember, its randomness. So a packed run is the same run
as alone, up to the rounding that comes with another batch size.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.draws import Draws
from ldm.models.diffusion.optim import adamw
from ldm.modules.attention import AttentionSite, Grid
from ldm.modules.attention_control import AttentionController, controlling
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.modules.encoders.text import distinct

#: Entries of a batch that say which run an image is of.
RUN = "run"


class Part(NamedTuple):
    """The images of one run, ready for the network, and their rows in what it sees."""

    run: int
    model: LatentDiffusion
    rows: slice
    z: Tensor
    draws: Draws
    details: dict[str, Any]


class PackedRuns(pl.LightningModule):
    """Runs of models that share a network (see `LatentDiffusion.twin`), trained together.

    The loss is the sum of the runs' losses and the optimizer is elementwise, so that every word
    receives the update it would receive alone. `active` holds the numbers of the runs that still
    learn; `reports` their terms' values at the latest step.

    Raises:
        ValueError: when a run trains more than its words.
    """

    #: That of every run.
    learning_rate: float

    def __init__(self, runs: Sequence[LatentDiffusion], active: list[int] | None = None) -> None:
        super().__init__()
        if not all(run.learns_words for run in runs):
            raise ValueError(
                "only runs that learn words and nothing else can share a network: set "
                "unfreeze_model: false, or learn the runs one by one"
            )
        self.runs: Any = nn.ModuleList(runs)
        self.active = list(range(len(runs))) if active is None else active
        self.reports: dict[int, dict[str, Tensor]] = {}

    # -- one step

    def leave(self, run: int) -> None:
        """Let a run go: its words stay as they are, the others do not notice."""
        self.active.remove(run)

    def parts(self, batch: Mapping[str, Any]) -> list[Part]:
        """What each active run makes of its own images; its images stand together in a batch."""
        found: list[Part] = []
        owners, start = batch[RUN].tolist(), 0
        for run in self.active:
            first, count = owners.index(run), owners.count(run)
            own = {name: value[first : first + count] for name, value in batch.items()}
            own[RUN] = torch.zeros_like(own[RUN])  # alone, a run has number 0
            model = self.runs[run]
            z, draws = model.latents(own)
            rows = slice(start, start := start + count)
            found.append(Part(run, model, rows, z, draws, model.details(own)))
        return found

    def encode(self, parts: Sequence[Part]) -> Tensor:
        """The context (b, n, d) of all captions; each distinct one of a run is encoded once."""
        rows, places, start = [], [], 0
        managers: list[tuple[Any, slice]] = []
        for part in parts:
            ids, index = distinct(part.details["tokens"].ids)
            rows.append(ids)
            places.append(index + start)
            managers.append((part.model.embedding_manager, slice(start, start := start + len(ids))))
        encoder: Any = parts[0].model.cond_stage_model
        context = encoder.encode_tokens(torch.cat(rows), EachItsWords(managers))
        index = torch.cat(places)
        return context if start == len(index) else context[index.to(context.device)]

    def predict(self, parts: Sequence[Part], context: Tensor) -> tuple[Tensor, list[Any]]:
        """The network's output for all images, and for each run its words' attention."""
        noisy = torch.cat([p.model.q_sample(p.z, p.draws.t, p.draws.noise) for p in parts])
        t = torch.cat([part.draws.t for part in parts])
        network = parts[0].model
        if not network.objective.attention_words:
            return network.apply_model(noisy, t, context), [None] * len(parts)
        recorders = [part.model.recorder(**part.details) for part in parts]
        rows = [part.rows for part in parts]
        with controlling(network.model.diffusion_model, EachItsAttention(rows, recorders)):
            return network.apply_model(noisy, t, context), recorders

    def shared_step(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[int, dict[str, Tensor]]]:
        """The sum of the runs' losses, and the values of each run's terms."""
        parts = self.parts(batch)
        context = self.encode(parts)
        prediction, attention = self.predict(parts, context)
        losses, reports = [], {}
        for part, seen in zip(parts, attention, strict=True):
            rows, draws = part.rows, part.draws
            predicted = (prediction[rows], seen)
            loss, report = part.model.weigh(
                predicted, part.z, context[rows], draws.t, draws.noise, **part.details
            )
            losses.append(loss)
            reports[part.run] = {name: value.detach() for name, value in report.items()}
        return torch.stack(losses).sum(), reports

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """One step of all runs; nothing is read back from the device."""
        total, self.reports = self.shared_step(batch)
        mean = total.detach() / len(self.reports)
        self.log("loss", mean, prog_bar=True, logger=False, batch_size=len(batch[RUN]))
        return total

    # -- training

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """A step of the optimizer; what the runs counted on the way to it counts from then on."""
        super().optimizer_step(*arguments, **options)
        for run in self.active:
            self.runs[run].commit()

    def configure_optimizers(self) -> Any:
        """AdamW over the words of all runs, as the first of them says: they have one recipe."""
        first = self.runs[0]
        groups = [
            {"params": list(run.embedding_manager.embedding_parameters()), "lr": self.learning_rate}
            for run in self.runs
        ]
        return adamw(
            [],
            self.learning_rate,
            scheduler_config=first.scheduler_config,
            weight_decay=first.weight_decay,
            extra_groups=groups,
        )

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient of each run by itself, as it is clipped alone."""
        if not gradient_clip_val:
            return
        by_value = str(gradient_clip_algorithm or "norm") == "value"
        clip = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
        for run in self.active:
            clip(list(self.runs[run].embedding_manager.embedding_parameters()), gradient_clip_val)

    @property  # type: ignore[misc]
    def strict_loading(self) -> bool:
        """The network is not kept in checkpoints."""
        return False

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep of each run what it keeps alone, and who still learns."""
        checkpoint["state_dict"] = {}
        checkpoint["active"] = list(self.active)
        checkpoint["runs"] = []
        for run in self.runs:
            own = {"state_dict": run.state_dict()}
            run.on_save_checkpoint(own)
            checkpoint["runs"].append(own)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue every run from where it was.

        Raises:
            ValueError: when the checkpoint is of other runs.
        """
        saved = checkpoint.get("runs", ())
        if len(saved) != len(self.runs):
            raise ValueError(f"the checkpoint is of {len(saved)} runs, here are {len(self.runs)}")
        for run, own in zip(self.runs, saved, strict=True):
            run.on_load_checkpoint(own)
            run.load_state_dict(own["state_dict"], strict=False)
        self.active[:] = checkpoint["active"]


def checkpoint_of(checkpoint: Mapping[str, Any], run: int) -> dict[str, Any]:
    """What the checkpoint of one run alone would hold, from that of packed runs."""
    (packed,) = checkpoint["optimizer_states"]
    group = packed["param_groups"][run]
    numbers = range(len(group["params"]))
    state = {
        number: packed["state"][parameter]
        for number, parameter in zip(numbers, group["params"], strict=True)
        if parameter in packed["state"]
    }
    optimizer = {"state": state, "param_groups": [{**group, "params": list(numbers)}]}
    # A schedule keeps a list of some of its values, one for each group.
    schedules = [
        {name: [value[run]] if isinstance(value, list) else value for name, value in each.items()}
        for each in checkpoint.get("lr_schedulers", ())
    ]
    shared = {key: checkpoint[key] for key in checkpoint if key not in ("runs", "active")}
    own = {"optimizer_states": [optimizer], "lr_schedulers": schedules, "callbacks": {}}
    return {**shared, **checkpoint["runs"][run], **own}


class EachItsWords:
    """Puts the words of several managers into embedded text, each into its own rows."""

    def __init__(self, managers: Sequence[tuple[EmbeddingManager, slice]]) -> None:
        self.managers = managers

    def __call__(self, ids: Tensor, embedded: Tensor) -> Tensor:
        """The embeddings (b, n, d) of ids (b, n) with the learned vectors in place."""
        return torch.cat([put(ids[rows], embedded[rows]) for put, rows in self.managers])

    def expand(self, ids: Tensor) -> Tensor:
        """The ids (b, n) with each word's id once per vector, as the next call lays them out."""
        return torch.cat([put.expand(ids[rows]) for put, rows in self.managers])


class EachItsAttention(AttentionController):
    """Lets several recorders look at the attention of their own rows."""

    rewrites = False

    def __init__(self, rows: Sequence[slice], recorders: Sequence[AttentionController]) -> None:
        self.rows, self.recorders = rows, recorders
        self.differentiable = any(recorder.differentiable for recorder in recorders)

    def wants(self, site: AttentionSite | None, pixels: int | None = None) -> bool:
        """What the recorders want, which are of one kind."""
        return self.recorders[0].wants(site, pixels)

    def observe(
        self, q: Tensor, k: Tensor, scale: float, site: AttentionSite | None, grid: Grid | None
    ) -> None:
        """Show every recorder its rows of q (b, heads, pixels, d) and k (b, heads, tokens, d)."""
        for rows, recorder in zip(self.rows, self.recorders, strict=True):
            recorder.observe(q[rows], k[rows], scale, site, grid)
