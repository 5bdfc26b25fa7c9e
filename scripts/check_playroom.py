"""Measure the default model on scenes it has not seen: reconstruction, attention, sample grid.

python scripts/check_playroom.py --outdir outputs/playroom --scenes 96
"""

import argparse
import json
import logging
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from ldm.evaluation.playroom import fresh_scenes, localisation, reconstruction
from ldm.inference import SamplingOptions, load_model, sample_latents
from ldm.visual import Cell, panel, save_png, to_uint8

PROMPTS = (
    "a photo of a brown teddy bear on a rolling skateboard at times square",
    "a photo of a red ball and a green basket in the desert",
    "a photo of a blue mug beside yellow bananas on a table",
    "a photo of an orange taxi and a purple dog at night",
    "a photo of a red chair on the grass",
    "a photo of a pink cat on the beach",
    "a photo of watermelon on the beach",
    "a photo of a white fox in the snow",
)


def main() -> int:
    """Measure and write figures.json and samples.png."""
    parser = argparse.ArgumentParser(description="Measure the default model.")
    parser.add_argument("--outdir", type=Path, default=Path("outputs/playroom"))
    parser.add_argument("--scenes", type=int, default=96, help="scenes for each figure")
    parser.add_argument("--ckpt_path", default=None)
    parser.add_argument("--config", default="configs/backbones/playroom.yaml")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--scale", type=float, default=5.0)
    parser.add_argument("--samples", type=int, default=6, help="samples of each prompt")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    model = load_model(options.ckpt_path, options.config)
    size = 4 * model.image_size
    figures = {"psnr": asdict(reconstruction(model, fresh_scenes(options.scenes, 2, size)))}
    for count in (1, 2, 3):
        scenes = fresh_scenes(options.scenes, count, size)
        for resolutions in ((16,), (8,), (16, 8)):
            name = "+".join(map(str, resolutions))
            for kind, mean in localisation(model, scenes, resolutions).items():
                figures[f"iou {kind}, {count} objects, maps {name}"] = asdict(mean)
                print(f"{count} objects, maps {name}, {kind}: {mean}", flush=True)
    started, rows = time.monotonic(), []
    sampling = SamplingOptions(steps=options.steps, scale=options.scale)
    for prompt in PROMPTS:
        latents = sample_latents(model, [prompt] * options.samples, sampling, progress=False)
        decoded = to_uint8(model.decode_first_stage(latents).clamp(-1, 1))
        rows.append([Cell(p, prompt if i == 0 else "") for i, p in enumerate(decoded)])
    seconds = (time.monotonic() - started) / (len(PROMPTS) * options.samples)
    figures["seconds per sample"] = {"value": seconds, "threads": torch.get_num_threads()}
    print(f"psnr {figures['psnr']['value']:.2f} dB; {seconds:.2f} s per sample")
    options.outdir.mkdir(parents=True, exist_ok=True)
    save_png(options.outdir / "samples.png", panel(rows, tile=128))
    (options.outdir / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
