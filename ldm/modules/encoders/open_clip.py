"""OpenCLIP's text encoder as Stable Diffusion v2 uses it, read from its public checkpoints.

It is the same transformer as CLIP's under other key names, with the three projections of each
attention in one matrix. Inside it is therefore `FrozenCLIPEmbedder`; only the keys are translated.
"""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ldm.modules.encoders.clip import FrozenCLIPEmbedder, load_tokenizer
from ldm.modules.encoders.tokens import TextTokenizer

#: Text towers by the name of their architecture; all use GELU and 77 positions.
TOWERS: dict[str, dict[str, int]] = {
    "ViT-H-14": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
}
#: The byte pairs are those of CLIP.
TOKENIZER = "openai/clip-vit-large-patch14"
_OURS = "transformer.text_model."
_OUTSIDE = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


class OpenCLIPTokenizer(TextTokenizer):
    """CLIP's tokenizer, padded with zeros rather than with end tokens."""

    @property
    def special_ids(self) -> tuple[int, int, int]:
        """The ids of the start, end and padding tokens."""
        start, end, _ = super().special_ids
        return start, end, 0


class FrozenOpenCLIPEmbedder(FrozenCLIPEmbedder):
    """Captions through OpenCLIP's text transformer, frozen.

    With ``layer="penultimate"`` the last block is left out, as Stable Diffusion v2 does. The
    weights come from the checkpoint that is loaded; `version` (the public name of the original
    weights) is taken for the sake of public configurations and fetches nothing.

    Raises:
        ValueError: for an architecture or a layer that is not known.
    """

    def __init__(
        self,
        arch: str = "ViT-H-14",
        version: str = "laion2b_s32b_b79k",
        device: str | torch.device | None = None,
        max_length: int = 77,
        freeze: bool = True,
        layer: Literal["last", "penultimate"] = "last",
        *,
        tokenizer: str | Path = TOKENIZER,
        tower: dict[str, int] | None = None,
    ) -> None:
        if tower is None and arch not in TOWERS:
            raise ValueError(f"arch {arch!r} is not known; accepted are {', '.join(TOWERS)}")
        if layer not in ("last", "penultimate"):
            raise ValueError(f"layer {layer!r}: expected last or penultimate")
        sizes = dict(TOWERS[arch] if tower is None else tower)
        sizes["num_hidden_layers"] -= layer == "penultimate"
        settings = {
            "vocab_size": 49408,
            "intermediate_size": 4 * sizes["hidden_size"],
            "max_position_embeddings": 77,
            "hidden_act": "gelu",
            **sizes,
        }
        super().__init__(version, device, max_length, config=settings, tokenizer=tokenizer)
        self.text_tokenizer = OpenCLIPTokenizer(partial(load_tokenizer, str(tokenizer)), max_length)
        if not freeze:
            self.requires_grad_(True)
        self.register_load_state_dict_pre_hook(_translate)


def _translate(
    module: FrozenOpenCLIPEmbedder, state: dict[str, Any], prefix: str, *_ignored: object
) -> None:
    """Give the entries of a public checkpoint (``model.transformer.resblocks.``...) our names.

    What the encoder has no use for (the last block, the projection into the space of images) is
    left out.
    """
    theirs = prefix + "model."
    blocks = len(module.transformer.text_model.encoder.layers)
    for key in [key for key in state if key.startswith(theirs)]:
        value = state.pop(key)
        for name, part in _renamed(key.removeprefix(theirs), value, blocks).items():
            state[prefix + _OURS + name] = part


def _renamed(name: str, value: Tensor, blocks: int) -> dict[str, Tensor]:
    """One entry under our names: none, one, or the three projections of an attention."""
    if name in _OUTSIDE:
        return {_OUTSIDE[name]: value}
    if not name.startswith("transformer.resblocks."):
        return {}
    number, rest = name.removeprefix("transformer.resblocks.").split(".", 1)
    if int(number) >= blocks:
        return {}
    start = f"encoder.layers.{number}."
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        parts = zip("qkv", value.chunk(3), strict=True)
        return {f"{start}self_attn.{which}_proj.{kind}": part for which, part in parts}
    inner, kind = rest.rsplit(".", 1)
    return {f"{start}{_INSIDE[inner]}.{kind}": value} if inner in _INSIDE else {}
