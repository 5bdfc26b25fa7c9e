"""Folders of pictures for autoencoders, super-resolution and class labels; nothing is downloaded.

Training sets are asked by step (:mod:`ldm.data.steps`), validation sets in order.
"""

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ldm.data.images import find_images, load_image, normalise, to_pixels
from ldm.data.steps import StepKey

#: How a picture is made small for super-resolution: the public name and Pillow's filter.
DEGRADATIONS = {
    f"{prefix}{name}": Image.Resampling[name.upper()]
    for prefix in ("", "pil_")
    for name in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
}


class ImageFolder(Dataset[dict[str, Any]]):
    """Every picture below a folder as image, float32 (size, size, 3) in [-1, 1], and file_path_.

    The folder is `data_root` or the environment variable `variable`; `config` may hold options.
    """

    variable, keyed, mirrored = "IMAGE_FOLDER", True, 0.0

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        data_root: str | Path | None = None,
        size: int | None = None,
        interpolation: str = "bicubic",
        flip_p: float | None = None,
        seed: int = 0,
    ) -> None:
        config = config or {}
        self.size, self.interpolation = config.get("size", size), interpolation
        self.flip_p, self.seed = self.mirrored if flip_p is None else flip_p, seed
        root = config.get("data_root", data_root) or os.environ.get(self.variable)
        if not root:
            raise ValueError(f"give data_root, or set {self.variable} to the folder of your images")
        self.data_root = Path(root)
        self.paths = find_images(self.data_root, recursive=True)
        if not self.paths:
            raise ValueError(f"there is no image in or below {str(root)!r}")

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.paths)

    def __getitem__(self, key: StepKey | int) -> dict[str, Any]:
        """The picture that the key draws, or the one with this number."""
        if not isinstance(key, StepKey):
            return self._example(key)
        generator = key.generator(self.seed)
        index = int(torch.randint(len(self), (), generator=generator))
        flip = bool(torch.rand((), generator=generator) < self.flip_p)
        return {**self._example(index, flip), "image_id": index, "flip": flip, **key._asdict()}

    def _example(self, index: int, flip: bool = False) -> dict[str, Any]:
        pixels = to_pixels(load_image(self.paths[index]), self.size, True, self.interpolation)
        pixels = pixels[:, ::-1] if flip else pixels
        return {"image": normalise(pixels), "file_path_": str(self.paths[index])}


class ImageNetTrain(ImageFolder):
    """Pictures in one folder for each class, with class_label (a number) and human_label."""

    variable = "IMAGENET_TRAIN"

    def _example(self, index: int, flip: bool = False) -> dict[str, Any]:
        name = self.paths[index].relative_to(self.data_root).parts[0]
        labels = {"class_label": self._classes[name], "human_label": name}
        return {**super()._example(index, flip), **labels}

    @cached_property
    def _classes(self) -> dict[str, int]:
        names = sorted({path.relative_to(self.data_root).parts[0] for path in self.paths})
        return {name: number for number, name in enumerate(names)}


class ImageNetValidation(ImageNetTrain):
    """The pictures to validate on."""

    variable, keyed = "IMAGENET_VALIDATION", False


class ImageNetSRTrain(ImageFolder):
    """Pictures with LR_image, smaller by `downscale_f`; other than plain resizing is refused."""

    variable = "IMAGENET_TRAIN"

    def __init__(
        self, degradation: str = "pil_bicubic", downscale_f: int = 4, **options: Any
    ) -> None:
        if degradation not in DEGRADATIONS:
            raise ValueError(
                f"degradation {degradation!r} is not offered; choose one of {sorted(DEGRADATIONS)}"
            )
        super().__init__(**options)
        self.resample, self.downscale_f = DEGRADATIONS[degradation], downscale_f

    def _example(self, index: int, flip: bool = False) -> dict[str, Any]:
        example = super()._example(index, flip)
        large = Image.fromarray(np.rint((example["image"] + 1) * 127.5).astype(np.uint8))
        small = large.resize([side // self.downscale_f for side in large.size], self.resample)
        return {**example, "LR_image": normalise(np.asarray(small))}


class ImageNetSRValidation(ImageNetSRTrain):
    """The pictures to validate super-resolution on."""

    variable, keyed = "IMAGENET_VALIDATION", False
