"""How many pictures a second are drawn, and what each measure brings.

    python -m benchmarks.sampling
    python -m benchmarks.sampling --config configs/latent-diffusion/txt2img-1p4B-finetune.yaml \\
        --batch 1 --steps 2 --rounds 3 --json benchmarks/results/sampling_full.json

A few steps of guided DDIM are timed, the network alone; pictures a second are for `--length` steps
with the decoding of the latents.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import workload
from benchmarks.harness import Case, Timing, parser, started, switched
from benchmarks.workload import Workload
from ldm.models.diffusion.ddim import DDIMSampler

Way = Callable[[Workload], AbstractContextManager[Any]]
PROMPT = "a photo of a brown bear on a skateboard"

#: Ways to sample: what is different from the first.
WAYS: dict[str, tuple[Way, ...]] = {
    "as it is: both halves in one batch, float32": (),
    "channels_last": (workload.channels_last,),
    "bfloat16 autocast": (workload.autocast,),
    "bfloat16 weights": (workload.narrow,),
    "bfloat16 weights, channels_last": (workload.narrow, workload.channels_last),
}


class OneHalfAtATime:
    """A model that sees the two halves of a guided batch one after the other."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def apply_model(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """The network's output for both halves."""
        halves = zip(x.chunk(2), t.chunk(2), cond.chunk(2), strict=True)
        return torch.cat([self.model.apply_model(*half) for half in halves])


class Drawing:
    """Guided sampling of a batch of pictures of one prompt."""

    def __init__(self, work: Workload, steps: int) -> None:
        self.model, self.batch, self.steps = work.model, work.batch_size, steps
        shape = (self.batch, *self.model.latent_shape())
        self.noise = torch.randn(shape, device=self.model.device)
        self.contexts = self.read()

    @torch.no_grad()
    def read(self, *_: Any) -> tuple[Tensor, Tensor]:
        """The contexts of the prompt and of no prompt."""
        texts = ([PROMPT] * self.batch, [""] * self.batch)
        prompt, nothing = (self.model.get_learned_conditioning(text) for text in texts)
        return prompt, nothing

    def __call__(self, model: Any = None, **options: Any) -> Tensor:
        """Latents after the steps."""
        prompt, nothing = self.contexts
        samples, _ = DDIMSampler(model or self.model).sample(
            self.steps, self.batch, self.noise.shape[1:], prompt, x_T=self.noise, verbose=False,
            unconditional_guidance_scale=5.0, unconditional_conditioning=nothing, **options,
        )  # fmt: skip
        return samples


def within(work: Workload, *ways: Way) -> ExitStack:
    """Sample in all of `ways`."""
    stack = ExitStack()
    for way in ways:
        stack.enter_context(way(work))
    return stack


def all_cases(work: Workload, drawing: Drawing, compiled: bool) -> dict[str, Case]:
    """Everything that is timed."""
    cases = {name: Case(drawing, partial(within, work, *way)) for name, way in WAYS.items()}
    cases["two calls a step"] = Case(partial(drawing, OneHalfAtATime(work.model)))
    cases["the text read in every step"] = Case(partial(drawing, on_step=drawing.read))
    if compiled:
        network = work.model.model.diffusion_model
        fast = torch.compile(network.forward)

        def way(_: Workload) -> AbstractContextManager[None]:
            return switched(network, forward=fast)

        narrow = WAYS["bfloat16 weights, channels_last"]
        cases["compiled"] = Case(drawing, partial(within, work, way))
        cases["compiled, bfloat16 weights, channels_last"] = Case(
            drawing, partial(within, work, way, *narrow)
        )
    return cases


def deviations(work: Workload, drawing: Drawing) -> dict[str, float]:
    """How far the latents in bfloat16 are from those in float32, relative."""
    exact, found = drawing(), {}
    for name in ("bfloat16 autocast", "bfloat16 weights"):
        with within(work, *WAYS[name]):
            found[name] = ((drawing() - exact).norm() / exact.norm()).item()
    return found


def main() -> int:
    """Measure, and work out pictures a second."""
    options = parser(__doc__, rounds=5)
    options.add_argument("--steps", type=int, default=5, help="steps that are timed")
    options.add_argument("--length", type=int, default=50, help="steps of a whole picture")
    options.add_argument("--compile", action="store_true", help="also with a compiled U-Net")
    chosen = options.parse_args()
    report = started("sampling", chosen)
    report.rates()
    work = Workload.of(chosen.config, chosen.batch, chosen.device, chosen.overrides)
    report.add("model", [work.described()])
    drawing = Drawing(work, chosen.steps)
    differs = deviations(work, drawing)
    timed = report.time("ways to sample", all_cases(work, drawing, chosen.compile), differs=differs)
    latents = drawing.noise
    decoding = report.time("decoding", {
        "float32": Case(partial(work.model.decode_first_stage, latents)),
        "bfloat16 autocast": Case(partial(work.model.decode_first_stage, latents),
                                  partial(workload.autocast, work)),
    })  # fmt: skip
    report.add("pictures a second", pictures(timed, decoding[0], work, chosen))
    report.finish()
    return 0


def pictures(
    timed: list[Timing], decoding: Timing, work: Workload, options: Any
) -> list[dict[str, Any]]:
    """Pictures a second of every way, decoded in float32."""
    rows = []
    for timing in timed:
        seconds = timing.seconds / options.steps * options.length + decoding.seconds
        rows.append({"name": timing.name, "pictures_per_s": work.batch_size / seconds})
    return rows


if __name__ == "__main__":
    sys.exit(main())
