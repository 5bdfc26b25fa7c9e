"""The public configuration files, and what is known of the names in them."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parents[2]
MANIFESTS = REPO / "tests" / "goldens" / "manifests"

#: Named by public configs but never published by anyone.
NEVER_PUBLISHED = (
    "ldm.data.openimages.",
    "ldm.data.faceshq.",
    "ldm.data.landscapes.",
    "ldm.data.previews.pytorch_dataset.",
    "ldm.modules.losses.contperceptual.DummyLoss",
)
#: Needs a package that only training of autoencoders or on faces uses.
OPTIONAL = ("taming.",)


def read_manifest(name: str) -> dict[str, Any]:
    """A recorded file of ``tests/goldens/manifests``."""
    with gzip.open(MANIFESTS / f"{name}.json.gz", "rt") as file:
        return json.load(file)


def config_files() -> list[Path]:
    """Every configuration file of the repository."""
    return sorted([*REPO.glob("configs/**/*.yaml"), *REPO.glob("models/**/config.yaml")])


def parts(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict]]:
    """Every mapping with a ``target`` in `config`, with the keys that lead to it.

    The columns of a paper's table are none, though one may be called so.
    """
    if isinstance(config, dict):
        if isinstance(config.get("target"), str) and path[-1:] != ("columns",):
            yield path, config
        for key, value in config.items():
            yield from parts(value, (*path, str(key)))
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from parts(value, (*path, str(index)))


def load(path: str | Path) -> dict[str, Any]:
    """A configuration file, parsed."""
    return yaml.safe_load((REPO / path).read_text())
