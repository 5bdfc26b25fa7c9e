"""How long one step of learning words takes, what of it goes where, and what each measure brings.

    python -m benchmarks.step
    python -m benchmarks.step --config configs/latent-diffusion/txt2img-1p4B-finetune.yaml \\
        --batch 1 --rounds 3 --json benchmarks/results/step_full.json

The words are learned with MCPL's terms. The first table takes a step apart; the floor of a part is
its operations over the rate of large matrix products in the same run. The second compares ways to
run the step, the third what the terms of the objective cost. On a GPU, `--compile` adds the
compiled U-Net.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import workload
from benchmarks.harness import Case, Report, flops, parser, quartiles, started, switched
from benchmarks.workload import Workload, taken_apart
from ldm.concepts.context_loss import ContextLoss
from ldm.concepts.contrastive import PromptContrast
from ldm.concepts.masks import AttentionMask
from ldm.concepts.objective import LossTerm, Objective, TermValue, TrainStep

Way = Callable[[Workload], AbstractContextManager[Any]]

#: Ways to run a step: what is different from the first.
WAYS: dict[str, tuple[Way, ...]] = {
    "as it is: encoded once, float32": (),
    "encoding in every step": (workload.encoding_every_step,),
    "gradients of frozen weights, too": (workload.weight_gradients,),
    "gradient checkpointing": (workload.checkpointing,),
    "channels_last": (workload.channels_last,),
    "bfloat16 autocast": (workload.autocast,),
    "bfloat16 weights": (workload.narrow,),
    "bfloat16 weights, channels_last": (workload.narrow, workload.channels_last),
    "bfloat16 weights, channels_last, checkpointing": (
        workload.narrow,
        workload.channels_last,
        workload.checkpointing,
    ),
}
#: Not for large models, of which the weight gradients alone need as much memory again.
SMALL_ONLY = ("gradients of frozen weights, too",)


def within(work: Workload, *ways: Way) -> ExitStack:
    """Run steps in all of `ways`; without checkpointing unless it is one of them."""
    stack = ExitStack()
    stack.enter_context(workload.checkpointing(work, False))
    for way in ways:
        stack.enter_context(way(work))
    return stack


def parts(report: Report, work: Workload, rate: float) -> None:
    """The parts of a step in which pictures are encoded; shares are of the step without that."""
    rounds = []
    with within(work):
        for _ in range(report.options.rounds + 1):
            rounds.append(taken_apart(work, report.clock))
        counted = operations(work)
    middle = {name: quartiles([r[name] for r in rounds[1:]])[1] for name in rounds[0]}
    step = sum(middle.values()) - middle["encode"]
    rows = []
    for name in ("encode", "text forward", "U-Net forward", "U-Net backward", "text backward",
                 "data, noise, loss"):  # fmt: skip
        floor = counted[name] / rate if name in counted else None
        rows.append({
            "name": name, "seconds": middle[name],
            "share": None if name == "encode" else middle[name] / step,
            "gflop": counted[name] / 1e9 if name in counted else None,
            "floor": floor, "of_the_floor": None if floor is None else floor / middle[name],
        })  # fmt: skip
    total = sum(value for name, value in counted.items() if name != "encode")
    rows.append({"name": "step (encoded once)", "seconds": step, "share": 1.0,
                 "gflop": total / 1e9, "floor": total / rate,
                 "of_the_floor": total / rate / step})  # fmt: skip
    report.add("parts of a step, float32", rows)


def operations(work: Workload) -> dict[str, int]:
    """Operations of the parts of a step, counted."""
    model, batch = work.model, work.batch(1)
    images = batch["image"].movedim(-1, 1)
    z = torch.randn(work.batch_size, *model.latent_shape(), device=model.device)
    t = torch.randint(model.num_timesteps, (len(z),), device=model.device)
    manager, encoder = model.embedding_manager, model.cond_stage_model
    ids = encoder.tokenize(batch["caption"], manager.words).ids.to(model.device)
    made: dict[str, Tensor] = {}

    def text() -> None:
        made["context"] = encoder.encode_distinct(ids, manager)

    def network() -> None:
        made["cut"] = made["context"].detach().requires_grad_()
        made["loss"] = model.apply_model(z, t, made["cut"]).square().mean()

    with torch.no_grad():
        encode = flops(lambda: model.encode_first_stage(images))
    return {
        "encode": encode,
        "text forward": flops(text),
        "U-Net forward": flops(network),
        "U-Net backward": flops(lambda: made["loss"].backward()),  # noqa: PLW0108
        "text backward": flops(lambda: made["context"].backward(made["cut"].grad)),
    }


def ways(report: Report, work: Workload, compiled: bool) -> None:
    """The step in every way, and how far its gradient is from that in float32."""
    chosen = {n: w for n, w in WAYS.items() if not (work.is_large and n in SMALL_ONLY)}
    cases = {name: Case(work.step, partial(within, work, *way)) for name, way in chosen.items()}
    if compiled:
        cases |= with_compile(work)
    differences = {}
    with within(work):
        exact = work.gradient(1)
    for name in ("bfloat16 autocast", "bfloat16 weights"):
        with within(work, *WAYS[name]):
            found = work.gradient(1)
        differences[name] = ((found - exact).norm() / exact.norm()).item()
    report.time("ways to run a step", cases, gradient_differs=differences)


def with_compile(work: Workload) -> dict[str, Case]:
    """The step with the U-Net compiled, in float32 and in bfloat16."""
    wrapper = work.model.model
    fast = torch.compile(wrapper.diffusion_model.forward)

    def compiled(_: Workload) -> AbstractContextManager[None]:
        return switched(wrapper.diffusion_model, forward=fast)

    bfloat16 = WAYS["bfloat16 weights, channels_last"]
    return {
        "compiled": Case(work.step, partial(within, work, compiled)),
        "compiled, bfloat16 weights, channels_last": Case(
            work.step, partial(within, work, compiled, *bfloat16)
        ),
    }


class Recording:
    """A term that has attention recorded, and does nothing with it."""

    name, weight, reads_attention = "recording", 1.0, True

    def __call__(self, step: TrainStep) -> TermValue:
        """Nothing."""
        return TermValue(step.prediction.new_zeros(step.runs), {})


def terms(report: Report, work: Workload) -> None:
    """The step with one term of the objective at a time, then with several."""
    model = work.model
    words = [word.name for word in work.dataset.words]
    context = ContextLoss(
        words={words[0]: {"positives": ["bear", "dog"], "negatives": ["ball", "house"]}}
    )
    context.look_up(model.cond_stage_model, work.dataset.words)
    plain, masked = model.denoising_term(), model.denoising_term(AttentionMask(kind="hard"))
    contrast = PromptContrast(temperature=0.3)
    objectives: dict[str, list[LossTerm]] = {
        "diffusion loss": [plain],
        "and attention recorded": [plain, Recording()],
        "and AttnMask": [masked],
        "and PromptCL": [plain, contrast],
        "and the context loss": [plain, context],
        "and AttnMask, PromptCL (MCPL)": [masked, contrast],
    }
    cases = {
        name: Case(work.step, partial(with_objective, work, Objective(chosen)))
        for name, chosen in objectives.items()
    }
    report.time("terms of the objective", cases)


def with_objective(work: Workload, objective: Objective) -> ExitStack:
    """Run steps with another objective."""
    stack = within(work)
    work.model.objective  # noqa: B018 - there is none to switch before it was asked for
    stack.enter_context(switched(work.model, _objective=objective))
    return stack


def main() -> int:
    """Measure all three tables."""
    options = parser(__doc__)
    options.add_argument("--compile", action="store_true", help="also with a compiled U-Net")
    options.add_argument("--tables", nargs="+", choices=("parts", "ways", "terms"),
                         default=["parts", "ways", "terms"])  # fmt: skip
    chosen = options.parse_args()
    report = started("step", chosen)
    rates = report.rates()
    work = Workload.of(chosen.config, chosen.batch, chosen.device, chosen.overrides)
    report.add("model", [work.described()])
    if "parts" in chosen.tables:
        parts(report, work, rates["float32"] * 1e9)
    if "terms" in chosen.tables:
        terms(report, work)
    if "ways" in chosen.tables:
        ways(report, work, chosen.compile)
    report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
