"""A container for the vectors of words of any spelling, and putting them into embedded text."""

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

import torch
from torch import Tensor, nn

#: Methods of a module that share their name with a word, and that a parent module never calls.
_METHODS_NOT_CALLED_ON_PARTS = ("to", "half", "double", "float", "type", "eval", "forward")


class WordVectors(nn.Module):
    """Word -> vectors (k, d), with the state-dict keys of ``nn.ParameterDict``.

    Unlike there, a word may be spelt like a method of a module ("to", "half", "keys") or have
    dots in it ("st.bernard").
    """

    _parameters: dict[str, nn.Parameter]  # type: ignore[assignment]  # never None here

    def __init__(self, trainable: bool = True) -> None:
        super().__init__()
        self._trainable = trainable

    @torch.no_grad()
    def assign(self, vectors: Mapping[str, Tensor]) -> None:
        """Hold exactly these words. Parameters that keep their shape stay the same objects."""
        held = dict(self._parameters)
        place = self.device
        self._parameters.clear()
        for word, value in vectors.items():
            old = held.get(word)
            if old is not None and old.shape == value.shape and not old.is_meta:
                old.copy_(value)
                self._parameters[word] = old
            else:
                copy = value.detach().clone().to(place or value.device)
                self._parameters[word] = nn.Parameter(copy, requires_grad=self._trainable)

    @property
    def device(self) -> torch.device | None:
        """Where the vectors are, if there are any."""
        return next((vectors.device for vectors in self._parameters.values()), None)

    def __getitem__(self, word: str) -> nn.Parameter:
        return self._parameters[word]

    def __contains__(self, word: object) -> bool:
        return word in self._parameters

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def keys(self) -> KeysView[str]:
        """The words."""
        return self._parameters.keys()

    def values(self) -> ValuesView[nn.Parameter]:
        """The vectors of each word."""
        return self._parameters.values()

    def items(self) -> ItemsView[str, nn.Parameter]:
        """Words and vectors."""
        return self._parameters.items()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # Not strict inside: nn.Module takes the part before a dot for a submodule.
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, False, missing_keys, unexpected_keys, error_msgs
        )
        if strict:
            given = {key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)}
            missing_keys += [prefix + word for word in self if word not in given]
            unexpected_keys += [prefix + word for word in sorted(given) if word not in self]


def splice(
    ids: Tensor,
    embedded: Tensor,
    table: Tensor,
    word_ids: Tensor,
    starts: Tensor,
    counts: Tensor,
    longest: int,
) -> tuple[Tensor, Tensor]:
    """Ids (b, n) and embeddings (b, n, d) with learned vectors in place of word tokens.

    Word w is the token ``word_ids[w]`` and becomes the ``counts[w]`` rows of `table` (m, d) from
    ``starts[w]``; `longest` is the largest count. What follows a word of several vectors moves
    right; rows are cut to n. Nothing is changed in place, and no value has to leave the device.
    """
    hits = ids[..., None] == word_ids
    is_word, which = hits.any(-1), hits.int().argmax(-1)
    row = starts[which]
    if longest > 1:
        count = torch.where(is_word, counts[which], 1)
        ends = count.cumsum(1)
        slots = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        source = torch.searchsorted(ends, slots.contiguous(), right=True)
        row = row.gather(1, source) + slots - (ends - count).gather(1, source)
        ids, is_word = ids.gather(1, source), is_word.gather(1, source)
        embedded = embedded.gather(1, source[..., None].expand_as(embedded))
    # Rows of ordinary tokens are looked up too and then not used.
    learned = table[torch.where(is_word, row, 0)]
    return ids, torch.where(is_word[..., None], learned, embedded)


def parameter_dict(vectors: Mapping[str, Tensor]) -> nn.ParameterDict:
    """An ``nn.ParameterDict`` of words of any spelling, which its own methods could not build.

    Other programs read every word from it by ``["word"]``, but for the few that are spelt like a
    method they need (``keys``, ``train``, ...); those they find in ``_parameters`` only.
    """
    held = nn.ParameterDict()
    for word, value in vectors.items():
        parameter = nn.Parameter(value)
        held._parameters[word] = parameter
        held._keys[word] = None
        if word in _METHODS_NOT_CALLED_ON_PARTS:
            # Reading looks for an attribute: put the vectors in front of the method of that name.
            held.__dict__[word] = parameter
    return held
