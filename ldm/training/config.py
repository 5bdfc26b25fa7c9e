"""From configuration files and flags to one resolved configuration."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.training.cli import Options
from ldm.training.errors import UserError

logger = logging.getLogger(__name__)

#: Folder of the backbone files that ``backbone: <name>`` refers to.
BACKBONES = Path(__file__).resolve().parents[2] / "configs" / "backbones"

#: How a drawn set is named where a folder is expected, and the dataset it stands for.
DRAWN, CONCEPT_SET = "playroom:", "ldm.data.playroom.PlayroomConcepts"

MCPL_TARGET = "ldm.models.diffusion.mcpl.MCPL"


def read_yaml(path: str | Path) -> DictConfig:
    """One configuration file.

    Raises:
        UserError: naming the file, and for YAML errors the line.
    """
    path = Path(path)
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
    return config


def merge_files(paths: Sequence[str | Path]) -> DictConfig:
    """Files merged left to right; of several backbones the last one counts, whole."""
    merged = OmegaConf.create()
    for path in paths:
        config = read_yaml(path)
        if "backbone" in config and "backbone" in merged:
            del merged["backbone"]
        merged = OmegaConf.merge(merged, config)
    return merged


def put_backbone_under(config: DictConfig) -> DictConfig:
    """Lay the backbone's model under the method's: the method's own values win."""
    backbone = config.get("backbone")
    if backbone is None:
        return config
    if isinstance(backbone, str):
        named = BACKBONES / f"{backbone}.yaml"
        backbone = read_yaml(named if named.is_file() else backbone).backbone
        config.backbone = backbone
    under = OmegaConf.create({"model": backbone.get("model", {}), "data": backbone.get("data", {})})
    return OmegaConf.merge(under, config)


def load_config(options: Options) -> DictConfig:
    """The whole configuration of a command line.

    Raises:
        UserError: for a missing or broken file, a bad override, or when there is no model.
    """
    flags = options.flags
    if not flags.base:
        raise UserError("no configuration: give --base, for example --base configs/mcpl.yaml")
    try:
        overrides = OmegaConf.from_dotlist(options.overrides)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"bad override among {options.overrides}: {error}") from error
    config = put_backbone_under(OmegaConf.merge(merge_files(flags.base), overrides))
    config = OmegaConf.merge(config, overrides)
    if "model" not in config or "target" not in config.model:
        raise UserError(f"no 'model' with a 'target' in {', '.join(map(str, flags.base))}")
    _apply_concept_flags(config, flags)
    _apply_run_flags(config, options)
    return config


def _apply_run_flags(config: DictConfig, options: Options) -> None:
    flags = options.flags
    if flags.seed is not None:
        config.seed = flags.seed
    config.setdefault("seed", 23)
    if flags.actual_resume:
        config.weights = flags.actual_resume
    if flags.batch_size is not None:
        OmegaConf.update(config, "data.params.batch_size", flags.batch_size, force_add=True)
    if flags.data_root:
        for part in ("train", "validation"):
            if OmegaConf.select(config, f"data.params.{part}.params") is not None:
                config.data.params[part] = point_at(config.data.params[part], flags.data_root)
    for name, value in options.trainer.items():
        OmegaConf.update(config, f"lightning.trainer.{name}", yaml.safe_load(value), force_add=True)


def point_at(dataset: DictConfig, data_root: str) -> DictConfig:
    """The dataset's configuration with its pictures taken from `data_root`.

    ``playroom:<name>`` stands for a drawn set of that name, anything else for a folder.
    """
    params = dict(dataset.params)
    drawn = data_root.startswith(DRAWN)
    if drawn or dataset.target == CONCEPT_SET:
        kept = {key: params[key] for key in ("size", "seed", "flip_p") if key in params}
        target = CONCEPT_SET if drawn else "ldm.data.personalized.PersonalizedBase"
        name = {"name": data_root.removeprefix(DRAWN)} if drawn else {"data_root": data_root}
        return OmegaConf.create({"target": target, "params": {**kept, **name}})
    return OmegaConf.create({**dataset, "params": {**params, "data_root": data_root}})


def _apply_concept_flags(config: DictConfig, flags: Any) -> None:
    """Write the words to learn under ``concept``, and MCPL's terms under ``model.params``."""
    concept: dict[str, Any] = {}
    if flags.sentence is not None:
        concept = {"sentence": flags.sentence, "strategy": flags.strategy or "one"}
    elif flags.placeholder_string is not None or flags.init_word is not None:
        if (
            flags.init_word is not None
            and flags.placeholder_string is None
            and config.get("concept")
        ):
            raise UserError(
                "--init_word belongs to --placeholder_string; in a sentence write the start after "
                "a colon: --sentence 'a <name:init word>'"
            )
        sentence = flags.placeholder_string or "*"
        concept = {
            "placeholder_string": sentence,
            "pseudo_words": flags.pseudo_words or ([sentence] if " " not in sentence else None),
            "adjectives": flags.bound_adjectives or [],
            "init_word": flags.init_word,
        }
        if concept["pseudo_words"] is None:
            raise UserError(
                f"--placeholder_string {sentence!r} is a sentence: say which words to learn, "
                "for example --pseudo_words '*,@'"
            )
    elif flags.strategy is not None and config.get("concept"):
        config.concept.strategy = flags.strategy
    if concept:
        config.concept = concept
    if flags.embedding_manager_ckpt:
        OmegaConf.update(config, "concept.embeddings", flags.embedding_manager_ckpt, force_add=True)
    _apply_terms(config, flags)


def _apply_terms(config: DictConfig, flags: Any) -> None:
    """The released regularisation flags, as parameters of the MCPL module."""
    params: dict[str, Any] = {}
    if flags.contrast_words:
        with_mask = flags.attn_mask_type != "skip"
        params["contrast"] = {
            "words": flags.contrast_words,
            "temperature": _or(flags.infonce_temperature, 0.3 if with_mask else 0.2),
            "weight": _or(flags.infonce_scale, 0.00075 if with_mask else 0.0005),
            "bind_adjectives": bool(flags.bound_adjectives),
        }
    if flags.attn_words and flags.attn_mask_type != "skip":
        params["mask"] = {"kind": flags.attn_mask_type or "hard", "words": flags.attn_words}
    if flags.softmax_words:
        logger.info(
            "--pseudo_words_softmax belongs to the released masks, which it turns into all ones; "
            "it has an effect only with model.params.reference_quirks=true"
        )
        params["quirk_softmax_words"] = flags.softmax_words
    if params:
        config.model.target = MCPL_TARGET
        for name, value in params.items():
            OmegaConf.update(config, f"model.params.{name}", value, force_add=True)


def _or(value: float | None, fallback: float) -> float:
    return fallback if value is None else value
