"""Checkpoints and embedding files: read them safely, load them with a report, write atomically.

A ``.ckpt`` or ``.pt`` from a stranger cannot run code here: only tensors and plain containers are
made (see :mod:`ldm.safe_pickle`). ``docs/formats.md`` describes the layouts.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.weight_files import (
    file_kind,
    find_file,
    read_checkpoint,
    safetensors_metadata,
    save_safetensors,
    save_torch,
    write_atomic,
)

__all__ = [
    "Embeddings",
    "LoadReport",
    "fix_old_keys",
    "load_with_report",
    "read_checkpoint",
    "read_embeddings",
    "read_state_dict",
    "safetensors_metadata",
    "save_safetensors",
    "save_torch",
    "write_atomic",
]

logger = logging.getLogger(__name__)

#: The parts without which a latent diffusion model is no model.
CORE = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
#: Names under which programs keep the weights inside a checkpoint, in the order of trial.
_WRAPPERS = (
    "state_dict",
    "state_dict_ema",
    "ema_state_dict",
    "model_state_dict",
    "model_ema",
    "ema",
    "model",
    "module",
)
#: Recomputed when a model is built, so it does not matter whether a file has them.
_RECOMPUTED = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped",
    "posterior_mean_coef1", "posterior_mean_coef2",
)  # fmt: skip
#: Weights whose shape tells a setting of the model: end of the key, axis, what it is called.
_TELLING = (
    (r"attn2\.to_k\.weight", 1, "context_dim"),
    (r"diffusion_model\.input_blocks\.0\.0\.weight", 1, "in_channels"),
    (r"diffusion_model\.input_blocks\.0\.0\.weight", 0, "model_channels"),
    (r"decoder\.conv_in\.weight", 1, "z_channels"),
    (r"quantize\.embedding\.weight", 0, "n_embed of the codebook"),
    (r"(token_emb|token_embedding)\.weight", 1, "width of the text encoder"),
    (r"(token_emb|token_embedding)\.weight", 0, "vocabulary size"),
    (r"string_to_param_dict\..*", 0, "vectors of a learned word"),
)


def read_state_dict(
    path: str | Path, map_location: str | torch.device | None = "cpu"
) -> dict[str, Tensor]:
    """The weights in a checkpoint file: name -> tensor.

    Accepts plain state dicts, Lightning checkpoints of any version, files with only averaged
    (EMA) weights and ``.safetensors``. Names are those of the file; see :func:`fix_old_keys`.

    Raises:
        ValueError: when the file holds no weights; says what it holds.
    """
    content: Mapping[str, Any] = read_checkpoint(path, map_location)
    if not content:
        raise ValueError(
            f"{path} holds nothing. Textual-inversion runs with a frozen model save an emptied "
            "checkpoint: their result is the file embeddings_gs-*.pt beside it"
        )
    if "string_to_param" in content:
        raise ValueError(
            f"{path} holds learned words, not a model: give it as the embedding file "
            "(--embedding_path)"
        )
    for name in _WRAPPERS:
        if isinstance(content.get(name), Mapping) and _tensors(content[name]):
            content = content[name]
            break
    state = _tensors(content)
    if not state:
        raise ValueError(f"{path} holds no weights: its entries are {_some(content)}")
    return state


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _some(names: Iterable[object], count: int = 8) -> str:
    texts = [str(name) for name in names]
    return ", ".join(texts[:count]) + (f", ... ({len(texts)} in all)" if len(texts) > count else "")


def fix_old_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` under the names that models have today: all fix-ups of historical files.

    Averaged weights (``model_ema.``) and learned words (``embedding_manager.``) are kept. A text
    encoder of CLIP renames its own keys when it is loaded.
    """
    fixed = dict(state)
    # DistributedDataParallel and DeepSpeed put a name of theirs before all others.
    for prefix in ("module.", "_forward_module."):
        if fixed and all(key.startswith(prefix) for key in fixed):
            fixed = {key.removeprefix(prefix): value for key, value in fixed.items()}
    # torch.compile puts one before the names of the compiled part.
    fixed = {key.replace("_orig_mod.", ""): value for key, value in fixed.items()}
    # Web interfaces store the sampler's tables, early versions the loss weights; none is needed.
    drop = {
        "ddim_sigmas",
        "ddim_alphas",
        "ddim_alphas_prev",
        "ddim_sqrt_one_minus_alphas",
        "lvlb_weights",
    }
    fixed = {key: value for key, value in fixed.items() if key not in drop}
    # Merged models store CLIP's position numbers as floats, since averaging made them so.
    for key, value in fixed.items():
        if key.endswith("embeddings.position_ids") and value.is_floating_point():
            fixed[key] = value.round().long()
    return fixed


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint did not fill, what it had besides, and what was of another shape."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    loaded: int = 0

    def summary(self) -> str:
        """One line: how many tensors were loaded; what did not match, by part of the model."""
        parts = [f"loaded {self.loaded} tensors"]
        for name in ("missing", "unexpected", "mismatched"):
            keys = getattr(self, name)
            groups = Counter(_part(key) for key in keys)
            if keys:
                parts.append(
                    f"{name} {len(keys)} ({', '.join(f'{k}: {n}' for k, n in groups.items())})"
                )
        return "; ".join(parts)


def _part(key: str) -> str:
    """The part of a model that a key belongs to: its first name."""
    return key.split(".", 1)[0] if "." in key else "tables"


def load_with_report(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    ignore: Iterable[str] = (),
    core: Iterable[str] = CORE,
    source: str | Path = "the checkpoint",
) -> LoadReport:
    """Load `state` into `module` and log what did not match.

    Keys that begin with one of `ignore` are left out. `core` are prefixes of which at least one
    key must be there if the module has any; `source` names the file in messages. Without
    ``model.`` weights but with averaged ones (``model_ema.``), these are taken.

    Raises:
        ValueError: when a core part is absent, or shapes differ (nothing is loaded then).
    """
    ignore = tuple(ignore)
    state = {k: v for k, v in fix_old_keys(state).items() if not (ignore and k.startswith(ignore))}
    state = _averaged_as_weights(module, state)
    own = {key: tensor.shape for key, tensor in module.state_dict().items()}
    _check_core(own, state, [c for c in core if not (ignore and c.startswith(ignore))], source)
    _check_shapes(own, state, source)
    try:
        result = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # a shape that only shows after the module's own renaming
        raise ValueError(f"{source} does not fit: {error}") from error
    report = LoadReport(
        missing=tuple(k for k in result.missing_keys if not (ignore and k.startswith(ignore))),
        unexpected=tuple(result.unexpected_keys),
        loaded=len(state) - len(result.unexpected_keys),
    )
    serious = [
        k
        for k in report.missing
        if k not in _RECOMPUTED
        and not k.startswith(("model_ema.", "embedding_"))
        and ".to_logits." not in k  # stored by the text encoder, never used
    ]
    logger.log(logging.WARNING if serious else logging.INFO, "%s: %s", source, report.summary())
    if serious:
        logger.warning("%s: not in the file, left as built: %s", source, _some(serious))
    return report


def _averaged_as_weights(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state`; if it has averaged weights only (their names have no dots), these as ``model.``."""
    has_ema = any(key.startswith("model_ema.") for key in state)
    if not has_ema or any(key.startswith("model.") for key in state):
        return state
    names = {
        "model_ema." + n.removeprefix("model.").replace(".", ""): n
        for n, _ in module.named_parameters()
    }
    return state | {names[key]: value for key, value in state.items() if key in names}


def _check_core(
    own: Iterable[str], state: Mapping[str, Tensor], core: Iterable[str], source: object
) -> None:
    own = list(own)
    for prefix in core:
        if any(k.startswith(prefix) for k in own) and not any(k.startswith(prefix) for k in state):
            groups = sorted({".".join(key.split(".")[:2]) for key in state})
            raise ValueError(
                f"{source} has no weights for '{prefix}*', without which the model cannot work; "
                f"it has {_some(groups)}. Give the checkpoint of the whole model"
            )
    if (
        own
        and not any(key in state for key in own)
        and not any(_renamed(key, state) for key in own[:50])
    ):
        inside = sorted({key[: -len(own[-1])] for key in state if key.endswith("." + own[-1])})
        advice = f"; the file has them under '{inside[0]}*'" if inside else ""
        raise ValueError(
            f"{source} has none of the {len(own)} weights needed ({_some(own, 2)}){advice}; "
            f"it has {_some(state, 4)}"
        )


def _renamed(key: str, state: Mapping[str, Tensor]) -> bool:
    """Whether `state` has `key` but for ``text_model.``, in which CLIP's versions differ."""
    return any(k.replace("text_model.", "") == key.replace("text_model.", "") for k in state)


def _check_shapes(
    own: Mapping[str, torch.Size], state: Mapping[str, Tensor], source: object
) -> None:
    wrong = [key for key, shape in own.items() if key in state and state[key].shape != shape]
    if not wrong:
        return
    hints = []
    for pattern, axis, name in _TELLING:
        for key in wrong:
            here, there = own[key], state[key].shape
            if (
                re.search(rf"(^|\.){pattern}$", key)
                and len(here) == len(there) > axis
                and here[axis] != there[axis]
            ):
                hints.append(f"{name} {here[axis]} here vs {there[axis]} in the file")
                break
    seems = f": {', '.join(hints)}" if hints else ""
    examples = "; ".join(f"{k} {tuple(own[k])} here vs {tuple(state[k].shape)}" for k in wrong[:3])
    raise ValueError(
        f"{source} seems to be for another architecture{seems}. {len(wrong)} of {len(own)} "
        f"weights differ in shape ({examples}). Use the config that belongs to this checkpoint"
    )


@dataclass(frozen=True)
class Embeddings:
    """Learned words read from a file.

    `vectors`: word -> (k, width), float32 on the CPU. `tokens`: word -> vocabulary id, where the
    file has one. `source_format` names the layout.
    """

    vectors: dict[str, Tensor]
    tokens: dict[str, int] = field(default_factory=dict)
    source_format: str = ""


#: Keys by which multi-encoder tools store one word, and the encoder each belongs to.
_ENCODERS = {
    "clip_l": "clip_l",
    "clip_g": "clip_g",
    "text_encoders_0": "clip_l",
    "text_encoders_1": "clip_g",
}


def read_embeddings(path: str | Path) -> Embeddings:
    """The learned words in a file of any of the usual tools.

    Textual inversion and MCPL (``string_to_param``, of any torch version), AUTOMATIC1111 (the
    same with a ``name``), diffusers (word -> vectors, with ``word_1``, ``word_2``... as further
    vectors), kohya (``emb_params``: called after the file) and SDXL (``clip_l``, ``clip_g``:
    called after the file and the encoder).

    Ids stand beside the words in the first two, and in the header of this project's
    ``.safetensors``.

    Raises:
        ValueError: when the layout is none of these; lists the keys found.
    """
    content, stem = read_checkpoint(path), Path(path).stem
    found = (
        _read_textual_inversion(content)
        or _read_named_after_file(content, stem)
        or _read_words(content)
    )
    if found is None or not found.vectors:
        raise ValueError(
            f"{path} has no known layout of learned words: found the keys {_some(content)}; known "
            "are 'string_to_param' (textual inversion), word -> vectors (diffusers), 'emb_params' "
            "(kohya), 'clip_l' and 'clip_g' (SDXL)"
        )
    vectors = {word: _as_rows(word, value, path) for word, value in found.vectors.items()}
    return Embeddings(vectors, found.tokens or _header_ids(path), found.source_format)


def _header_ids(path: str | Path) -> dict[str, int]:
    """The ids in the header of a ``.safetensors``; none where other programs left none there."""
    path = find_file(path)
    if file_kind(path) != "safetensors":
        return {}
    try:
        ids = json.loads(safetensors_metadata(path).get("string_to_token", "{}"))
    except (json.JSONDecodeError, RecursionError):
        return {}
    # The header is free text, of which a stranger may make anything; an id is an int64.
    items = ids.items() if isinstance(ids, dict) else ()
    return {word: n for word, n in items if type(n) is int and 0 <= n < 2**63}


def _as_rows(word: str, value: object, path: str | Path) -> Tensor:
    if (
        not isinstance(value, Tensor)
        or value.ndim not in (1, 2)
        or not value.numel()
        or not value.is_floating_point()
    ):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{path}: the word {word!r} should be (vectors, width) or (width,) numbers, "
            f"it is {shape}"
        )
    return value.detach().float().reshape(-1, value.shape[-1]).clone()


def _read_textual_inversion(content: Mapping[str, Any]) -> Embeddings | None:
    params, ids = content.get("string_to_param"), content.get("string_to_token")
    if not isinstance(params, Mapping):
        return None
    params, name = (
        {str(k): v for k, v in params.items() if isinstance(v, Tensor)},
        content.get("name"),
    )
    if isinstance(name, str) and name and list(params) == ["*"]:
        return Embeddings(
            {name: params["*"]}, {}, "a1111"
        )  # the id stored is that of "*", not of the name
    ids = ids if isinstance(ids, Mapping) else {}
    tokens = {str(word): int(ids[word]) for word in ids if isinstance(ids[word], int | Tensor)}
    return Embeddings(params, tokens, "textual_inversion")


def _read_named_after_file(content: Mapping[str, Any], stem: str) -> Embeddings | None:
    if isinstance(content.get("emb_params"), Tensor):
        return Embeddings({stem: content["emb_params"]}, {}, "kohya")
    if content and all(key in _ENCODERS for key in content):
        return Embeddings(
            {f"{stem}_{_ENCODERS[key]}": value for key, value in content.items()}, {}, "sdxl"
        )
    return None


def _read_words(content: Mapping[str, Any]) -> Embeddings | None:
    """Words as the keys; one-dimensional ``w``, ``w_1``, ``w_2``... are the vectors of one word."""
    if not content or not all(isinstance(v, Tensor) and v.ndim <= 2 for v in content.values()):
        return None
    if any(key.endswith((".weight", ".bias")) for key in content):
        return None  # a model
    words: dict[str, Tensor] = {}
    for word, value in content.items():
        first, _, number = word.rpartition("_")
        if value.ndim == 1 and number.isdecimal() and _follows(content, first, int(number)):
            continue
        further = [f"{word}_{i}" for i in range(1, len(content)) if _follows(content, word, i)]
        words[word] = (
            torch.stack([value, *(content[name] for name in further)]) if further else value
        )
    return Embeddings(words, {}, "diffusers")


def _follows(content: Mapping[str, Tensor], word: str, number: int) -> bool:
    """Whether ``word``, ``word_1``, ... ``word_number`` are all there, vectors of one width."""
    first = content.get(word)
    if first is None or first.ndim != 1 or not 0 < number < len(content):
        return False
    names = [f"{word}_{i}" for i in range(1, number + 1)]
    return all(name in content and content[name].shape == first.shape for name in names)
