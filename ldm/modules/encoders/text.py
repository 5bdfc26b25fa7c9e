"""Text encoders that learnable words can enter, and the encoder of the public text-to-image model.

Names and checkpoint keys of the public ``ldm.modules.encoders.modules``, where everything here is
found too.
"""

import inspect
import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.encoders.tokens import TextTokenizer, Tokens, WordToken, pretrained_tokenizer
from ldm.modules.x_transformer import Encoder, TransformerWrapper
from ldm.prompts.spans import Caption

logger = logging.getLogger(__name__)

#: Where relative paths of configs are looked up when the current folder does not have them.
_ROOT = Path(__file__).resolve().parents[3]

Text = str | Caption | Sequence[str | Caption]
#: ``manager(ids, embedded) -> embedded``; one that learns words also offers ``manager.words``.
Manager = Callable[[Tensor, Tensor], Tensor]


class AbstractEncoder(nn.Module):
    """Whatever turns a condition into a context for the U-Net."""

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """The context of a condition.

        Raises:
            NotImplementedError: in this base class.
        """
        raise NotImplementedError(f"{type(self).__name__} has no encode()")


class TextEncoder(AbstractEncoder):
    """What all text encoders share: captions to ids, ids to context, learnable words in between."""

    width: int
    max_length: int
    text_tokenizer: TextTokenizer | None = None

    @property
    @abstractmethod
    def token_embedding(self) -> nn.Embedding:
        """The table of token embeddings (vocabulary, width)."""

    @abstractmethod
    def encode_tokens(self, ids: Tensor, embedding_manager: Manager | None = None) -> Tensor:
        """The context (b, n, width) of token ids (b, n), with learned words put in by the
        manager."""

    @property
    def vocab_size(self) -> int:
        """How many tokens the table has; learnable words of their own are numbered from here."""
        return self.token_embedding.num_embeddings

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.token_embedding.weight.device

    def require_tokenizer(self) -> TextTokenizer:
        """The tokenizer.

        Raises:
            ValueError: when the encoder was built without one.
        """
        if self.text_tokenizer is None:
            raise ValueError(
                f"this {type(self).__name__} was built without a tokenizer (use_tokenizer=False): "
                "give it token ids, or build it with use_tokenizer=True"
            )
        return self.text_tokenizer

    def tokenize(
        self, captions: Text, words: Mapping[str, WordToken | int] | None = None
    ) -> Tokens:
        """Ids and word positions of captions; see :meth:`TextTokenizer.tokenize`."""
        batch = [captions] if isinstance(captions, str | Caption) else list(captions)
        return self.require_tokenizer().tokenize(batch, words)

    def encode(self, text: Text | Tensor, embedding_manager: Manager | None = None) -> Tensor:
        """The context (b, max_length, width) of captions, or of token ids as they are."""
        if isinstance(text, Tensor):
            return self.encode_tokens(text, embedding_manager)
        words = getattr(embedding_manager, "words", None)
        return self.encode_tokens(self.tokenize(text, words).ids, embedding_manager)

    def encode_distinct(self, ids: Tensor, embedding_manager: Manager | None = None) -> Tensor:
        """What :meth:`encode_tokens` gives, with rows that occur several times encoded once."""
        rows, index = distinct(ids)
        context = self.encode_tokens(rows, embedding_manager)
        return context if len(rows) == len(ids) else context[index.to(context.device)]

    def forward(self, text: Text | Tensor, embedding_manager: Manager | None = None) -> Tensor:
        """The same as :meth:`encode`."""
        return self.encode(text, embedding_manager)


def distinct(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows of token ids (b, n), and for every row which of them it is (b,).

    Rows that are all different keep their order.
    """
    rows, index = torch.unique(ids, dim=0, return_inverse=True)
    if len(rows) == len(ids):
        return ids, torch.arange(len(ids), device=ids.device)
    return rows, index


class TransformerEmbedder(TextEncoder):
    """Token ids through a small transformer; without a tokenizer."""

    def __init__(
        self,
        n_embed: int,
        n_layer: int,
        vocab_size: int,
        max_seq_len: int = 77,
        device: str | torch.device | None = None,
        embedding_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.width, self.max_length = n_embed, max_seq_len
        self.transformer = TransformerWrapper(
            num_tokens=vocab_size,
            max_seq_len=max_seq_len,
            attn_layers=Encoder(dim=n_embed, depth=n_layer),
            emb_dropout=embedding_dropout,
        )
        # Stored in public checkpoints but never read; nothing would ever reach it in training.
        self.transformer.to_logits.requires_grad_(False)
        if device is not None:
            self.to(device)

    @property
    def token_embedding(self) -> nn.Embedding:
        """The table of token embeddings (vocabulary, width)."""
        return self.transformer.token_emb

    def encode_tokens(self, ids: Tensor, embedding_manager: Manager | None = None) -> Tensor:
        """The context (b, n, width) of token ids (b, n), with learned words put in by the manager.

        Raises:
            ValueError: when there are more ids than positions, or, without a manager, an id
                beyond the vocabulary.
        """
        if embedding_manager is None and ids.device.type == "cpu" and ids.numel():
            highest = int(ids.max())
            if highest >= self.vocab_size:
                raise ValueError(
                    f"token id {highest} is a learnable word (the vocabulary ends at "
                    f"{self.vocab_size - 1}): give the embedding manager that knows it"
                )
        ids = ids.to(self.device)
        return self.transformer(ids, return_embeddings=True, embedding_manager=embedding_manager)


class BERTTokenizer(AbstractEncoder):
    """Captions to BERT word pieces, padded to `max_length`.

    The vocabulary is a local file (`vocab_file`) or else the one of `name`; it is loaded when
    first used.
    """

    def __init__(
        self,
        device: str | torch.device | None = None,
        vq_interface: bool = True,
        max_length: int = 77,
        vocab_file: str | Path | None = None,
        name: str = "bert-base-uncased",
    ) -> None:
        super().__init__()
        self.device, self.vq_interface, self.max_length = device, vq_interface, max_length
        path = None if vocab_file is None else find_vocabulary(vocab_file)
        self.text_tokenizer = TextTokenizer(partial(_load_bert, name, path), max_length)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of `transformers` itself."""
        return self.text_tokenizer.backend

    def forward(self, text: Text) -> Tensor:
        """Token ids (b, max_length)."""
        batch = [text] if isinstance(text, str | Caption) else list(text)
        return self.text_tokenizer.tokenize(batch).ids.to(self.device or "cpu")

    def encode(self, text: Text) -> Any:
        """Token ids, dressed as what a vector-quantising encoder returns if `vq_interface`."""
        ids = self(text)
        return (None, None, [None, None, ids]) if self.vq_interface else ids

    def decode(self, text: Any) -> Any:
        """`text` as it is."""
        return text


class BERTEmbedder(TransformerEmbedder):
    """Captions through word pieces and a transformer: the text encoder of the public LDM.

    In the public checkpoint every token reads all others, padding too, and the U-Net looks at
    padding as much as at words. `blind_tokens`, by their names in the vocabulary ("[PAD]", ...),
    do not read the caption: what it says is then to be had from its words alone.

    Raises:
        ValueError: when the vocabulary file has more words than `vocab_size`, or a blind token is
            not in the vocabulary.
    """

    def __init__(  # noqa: PLR0913 - the public arguments, and ours by keyword
        self,
        n_embed: int,
        n_layer: int,
        vocab_size: int = 30522,
        max_seq_len: int = 77,
        device: str | torch.device | None = None,
        use_tokenizer: bool = True,
        embedding_dropout: float = 0.0,
        vocab_file: str | Path | None = None,
        *,
        blind_tokens: Sequence[str] = (),
    ) -> None:
        super().__init__(n_embed, n_layer, vocab_size, max_seq_len, device, embedding_dropout)
        self.use_tknz_fn = use_tokenizer
        if not use_tokenizer:
            if blind_tokens:
                raise ValueError("blind_tokens need use_tokenizer=True, which knows their ids")
            return
        self.tknz_fn = BERTTokenizer(
            vq_interface=False, max_length=max_seq_len, vocab_file=vocab_file
        )
        self.text_tokenizer = self.tknz_fn.text_tokenizer
        if blind_tokens:
            self.transformer.blind_to_text(_ids_of(self.tknz_fn.tokenizer, blind_tokens))
        if vocab_file is not None:
            path = find_vocabulary(vocab_file)
            with path.open(encoding="utf-8") as lines:
                count = sum(1 for line in lines if line.strip())
            if count > vocab_size:
                raise ValueError(
                    f"{path} has {count} words but the encoder has vocab_size {vocab_size}: they "
                    f"must match, set vocab_size: {count}"
                )


def _ids_of(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """The ids of whole tokens of the vocabulary; raises ValueError for any that is not in it."""
    known = tokenizer.get_vocab()
    if missing := [token for token in tokens if token not in known]:
        raise ValueError(
            f"blind_tokens {missing} are not in the vocabulary; give tokens of it, such as "
            f"{tokenizer.all_special_tokens}"
        )
    return [known[token] for token in tokens]


def find_vocabulary(path: str | Path) -> Path:
    """The vocabulary file at `path`, relative to the current folder or else to the project's own.

    Raises:
        FileNotFoundError: when there is none; the message lists where it was looked for.
    """
    tried = list(dict.fromkeys([Path(path).expanduser().absolute(), _ROOT / path]))
    for candidate in tried:
        inside = candidate / "vocab.txt" if candidate.is_dir() else candidate
        if inside.is_file():
            return inside
    places = " or ".join(map(str, tried))
    raise FileNotFoundError(
        f"vocab_file {str(path)!r} was not found as {places}; give the path of a vocab.txt with "
        "one word piece a line"
    )


def _load_bert(name: str, vocab_file: Path | None) -> Any:
    from transformers import BertTokenizerFast  # type: ignore[attr-defined, unused-ignore]

    if vocab_file is not None:
        # transformers 5 renamed the argument.
        renamed = "vocab" in inspect.signature(BertTokenizerFast.__init__).parameters
        return BertTokenizerFast(**{"vocab" if renamed else "vocab_file": str(vocab_file)})
    advice = "go online once, or give its vocab.txt as vocab_file (a parameter of BERTEmbedder)"
    return pretrained_tokenizer(BertTokenizerFast, name, advice)
