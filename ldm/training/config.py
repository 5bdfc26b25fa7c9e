"""From a command line to one resolved configuration."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.config_files import merge_files, over_backbone, read_backbone
from ldm.errors import UserError
from ldm.training.cli import Options

logger = logging.getLogger(__name__)

#: How a drawn set is named where a folder is expected, and the dataset it stands for.
DRAWN, CONCEPT_SET = "playroom:", "ldm.data.playroom.PlayroomConcepts"
#: What else a drawn set's configuration says, and keeps when the pictures are others.
KEPT_OPTIONS = (
    "size", "seed", "flip_p", "sentence", "own_sentences", "subject_separation", "given_masks",
)  # fmt: skip

MCPL_TARGET = "ldm.models.diffusion.mcpl.MCPL"


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
    config = merge_files(flags.base)
    # A backbone is taken in before the overrides, which may be about what is in it.
    if isinstance(overrides.get("backbone"), str):
        config.backbone = overrides.pop("backbone")
    if isinstance(config.get("backbone"), str):
        config.backbone = read_backbone(config.backbone)
    config = over_backbone(cast(DictConfig, OmegaConf.merge(config, overrides)))
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
    if flags.scale_lr is not None:
        config.scale_lr = flags.scale_lr
    if flags.gpus is not None:
        OmegaConf.update(config, "lightning.trainer.gpus", flags.gpus, force_add=True)
    if flags.actual_resume:
        config.weights = flags.actual_resume
    if flags.batch_size is not None:
        OmegaConf.update(config, "data.params.batch_size", flags.batch_size, force_add=True)
    if flags.data_root:
        for part in ("train", "validation"):
            if OmegaConf.select(config, f"data.params.{part}.params") is not None:
                config.data.params[part] = point_at(config.data.params[part], flags.data_root)
    _list_runs(config, flags)
    for name, value in options.trainer.items():
        OmegaConf.update(config, f"lightning.trainer.{name}", yaml.safe_load(value), force_add=True)


def _list_runs(config: DictConfig, flags: Any) -> None:
    """Write several runs under ``runs``: one for every folder of images and every repeat.

    Raises:
        UserError: when there are no repeats.
    """
    if flags.repeats < 1:
        raise UserError(f"--repeats {flags.repeats}: give 1 or more")
    if flags.repeats == 1 and len(flags.data_roots) < 2:
        return
    seeds = [config.seed + number for number in range(flags.repeats)]
    config.runs = list_runs(flags.data_roots or [""], seeds)


def list_runs(roots: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A run for every folder of images and every seed, with distinct names."""
    names = [Path(root.removeprefix(DRAWN)).name for root in roots]
    runs = []
    for number, (root, name) in enumerate(zip(roots, names, strict=True)):
        folder = f"{name}-{number}" if names.count(name) > 1 else name
        for seed in seeds:
            parts = [folder, f"seed{seed}" if len(seeds) > 1 else ""]
            told = "-".join(part for part in parts if part)
            runs.append({"name": told, "data_root": root, "sentence": None, "seed": seed})
    return runs


def point_at(dataset: DictConfig, data_root: str) -> DictConfig:
    """The dataset's configuration with its pictures taken from `data_root`.

    ``playroom:<name>`` stands for a drawn set of that name, anything else for a folder.
    """
    params = dict(dataset.params)
    drawn = data_root.startswith(DRAWN)
    if drawn or dataset.target == CONCEPT_SET:
        kept = {key: params[key] for key in KEPT_OPTIONS if key in params}
        if drawn and "n_images" in params:
            kept["n_images"] = params["n_images"]
        target = CONCEPT_SET if drawn else "ldm.data.personalized.PersonalizedBase"
        name = {"name": data_root.removeprefix(DRAWN)} if drawn else {"data_root": data_root}
        return OmegaConf.create({"target": target, "params": {**kept, **name}})
    return OmegaConf.create({**dataset, "params": {**params, "data_root": data_root}})


def _apply_concept_flags(config: DictConfig, flags: Any) -> None:
    """Write the words to learn under ``concept``, and MCPL's terms under ``model.params``."""
    _refuse_contradictions(config, flags)
    concept: dict[str, Any] = {}
    if flags.sentence is not None:
        concept = {"sentence": flags.sentence, "strategy": flags.strategy or "one"}
    elif flags.placeholder_string is not None or flags.init_word is not None:
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
    elif flags.strategy is not None:
        OmegaConf.update(config, "concept.strategy", flags.strategy, force_add=True)
    if concept:
        config.concept = concept
    if flags.embedding_manager_ckpt:
        OmegaConf.update(config, "concept.embeddings", flags.embedding_manager_ckpt, force_add=True)
    _apply_terms(config, flags)


def _refuse_contradictions(config: DictConfig, flags: Any) -> None:
    """Refuse flags that say the words to learn in two ways, or belong to one that is not given."""
    given = flags.placeholder_string is not None
    if flags.sentence is not None and given:
        raise UserError("--sentence and --placeholder_string say the same thing: give one of them")
    in_sentence = flags.sentence is not None or (config.get("concept") or {}).get("sentence")
    if flags.init_word is not None and not given and in_sentence:
        raise UserError(
            "--init_word belongs to --placeholder_string; in a sentence write the start after "
            "a colon: --sentence 'a <name:init word>'"
        )
    if flags.pseudo_words and not given:
        raise UserError(
            f"--pseudo_words {','.join(flags.pseudo_words)!r} names words of "
            "--placeholder_string, which is not given"
        )


def _apply_terms(config: DictConfig, flags: Any) -> None:
    """The released regularisation flags, as parameters of the MCPL module."""
    params: dict[str, Any] = {}
    known = config.model.get("params") or {}
    mask = known.get("mask") or {}
    kind = flags.attn_mask_type or mask.get("kind") or "hard"
    if flags.attn_words and (mask or kind != "skip"):
        params["mask"] = {"kind": kind, "words": flags.attn_words}
    elif flags.attn_mask_type and mask:
        params["mask"] = {"kind": kind}
    if flags.contrast_words:
        with_mask = kind != "skip" and bool(mask or flags.attn_words)
        given = known.get("contrast") or {}
        params["contrast"] = {
            "words": flags.contrast_words,
            "temperature": _first(
                flags.infonce_temperature, given.get("temperature"), 0.3 if with_mask else 0.2
            ),
            "weight": _first(
                flags.infonce_scale, given.get("weight"), 0.00075 if with_mask else 0.0005
            ),
            "bind_adjectives": bool(flags.bound_adjectives or flags.sentence),
        }
        if known.get("reference_quirks") and "RELATE" in (flags.placeholder_string or ""):
            params["contrast"]["relate"] = True
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


def _first(*values: float | None) -> float:
    """The first of `values` that is given."""
    return next(value for value in values if value is not None)
