"""From a command line to one resolved configuration."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.config_files import merge_files, over_backbone, read_backbone
from ldm.errors import UserError
from ldm.prompts.sentence import as_words, is_symbol
from ldm.training.cli import Options

logger = logging.getLogger(__name__)

#: How a drawn set is named where a folder is expected, and the dataset it stands for.
DRAWN, CONCEPT_SET = "playroom:", "ldm.data.playroom.PlayroomConcepts"
#: Options that say which pictures a dataset has, and do not hold for others in their place.
OF_PICTURES = frozenset({"name", "folder", "data_root"})

#: The datasets whose pictures are shown with the sentences of a run.
DATASETS = ("train", "validation")
#: What makes a checkpoint due; only one of them may be given.
TRIGGERS = ("every_n_train_steps", "every_n_epochs", "train_time_interval")
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
    _forget_triggers(config, overrides)
    config = over_backbone(cast(DictConfig, OmegaConf.merge(config, overrides)))
    if "model" not in config or "target" not in config.model:
        raise UserError(f"no 'model' with a 'target' in {', '.join(map(str, flags.base))}")
    _apply_concept_flags(config, flags)
    _apply_run_flags(config, options)
    return config


def _forget_triggers(config: DictConfig, overrides: DictConfig) -> None:
    """Take out what the files say of when checkpoints are due, if an override says it."""
    place = "lightning.modelcheckpoint.params"
    said = OmegaConf.select(overrides, place) or {}
    known = OmegaConf.select(config, place) or {}
    if any(name in said for name in TRIGGERS):
        for name in TRIGGERS:
            known.pop(name, None)


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
        point_data_at(config, flags.data_root)
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


def point_data_at(config: DictConfig, data_root: str) -> None:
    """Take the pictures from `data_root`, those to validate on as well, if there are any."""
    for part, dataset in shown_datasets(config).items():
        config.data.params[part] = point_at(dataset, data_root)


def shown_datasets(config: DictConfig) -> dict[str, DictConfig]:
    """The configurations of the pictures to learn from and, if there are any, to validate on."""
    found = {part: OmegaConf.select(config, f"data.params.{part}") for part in DATASETS}
    return {part: dataset for part, dataset in found.items() if dataset is not None}


def point_at(dataset: DictConfig, data_root: str) -> DictConfig:
    """The dataset's configuration with its pictures taken from `data_root`.

    ``playroom:<name>`` stands for a drawn set of that name, anything else for a folder. Every
    option stays that does not say which pictures there were: whether there is such an option is for
    the dataset to say.
    """
    params = dict(dataset.get("params") or {})
    drawn, was_drawn = data_root.startswith(DRAWN), dataset.get("target") == CONCEPT_SET
    if not drawn and not was_drawn:
        return OmegaConf.create({**dataset, "params": {**params, "data_root": data_root}})
    gone = OF_PICTURES if drawn else OF_PICTURES | {"n_images"}
    kept = {name: value for name, value in params.items() if name not in gone}
    target = CONCEPT_SET if drawn else "ldm.data.personalized.PersonalizedBase"
    pictures = {"name": data_root.removeprefix(DRAWN)} if drawn else {"data_root": data_root}
    return OmegaConf.create({"target": target, "params": {**kept, **pictures}})


# -- the words to learn


def public_params(config: DictConfig) -> Mapping[str, Any]:
    """What a public ``personalization_config`` says; empty without one."""
    return OmegaConf.select(config, "model.params.personalization_config.params") or {}


def public_words(config: DictConfig) -> tuple[str, list[str]] | None:
    """The sentence of a public ``personalization_config`` and its words to learn, or ``None``.

    Its placeholders in a row are the sentence. ``presudo_words`` are the words of it to learn;
    without them the placeholders are.
    """
    params = public_params(config)
    given, named = params.get("placeholder_strings"), as_words(params.get("presudo_words"))
    places = [given] if isinstance(given, str) else list(given or named)
    return (" ".join(places), list(named or places)) if places else None


def public_start(config: DictConfig, words: Sequence[str]) -> str | None:
    """What a public ``personalization_config`` starts the placeholders among `words` from.

    Its ``initializer_words``; where they are not as many, the first for all. ``None`` without any.
    """
    given = public_params(config).get("initializer_words") or ()
    starts = [given] if isinstance(given, str) else [word for word in given if word]
    places = words if len(words) == 1 else [word for word in words if is_symbol(word)]
    if not places:
        return None
    return ",".join(starts if len(starts) == len(places) else starts[:1]) or None


def _apply_concept_flags(config: DictConfig, flags: Any) -> None:
    """Write the words to learn under ``concept``, and MCPL's terms under ``model.params``."""
    _refuse_contradictions(config, flags)
    if flags.sentence is not None:
        kept = {"strategy": "one", **_known(config, "strategy", "embeddings")}
        config.concept = {**kept, "sentence": flags.sentence}
    elif flags.placeholder_string is not None or flags.init_word is not None:
        config.concept = _released_concept(config, flags)
    if flags.strategy is not None:
        OmegaConf.update(config, "concept.strategy", flags.strategy, force_add=True)
    if flags.embedding_manager_ckpt:
        OmegaConf.update(config, "concept.embeddings", flags.embedding_manager_ckpt, force_add=True)
    _apply_terms(config, flags)


def _released_concept(config: DictConfig, flags: Any) -> dict[str, Any]:
    """The words that ``--placeholder_string`` says, or without it the configuration; else "*".

    Raises:
        UserError: for a sentence of which nobody says which words to learn.
    """
    known = config.get("concept") or {}
    if flags.placeholder_string is None and known.get("placeholder_string") is not None:
        return {**known, "init_word": flags.init_word}
    sentence, words = flags.placeholder_string, flags.pseudo_words
    if sentence is None:
        sentence, words = public_words(config) or ("*", ["*"])
    if not words and " " in sentence:
        raise UserError(
            f"--placeholder_string {sentence!r} is a sentence: say which words to learn, "
            "for example --pseudo_words '*,@'"
        )
    words = words or [sentence]
    start = public_start(config, words) if flags.init_word is None else flags.init_word
    return {
        "placeholder_string": sentence,
        "pseudo_words": words,
        "adjectives": flags.bound_adjectives or [],
        "init_word": start,
        **_known(config, "embeddings"),
    }


def _known(config: DictConfig, *keys: str) -> dict[str, Any]:
    """What the configuration says of these parts of ``concept``."""
    concept = config.get("concept") or {}
    return {key: concept[key] for key in keys if concept.get(key) is not None}


def _refuse_contradictions(config: DictConfig, flags: Any) -> None:
    """Refuse flags that say the words to learn in two ways, or belong to one that is not given."""
    given = flags.placeholder_string is not None
    if flags.sentence is not None and given:
        raise UserError("--sentence and --placeholder_string say the same thing: give one of them")
    if flags.strategy is not None and given:
        raise UserError(
            f"--strategy {flags.strategy} is for --sentence: of a --placeholder_string the words "
            "to learn are named with --pseudo_words"
        )
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
    if flags.bound_adjectives and not given:
        raise UserError(
            f"--adj_aug_infonce {','.join(flags.bound_adjectives)!r} names words of "
            "--placeholder_string, which is not given; in a sentence write the adjective in "
            "brackets: --sentence 'a [brown] <teddy:bear>'"
        )


# -- MCPL's terms


def _apply_terms(config: DictConfig, flags: Any) -> None:
    """The released regularisation flags, as parameters of the MCPL module."""
    known = config.model.get("params") or {}
    params: dict[str, Any] = {}
    mask = _mask_terms(known, flags, _attn_words(config, flags))
    if mask:
        params["mask"] = mask
    under = {**(known.get("mask") or {}), **mask}
    contrast = _contrast_terms(known, flags, masked=bool(under) and under.get("kind") != "skip")
    if contrast or (contrast is None and known.get("contrast")):
        params["contrast"] = contrast
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


def _attn_words(config: DictConfig, flags: Any) -> list[str]:
    """The words whose attention makes the mask: as given, else a public configuration's.

    A part ``mask`` of the configuration says its own.
    """
    if flags.attn_words is not None or "mask" in (config.model.get("params") or {}):
        return flags.attn_words or []
    return list(as_words(public_params(config).get("attn_words")))


def _mask_terms(known: Mapping[str, Any], flags: Any, words: list[str]) -> dict[str, Any]:
    """What the flags change in AttnMask; to skip a mask that there is not changes nothing."""
    mask = known.get("mask") or {}
    kind = flags.attn_mask_type or mask.get("kind") or "hard"
    if not (words or flags.attn_mask_type) or (kind == "skip" and not mask):
        return {}
    return {"kind": kind, "words": words} if words else {"kind": kind}


def _contrast_terms(known: Mapping[str, Any], flags: Any, *, masked: bool) -> dict[str, Any] | None:
    """What the flags change in PromptCL; ``None`` switches it off, as an empty list of words does.

    Raises:
        UserError: when its temperature or weight is given and there is none.
    """
    tuned = {"temperature": flags.infonce_temperature, "weight": flags.infonce_scale}
    tuned = {name: value for name, value in tuned.items() if value is not None}
    if flags.contrast_words is not None and not flags.contrast_words:
        return None
    given = known.get("contrast") or {}
    if not flags.contrast_words and (given or not tuned):
        return tuned
    if not flags.contrast_words:
        raise UserError(
            "--infonce_temperature and --infonce_scale are those of PromptCL, which this "
            "configuration does not have: name its words with --pseudo_words_infonce '*,@'"
        )
    default = {"temperature": 0.3, "weight": 0.00075} if masked else {
        "temperature": 0.2, "weight": 0.0005}  # fmt: skip
    set_here = {name: given[name] for name in default if given.get(name) is not None}
    terms = {"words": flags.contrast_words, **default, **set_here, **tuned}
    says_bound = (flags.placeholder_string, flags.bound_adjectives, flags.sentence)
    if any(each is not None for each in says_bound):
        terms["bind_adjectives"] = bool(flags.bound_adjectives or flags.sentence)
    else:
        terms["bind_adjectives"] = given.get("bind_adjectives", False)
    if known.get("reference_quirks") and "RELATE" in (flags.placeholder_string or ""):
        terms["relate"] = True
    return terms
