"""``txt2img.py`` with the defaults of Stable Diffusion v1: 512x512, guidance 7.5."""

import sys

from txt2img import main

if __name__ == "__main__":
    sys.exit(
        main(
            config="configs/stable-diffusion/v1-inference.yaml",
            ckpt_path="models/ldm/stable-diffusion-v1/model.ckpt",
            H=512,
            W=512,
            scale=7.5,
        )
    )
