"""The text transformer behind ``BERTEmbedder``: pre-norm, and without an attention mask.

It has 8 heads of 64 whatever its width. Padding attends and is attended to like any other token:
the public text-to-image checkpoint was trained so. `TransformerWrapper` can be told otherwise.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from ldm.modules.attention import FeedForward, fused_attention

EmbeddingHook = Callable[[Tensor, Tensor], Tensor]


class AbsolutePositionalEmbedding(nn.Module):
    """One learned vector per position."""

    def __init__(self, dim: int, max_seq_len: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(max_seq_len, dim)
        nn.init.normal_(self.emb.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """The vectors (n, c) of the first n positions, for `x` (b, n, c)."""
        return self.emb.weight[: x.shape[1]]


class Attention(nn.Module):
    """Multi-head attention of tokens among themselves."""

    def __init__(self, dim: int, heads: int = 8, dim_head: int = 64) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_k = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_v = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(b, n, c) -> (b, n, c); `bias` (b, 1, n, n) is added to the scores of all heads."""
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.to_q(x), self.to_k(x), self.to_v(x))
        )
        bias = None if bias is None else bias.to(q.dtype)
        return self.to_out(fused_attention(q, k, v, bias).transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """`depth` times attention and feed-forward, each normed in front and with a residual."""

    def __init__(self, dim: int, depth: int, heads: int = 8) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.ModuleList()
        for _ in range(depth):
            self.layers.append(nn.ModuleList([nn.LayerNorm(dim), Attention(dim, heads)]))
            self.layers.append(nn.ModuleList([nn.LayerNorm(dim), FeedForward(dim)]))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(b, n, c) -> (b, n, c), not yet normalised; `bias` as in `Attention`."""
        for layer in self.layers:
            norm, block = layer.children()
            x = x + (block(norm(x), bias) if isinstance(block, Attention) else block(norm(x)))
        return x


class TransformerWrapper(nn.Module):
    """Token ids to vectors: embedding, positions, `attn_layers`, norm."""

    _blind: Tensor

    def __init__(
        self, num_tokens: int, max_seq_len: int, attn_layers: Encoder, emb_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.max_seq_len = max_seq_len
        self.token_emb = nn.Embedding(num_tokens, attn_layers.dim)
        nn.init.normal_(self.token_emb.weight, std=0.02)
        self.pos_emb = AbsolutePositionalEmbedding(attn_layers.dim, max_seq_len)
        self.emb_dropout = nn.Dropout(emb_dropout)
        self.attn_layers = attn_layers
        self.norm = nn.LayerNorm(attn_layers.dim)
        self.to_logits = nn.Linear(attn_layers.dim, num_tokens)
        self.blind_to_text(())

    def blind_to_text(self, ids: Collection[int]) -> None:
        """From now on tokens with one of these `ids` attend among themselves alone.

        So what they become says nothing of the text, whatever reads it. Other tokens attend to all.
        """
        self.register_buffer(
            "_blind", torch.tensor(sorted(ids), dtype=torch.long), persistent=False
        )

    def _bias(self, tokens: Tensor, manager: EmbeddingHook | None) -> Tensor | None:
        """What keeps blind tokens among ids (b, n) from reading the others: (b, 1, n, n)."""
        if not len(self._blind):
            return None
        expand = getattr(manager, "expand", None)  # words of several vectors move what follows
        blind = torch.isin(tokens if expand is None else expand(tokens), self._blind)
        unread = blind[:, :, None] & ~blind[:, None, :]
        weight = self.token_emb.weight
        bias = torch.zeros(unread.shape, dtype=weight.dtype, device=weight.device)
        return bias.masked_fill(unread, torch.finfo(weight.dtype).min)[:, None]

    def forward(
        self,
        tokens: Tensor,
        return_embeddings: bool = False,
        embedding_manager: EmbeddingHook | None = None,
    ) -> Tensor:
        """What the token ids (b, n) mean: (b, n, c), or scores of all tokens (b, n, v).

        Scores unless `return_embeddings`. ``embedding_manager(tokens, embedded)`` may replace
        token embeddings before positions are added. Ids beyond the vocabulary are learned words:
        what is looked up for them is meant to be replaced there.

        Raises:
            ValueError: when there are more tokens than positions.
        """
        if tokens.shape[1] > self.max_seq_len:
            raise ValueError(
                f"{tokens.shape[1]} tokens for {self.max_seq_len} positions: shorten the text"
            )
        x = self.token_emb(tokens.clamp(max=self.num_tokens - 1))
        bias = self._bias(tokens, embedding_manager)
        if embedding_manager is not None:
            x = embedding_manager(tokens, x)
        x = self.attn_layers(self.emb_dropout(x + self.pos_emb(x)), bias)
        x = self.norm(x)
        return x if return_embeddings else self.to_logits(x)
