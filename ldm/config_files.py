"""Configuration files: one over another, and a method's over its backbone's."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.errors import UserError

#: Folder of the backbone files that ``backbone: <name>`` refers to.
BACKBONES = Path(__file__).resolve().parents[1] / "configs" / "backbones"


def read_yaml(path: str | Path, above: tuple[Path, ...] = ()) -> DictConfig:
    """One configuration file, laid over the file that its key ``base`` names, if it has one.

    That file is looked for in the same folder. `above` are the files that led here.

    Raises:
        UserError: naming the file, and for YAML errors the line.
    """
    path = Path(path)
    if path.resolve() in above:
        raise UserError(f"{path} is its own base: {' > '.join(p.name for p in above)}")
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; in that folder: {', '.join(near[:8])}" if near else ""
        raise UserError(f"configuration file {path} does not exist{hint}")
    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{path} must hold a mapping such as 'model: ...', not a list or a value")
    if "base" not in config:
        return config
    under = read_yaml(path.parent / str(config.pop("base")), (*above, path.resolve()))
    return _over(under, config)


def _over(under: DictConfig, config: DictConfig) -> DictConfig:
    """`config` laid over `under`; of two backbones the upper one counts, whole."""
    if "backbone" in config and "backbone" in under:
        del under["backbone"]
    return cast(DictConfig, OmegaConf.merge(under, config))


def merge_files(paths: Sequence[str | Path]) -> DictConfig:
    """Files merged left to right; of several backbones the last one counts, whole."""
    merged = OmegaConf.create()
    for path in paths:
        merged = _over(merged, read_yaml(path))
    return merged


def read_backbone(name: str) -> DictConfig:
    """The backbone that is called `name`, or that the file `name` describes.

    Raises:
        UserError: when there is none.
    """
    known = sorted(path.stem for path in BACKBONES.glob("*.yaml"))
    path = BACKBONES / f"{name}.yaml" if name in known else Path(name)
    if not path.is_file():
        raise UserError(f"backbone {name!r} is no file, and none of {', '.join(known)}")
    backbone = read_yaml(path).get("backbone")
    if not isinstance(backbone, DictConfig):
        raise UserError(f"{path} describes no backbone: expected a mapping 'backbone: ...'")
    return backbone


def over_backbone(config: DictConfig) -> DictConfig:
    """Lay the backbone's model under the method's: the method's own values win."""
    backbone = config.get("backbone")
    if backbone is None:
        return config
    if isinstance(backbone, str):
        config.backbone = backbone = read_backbone(backbone)
    under = OmegaConf.create({"model": backbone.get("model", {}), "data": backbone.get("data", {})})
    return cast(DictConfig, OmegaConf.merge(under, config))


def given_weights(config: DictConfig) -> str | None:
    """The file that the model's weights come from: as given, else the backbone's."""
    return config.get("weights", OmegaConf.select(config, "backbone.weights"))
