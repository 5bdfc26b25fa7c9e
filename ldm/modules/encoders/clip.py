"""CLIP's text encoder as Stable Diffusion v1 uses it, under the key names of its public
checkpoints.

`transformers` has renamed the inside of its model over time. Here the names are those of the
checkpoints whatever is installed, and learnable words enter through a hook on the token
embedding, so nothing inside is patched.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.encoders.text import Manager, TextEncoder
from ldm.modules.encoders.tokens import TextTokenizer, pretrained_tokenizer
from ldm.util import freeze

#: Sizes of the encoder of Stable Diffusion v1, so that its public config builds without a download.
_KNOWN: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14": {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "projection_dim": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
    }
}
_PREFIX = "text_model."
_PARTS = ("embeddings.", "encoder.", "final_layer_norm.")
_POSITIONS = "text_model.embeddings.position_ids"
_OFFLINE = (
    "go online once, give a local folder as `version`, or (for the weights) load a checkpoint that "
    "has them"
)


class CLIPTextTransformer(nn.Module):
    """A text model of `transformers` with the keys of public checkpoints (``text_model.``...).

    Files without the prefix ``text_model.`` and with missing or floating-point ``position_ids``
    load too.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers import CLIPTextModel

        model = CLIPTextModel(config)
        # Before transformers 5 the model wrapped another one under this name.
        self.text_model: Any = getattr(model, "text_model", model)
        embeddings = self.text_model.embeddings
        positions = torch.arange(config.max_position_embeddings)[None]
        del embeddings.position_ids
        embeddings.register_buffer("position_ids", positions, persistent=True)
        self.filled = False
        self.register_load_state_dict_pre_hook(_rename)

    def forward(self, ids: Tensor) -> Tensor:
        """The last hidden states (b, n, width) of token ids (b, n), after the final norm."""
        return self.text_model(input_ids=ids).last_hidden_state


def _rename(
    module: CLIPTextTransformer, state: dict[str, Any], prefix: str, *_ignored: object
) -> None:
    """Give the entries of an older or newer file the names of public checkpoints."""
    for key in [key for key in state if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        if name.startswith(_PARTS):
            state[prefix + _PREFIX + name] = state.pop(key)
    if any(key.startswith(prefix + _PREFIX) for key in state):
        # A constant: a stored copy can only be equal, or damaged by a conversion to half precision.
        state[prefix + _POSITIONS] = module.text_model.embeddings.position_ids
        module.filled = True


class FrozenCLIPEmbedder(TextEncoder):
    """Captions through CLIP's tokenizer and text transformer, frozen.

    `version` is a name or a local folder (with its weights, if it has them). With `config` (a
    mapping, a configuration of `transformers`, or the path of its JSON file) nothing is looked
    up. Weights come from the checkpoint that is loaded; if none was loaded before the first use,
    those of `version` are fetched.

    Raises:
        ValueError: when `max_length` exceeds the positions of the model.
        OSError: when something must be fetched and cannot be; says what to do.
    """

    def __init__(
        self,
        version: str = "openai/clip-vit-large-patch14",
        device: str | torch.device | None = None,
        max_length: int = 77,
        *,
        config: Any = None,
        tokenizer: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.max_length = max_length
        settings = _settings(version, config)
        positions = settings.max_position_embeddings
        if max_length > positions:
            raise ValueError(f"max_length {max_length} exceeds the model's {positions} positions")
        self.width = settings.hidden_size
        self.transformer = CLIPTextTransformer(settings)
        self._fetch = version if config is None else None
        if config is None and _has_weights(Path(version)):
            self.load_pretrained(version)
        elif config is None and Path(version).is_dir():
            self._fetch = None
        source = str(tokenizer if tokenizer is not None else version)
        self.text_tokenizer = TextTokenizer(partial(load_tokenizer, source), max_length)
        self.freeze()
        if device is not None:
            self.to(device)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of `transformers` itself."""
        return self.require_tokenizer().backend

    @property
    def token_embedding(self) -> nn.Embedding:
        """The table of token embeddings (vocabulary, width)."""
        table: nn.Embedding = self.transformer.text_model.embeddings.token_embedding
        return table

    def freeze(self) -> None:
        """Switch to inference for good: no gradients, evaluation mode."""
        freeze(self)

    def load_pretrained(self, version: str) -> None:
        """Fill the model with the published weights of `version` (a name or a local folder)."""
        from transformers import CLIPTextModel

        try:
            model = CLIPTextModel.from_pretrained(version)
        except (OSError, ValueError) as error:
            raise OSError(f"no weights for the text encoder {version!r}: {_OFFLINE}") from error
        self.transformer.load_state_dict(model.state_dict())

    def encode_tokens(self, ids: Tensor, embedding_manager: Manager | None = None) -> Tensor:
        """The context (b, n, width) of token ids (b, n), with learned words put in by the
        manager."""
        if self._fetch is not None and not self.transformer.filled:
            self.load_pretrained(self._fetch)
        ids = ids.to(self.device)
        if embedding_manager is None:
            return self.transformer(ids)

        def learned(_module: nn.Module, _args: tuple[Any, ...], embedded: Tensor) -> Tensor:
            return embedding_manager(ids, embedded)

        hook = self.token_embedding.register_forward_hook(learned)
        try:
            return self.transformer(ids.clamp(max=self.vocab_size - 1))
        finally:
            hook.remove()


def _settings(version: str, config: Any) -> Any:
    """The configuration of the text model, without a download where possible."""
    from transformers import CLIPTextConfig

    if isinstance(config, str | Path):
        return CLIPTextConfig.from_json_file(str(config))
    if isinstance(config, Mapping):
        return CLIPTextConfig(**config)
    if config is not None:
        return config
    if version in _KNOWN and not Path(version).is_dir():
        return CLIPTextConfig(**_KNOWN[version])
    try:
        return CLIPTextConfig.from_pretrained(version)
    except (OSError, ValueError) as error:
        raise OSError(f"no configuration for the text encoder {version!r}: {_OFFLINE}") from error


def _has_weights(folder: Path) -> bool:
    """Whether a local folder holds weights and not just a configuration."""
    return folder.is_dir() and any(
        path.suffix in {".safetensors", ".bin"} for path in folder.iterdir()
    )


def load_tokenizer(source: str) -> Any:
    """CLIP's fast tokenizer, by name or from a local folder.

    Raises:
        OSError: when it is neither here nor to be had; says what to do.
    """
    from transformers import CLIPTokenizerFast  # type: ignore[attr-defined, unused-ignore]

    advice = "go online once, or give a local folder with vocab.json and merges.txt as `tokenizer`"
    return pretrained_tokenizer(CLIPTokenizerFast, source, advice)
