"""The learned words: their vectors, and how they enter a text encoder.

Textual inversion learns embeddings of new words and nothing else. Names, state-dict keys and
files are those of the public ``ldm.modules.embedding_manager``; a word may be spelt in any way
and may have several vectors.
"""

import inspect
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint import read_embeddings, save_safetensors, save_torch
from ldm.modules.encoders.text import TextEncoder
from ldm.modules.encoders.tokens import TextTokenizer, WordToken
from ldm.modules.word_vectors import WordVectors, parameter_dict, splice
from ldm.prompts.sentence import RANDOM, LearnableWord, as_words, released_words
from ldm.prompts.spans import Caption, WordSpan, find_words
from ldm.prompts.templates import PER_IMAGE_TOKENS

logger = logging.getLogger(__name__)

#: With ``progressive_words``, one more vector of each word takes part every so many counts.
PROGRESSIVE_SCALE = 2000
_COUNTER = "progressive_counter"
#: Ends of file names in whose place ``.safetensors`` comes; any other is part of the name.
_TORCH_SUFFIXES = (".pt", ".bin", ".ckpt")


class EmbeddingManager(nn.Module):
    """Learned words for a text encoder: ``manager(ids, embedded)`` puts their vectors in.

    The words are `words`, or else, as in the released configs, `presudo_words` or
    `placeholder_strings` with `initializer_words` in the same order and `num_vectors_per_token`
    vectors each. A word without an init starts from its own spelling; nothing is random unless
    the init is ``"random"``. Call :meth:`initialize` again when the encoder gets its weights
    after this was built.

    Raises:
        ValueError: when no word is given or an init has no tokens.
        TypeError: for an unknown argument, by name.
    """

    _ids: Tensor
    _starts: Tensor
    _sizes: Tensor

    def __init__(  # noqa: PLR0913  (the public arguments, and ours by keyword)
        self,
        embedder: TextEncoder,
        placeholder_strings: str | Sequence[str] | None = None,
        initializer_words: str | Sequence[str | None] | None = None,
        per_image_tokens: bool = False,
        num_vectors_per_token: int = 1,
        progressive_words: bool = False,
        presudo_words: str | Sequence[str] | None = None,
        attn_words: str | Sequence[str] | None = None,
        *,
        words: Sequence[LearnableWord] | None = None,
        first_id: int | None = None,
        embedding_manager_ckpt: str | Path | None = None,
        generator: torch.Generator | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise TypeError(f"unknown arguments {sorted(unknown)}; {_accepted()}")
        if words is None:
            words = configured_words(
                placeholder_strings, initializer_words, num_vectors_per_token, presudo_words
            )
        if per_image_tokens:
            words = [*words, *per_image_words(num_vectors_per_token)]
        self.learnable = tuple({word.name: word for word in words}.values())
        if not self.learnable:
            raise ValueError("no word to learn: give words or placeholder_strings")
        self.progressive_words, self.progressive_counter = progressive_words, 0
        self._not_taken = 0  # the part of the counter of which the step has not been taken
        self.attn_words = as_words(attn_words)
        self.width = embedder.width
        self._first_id = embedder.vocab_size if first_id is None else first_id
        self._tokenizer: TextTokenizer = embedder.require_tokenizer()
        self.string_to_param_dict = WordVectors()
        self.initial_embeddings = WordVectors(trainable=False)
        self.initialize(embedder, generator)
        if progressive_words:
            self.register_state_dict_post_hook(_store_counter)
            self.register_load_state_dict_pre_hook(_restore_counter)
        if embedding_manager_ckpt:
            self.load(embedding_manager_ckpt)

    # ------------------------------------------------------------------------------- words

    @property
    def words(self) -> dict[str, WordToken]:
        """Id and number of vectors of each word, as the next call will use them."""
        counts = self._counts()
        return {
            name: WordToken(self.string_to_token_dict[name], count)
            for name, count in zip(self.string_to_param_dict, counts, strict=True)
        }

    def spans(self, text: str | Caption) -> tuple[WordSpan, ...]:
        """Where the words stand in `text`: every occurrence, or what a caption says itself."""
        if isinstance(text, Caption):
            return tuple(s for s in text.learnable if s.word in self.string_to_param_dict)
        return find_words(text, self.string_to_param_dict)

    def _assign_ids(self) -> None:
        """Placeholders in the vocabulary keep their ids, other words are numbered behind it."""
        self.string_to_token_dict: dict[str, int] = {}
        free = self._first_id
        for name in self.string_to_param_dict:
            known = self._tokenizer.placeholder_id(name)
            self.string_to_token_dict[name] = free if known is None else known
            free += known is None
        sizes = [len(vectors) for vectors in self.string_to_param_dict.values()]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        device = self.string_to_param_dict.device
        ids = list(self.string_to_token_dict.values())
        for name, numbers in (("_ids", ids), ("_starts", starts), ("_sizes", sizes)):
            self.register_buffer(name, torch.tensor(numbers, device=device), persistent=False)

    # ----------------------------------------------------------------------------- vectors

    @torch.no_grad()
    def initialize(self, embedder: TextEncoder, generator: torch.Generator | None = None) -> None:
        """Give every word the vectors it starts from, read from the encoder's token embeddings."""
        starts = {w.name: initial_vectors(embedder, w, generator) for w in self.learnable}
        self.string_to_param_dict.assign(starts)
        self.initial_embeddings.assign(starts)
        self._assign_ids()

    def _counts(self) -> list[int]:
        """How many vectors of each word the next call puts in."""
        sizes = [len(vectors) for vectors in self.string_to_param_dict.values()]
        if not self.progressive_words or not (self.training or self.progressive_counter):
            return sizes
        # In training the counter goes up by one per word, before that word is put in.
        ahead = [i + 1 if self.training else 0 for i in range(len(sizes))]
        return [
            min(size, 1 + (self.progressive_counter + more) // PROGRESSIVE_SCALE)
            for size, more in zip(sizes, ahead, strict=True)
        ]

    def expand(self, tokenized_text: Tensor) -> Tensor:
        """The ids (b, n) with each word's id once per vector, as the next call lays them out."""
        empty = self._ids.new_zeros((*tokenized_text.shape, 0), dtype=torch.float32)
        return self._splice(tokenized_text, empty, self._table()[:, :0])[0]

    def forward(self, tokenized_text: Tensor, embedded_text: Tensor) -> Tensor:
        """The embeddings (b, n, d) of ids (b, n) with the learned vectors in place of the words.

        A word of k vectors takes k places; what follows moves right, and rows are cut to n. The
        arguments are not changed.
        """
        embedded = self._splice(tokenized_text, embedded_text, self._table())[1]
        if self.progressive_words and self.training:
            self.progressive_counter += len(self.string_to_param_dict)
            self._not_taken += len(self.string_to_param_dict)
        return embedded

    def commit(self) -> None:
        """Let checkpoints have what was counted since the step before: it has been taken."""
        self._not_taken = 0

    def _table(self) -> Tensor:
        """All vectors of all words, one under the other."""
        return torch.cat(list(self.string_to_param_dict.values()))

    def _splice(self, ids: Tensor, embedded: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        counts = self._counts()
        device = self._sizes.device
        sizes = torch.tensor(counts, device=device) if self.progressive_words else self._sizes
        return splice(
            ids, embedded, table.to(embedded.dtype), self._ids, self._starts, sizes, max(counts)
        )

    def embedding_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that are learned."""
        return (p for p in self.string_to_param_dict.parameters() if p.requires_grad)

    def learn_only(self, words: Collection[str]) -> None:
        """Freeze all other words; they enter text and are saved as before."""
        for name, vectors in self.string_to_param_dict.items():
            vectors.requires_grad_(name in words)

    def start_here(self, name: str, words: Collection[str]) -> None:
        """Take the present vectors of `words` for those they start from, by the name of `name`."""
        self.learnable = tuple(
            replace(word, init=name) if word.name in words else word for word in self.learnable
        )
        starts = {
            word: (self.string_to_param_dict[word] if word in words else vectors).detach().clone()
            for word, vectors in self.initial_embeddings.items()
        }
        self.initial_embeddings.assign(starts)

    def get_embedding_norms_squared(self) -> Tensor:
        """The squared length of every vector of every word (vectors,)."""
        return self._table().square().sum(-1)

    def embedding_to_coarse_loss(self) -> Tensor:
        """How far the words are from where they started: mean over words of ``D D^T``, D (k, d).

        When words have different numbers of vectors, the mean entry of each such matrix stands
        for it, as (1, 1).
        """
        gaps = [
            vectors - self.initial_embeddings[name].to(vectors)
            for name, vectors in self.string_to_param_dict.items()
        ]
        grams = [gap @ gap.T for gap in gaps]
        if len({len(gram) for gram in grams}) > 1:
            grams = [gram.mean().reshape(1, 1) for gram in grams]
        return torch.stack(grams).mean(0)

    # ------------------------------------------------------------------------------- files

    def save(self, path: str | Path, vectors: Mapping[str, Tensor] | None = None) -> None:
        """Write the words to `path` (the public ``.pt`` layout) and beside it as ``.safetensors``.

        Each file is either the old one or the whole new one; :func:`files_of` names both. A path
        that ends in ``.safetensors`` gives only that file. `vectors` are earlier ones of the same
        words.
        """
        vectors = dict(self.string_to_param_dict.items()) if vectors is None else vectors
        ids = {name: self._stored_id(name) for name in vectors}
        starts = {word.name: word.start for word in self.learnable}
        write_words(path, vectors, ids, starts)

    def _stored_id(self, name: str) -> int:
        """The id other programs look for: the vocabulary's, if the word is one token there."""
        known = self._tokenizer.single_id(name)
        return self.string_to_token_dict[name] if known is None else known

    def load(self, path: str | Path) -> None:
        """Replace the words by those of a file of any of the usual tools.

        Raises:
            ValueError: when the vectors are not as wide as the text encoder; names the word and
                both widths.
        """
        vectors = read_embeddings(path).vectors
        for name, value in vectors.items():
            if value.shape[-1] != self.width:
                raise ValueError(
                    f"{path}: the word {name!r} is {value.shape[-1]} wide but the text encoder is "
                    f"{self.width} wide: it was learned for another model"
                )
        known = {word.name: word for word in self.learnable}
        self.learnable = tuple(
            replace(known.get(name, LearnableWord(name)), vectors=len(value))
            for name, value in vectors.items()
        )
        kept = dict(self.initial_embeddings.items())
        self.string_to_param_dict.assign(vectors)
        self.initial_embeddings.assign(
            {
                name: kept[name] if name in kept and kept[name].shape == value.shape else value
                for name, value in vectors.items()
            }
        )
        self._assign_ids()


def files_of(path: str | Path) -> tuple[Path, ...]:
    """The files in which words saved as `path` stand: `path`, and last the ``.safetensors``.

    That takes the place of ``.pt``, ``.bin`` and ``.ckpt``, and follows any other name:
    ``words.v2`` is no reason to write over ``words.safetensors``.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return (path,)
    stem = path.stem if path.suffix in _TORCH_SUFFIXES else path.name
    return path, path.parent / f"{stem}.safetensors"


def write_words(
    path: str | Path,
    vectors: Mapping[str, Tensor],
    ids: Mapping[str, int],
    starts: Mapping[str, str] | None = None,
) -> tuple[Path, ...]:
    """Write words (k, d) with their ids to `path`, as :meth:`EmbeddingManager.save` says.

    Returns the files written, those of :func:`files_of`.
    """
    files = files_of(path)
    kept = {name: value.detach().float().cpu().clone() for name, value in vectors.items()}
    if len(files) > 1:
        tokens = {name: torch.tensor(number) for name, number in ids.items()}
        save_torch({"string_to_token": tokens, "string_to_param": parameter_dict(kept)}, files[0])
    metadata = {"string_to_token": json.dumps(dict(ids))}
    if starts is not None:
        metadata["starts_from"] = json.dumps(dict(starts))
    save_safetensors(kept, files[-1], metadata)
    return files


def _accepted() -> str:
    """What the constructor of the embedding manager takes."""
    names = list(inspect.signature(EmbeddingManager.__init__).parameters)
    return f"EmbeddingManager takes {', '.join(names[2:-1])}"


def configured_words(
    placeholder_strings: str | Sequence[str] | None,
    initializer_words: str | Sequence[str | None] | None,
    vectors: int,
    presudo_words: str | Sequence[str] | None,
) -> list[LearnableWord]:
    """The words that a released config lists, with `vectors` vectors each."""
    inits = [initializer_words] if isinstance(initializer_words, str) else initializer_words or []
    if as_words(presudo_words):
        given = ",".join(init for init in inits if init)
        return [replace(w, vectors=vectors) for w in released_words(presudo_words or (), (), given)]
    names = placeholder_strings or []
    names = [names] if isinstance(names, str) else list(names)
    inits = [*inits, *[None] * len(names)]
    return [
        LearnableWord(name, init or None, vectors) for name, init in zip(names, inits, strict=False)
    ]


def per_image_words(vectors: int) -> list[LearnableWord]:
    """The words for what is special about each picture; they stand for no concept."""
    return [LearnableWord(token, vectors=vectors, role="other") for token in PER_IMAGE_TOKENS]


def initial_vectors(
    embedder: TextEncoder, word: LearnableWord, generator: torch.Generator | None = None
) -> Tensor:
    """The vectors (k, d) that a word starts from: those of its init's tokens, spread over k.

    One token is repeated; several are averaged for one vector, or shared out in order.
    ``"random"`` draws each coordinate like those of the token table.

    Raises:
        ValueError: when the init has no tokens at all.
    """
    table = embedder.token_embedding.weight.detach().float()
    if word.init == RANDOM:
        noise = torch.randn(word.vectors, table.shape[1], generator=generator)
        return table.mean(0) + table.std(0) * noise.to(table)
    tokenizer = embedder.require_tokenizer()
    ids = tokenizer.token_ids(word.start)
    if not ids:
        raise ValueError(f"{word.name!r} cannot start from {word.start!r}: that text has no tokens")
    if tokenizer.unknown(word.start) or tokenizer.spelt_out(word.start):
        logger.warning(
            "%r starts from %r, which the vocabulary of the text encoder does not have; give it an "
            "init made of known words",
            word.name,
            word.start,
        )
    rows = table[torch.tensor(ids, device=table.device)]
    k, m = word.vectors, len(ids)
    shares = [rows[i * m // k : max(-(-(i + 1) * m // k), i * m // k + 1)] for i in range(k)]
    return torch.stack([share.mean(0) for share in shares])


def _store_counter(
    module: EmbeddingManager, state: dict[str, Any], prefix: str, *_ignored: object
) -> None:
    """Keep the count of progressive words, so that a resumed run continues at the same point."""
    taken = module.progressive_counter - module._not_taken
    state[prefix + _COUNTER] = torch.tensor(taken)


def _restore_counter(
    module: EmbeddingManager, state: dict[str, Any], prefix: str, *_ignored: object
) -> None:
    """Take the count out of a checkpoint that has one; those of other programs do not."""
    counter = state.pop(prefix + _COUNTER, None)
    if counter is not None:
        module.progressive_counter, module._not_taken = int(counter), 0
